"""The parts of a node in three groups, each built from what stands below it: reach, holdings, presence."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from octonode.config import Config, NetworkConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.select import load_request
from octonode.engines.servers.registry import ServerSettings
from octonode.engines.supervisor import Supervisor
from octonode.errors import ConfigError
from octonode.identity import NodeKey
from octonode.ids import ANNOUNCE_TOPIC, PeerId, public_key_from_peer_id
from octonode.ipfs.bitswap import Bitswap, BitswapLimits
from octonode.ipfs.gateway import Pace
from octonode.metrics import Metrics
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.network.access import Access, TokenFiles
from octonode.network.announcer import Announcer
from octonode.network.clock import Chance, wall_clock_ms
from octonode.network.discovery import Discovery
from octonode.network.fanout import Fanout
from octonode.network.hello import Hello, Manifests
from octonode.network.host import Network
from octonode.network.intake import Intake
from octonode.network.joinline import parse_line
from octonode.network.libp2p import build_network
from octonode.network.membership import Membership
from octonode.network.own_announcement import Facts, OwnAnnouncement
from octonode.network.peerbook import Peerbook
from octonode.network.records import RecordRules
from octonode.network.sequence import SequenceFile
from octonode.node.block_peers import MakeSource
from octonode.node.engine_files import EngineFiles
from octonode.node.events import Events
from octonode.node.evicting import Evictor
from octonode.node.fetcher import Fetcher
from octonode.node.fetches import Fetches
from octonode.node.gate import Gate
from octonode.node.gpus import Gpus
from octonode.node.names import Names
from octonode.node.peers import remembered
from octonode.node.resolving import Resolver
from octonode.node.seating import MachineMemory, server_devices, server_machines
from octonode.node.shelf import Shelf
from octonode.node.source import Source
from octonode.node.wishes import Wishes
from octonode.state import State
from octonode.tasks.residency import Residency, ResolvedModel
from octonode.tasks.room import Room
from octonode.tasks.slots import EngineSlots


@dataclass(frozen=True, slots=True)
class Reach:
    """Who we can reach, and who may reach us."""

    network: Network
    settings: NetworkConfig
    """With the addresses of earlier joins."""
    peerbook: Peerbook
    intake: Intake
    tokens: TokenFiles
    access: Access
    chance: Chance

    def copies(self, root: str) -> int:
        """Other nodes that are known to hold a model whole."""
        holders = self.peerbook.holding(root, wall_clock_ms())
        return sum(item.root == root and item.complete for each in holders for item in each.holding)


def build_reach(config: Config, key: NodeKey) -> Reach:
    """Raises ConfigError for bootstrap lines, tokens and peer ids that cannot be."""
    tokens = TokenFiles(config.home)
    settings = _with_joined(config, tokens)
    rules = RecordRules(wall_clock_ms)
    network = build_network(key, settings, validator=rules.validate, select=rules.select)
    access = Access(config.network.access, key.peer_id, (tokens.own(), *tokens.joined()), _peer_ids(config))
    peerbook = Peerbook(key.peer_id, config.network.peerbook_peers_max)
    intake = Intake(network.host, peerbook, wall_clock_ms)
    return Reach(network, settings, peerbook, intake, tokens, access, random.Random())


@dataclass(frozen=True, slots=True)
class Holdings:
    """What we hold and run: records, models, workers."""

    state: State
    store: ModelStore
    library: Library
    shelf: Shelf
    names: Names
    resolver: Resolver
    source: Source
    wishes: Wishes
    supervisor: Supervisor
    gpus: Gpus
    gate: Gate
    residency: Residency
    slots: EngineSlots


def build_holdings(config: Config, key: NodeKey, reach: Reach) -> Holdings:
    store = ModelStore(config.home, disk_bytes_max=config.models.disk_bytes_max)
    trust = TrustTable(config.home, always=(key.peer_id, *config.models.trust), trust_all=config.models.trust_all)
    library = Library(store, trust, key)
    shelf = Shelf(library)
    names = Names(library, shelf, key)
    resolver = Resolver(library, shelf, reach.peerbook, names=names, allow_unsigned=config.models.allow_unsigned)
    source = Source(library=library, shelf=shelf, resolver=resolver, names=names)
    wishes = Wishes(config.home)
    supervisor = Supervisor(
        config.engines,
        directory=config.home / "workers",
        files=EngineFiles(store),
        servers=ServerSettings(config.vllm, config.tensorrt_llm),
    )
    gate = Gate(library)
    gpus = Gpus()
    memory = MachineMemory(
        gate=gate, workers=supervisor, gpus=gpus, settings=config.engines,
        server_devices=server_devices(config), server_machines=server_machines(config),
    )  # fmt: skip
    room = Room(
        memory,
        gpu_reserve_bytes=config.engines.gpu_memory_reserve_bytes,
        evict_idle_seconds=config.engines.evict_idle_seconds,
    )
    return Holdings(
        state=State(config.home / "state.sqlite", receipts_max=config.tasks.receipts_max),
        store=store,
        library=library,
        shelf=shelf,
        names=names,
        resolver=resolver,
        source=source,
        wishes=wishes,
        supervisor=supervisor,
        gpus=gpus,
        gate=gate,
        residency=Residency(
            source=source,
            engines=supervisor,
            load_request=partial(_load_request, config, wishes),
            gate=gate.admit,
            room=room,
            keep_loaded=config.engines.keep_loaded,
        ),
        slots=EngineSlots(config.tasks.queue_max, batch_seconds=config.tasks.batch_seconds),
    )


@dataclass(frozen=True, slots=True)
class Presence:
    """How others know of us, and we of them."""

    own: OwnAnnouncement
    hello: Hello
    fanout: Fanout
    announcer: Announcer
    discovery: Discovery
    membership: Membership


def build_presence(config: Config, key: NodeKey, reach: Reach, *, facts: Facts, manifests: Manifests) -> Presence:
    network, host = reach.network, reach.network.host
    own = OwnAnnouncement(
        signer=key, host=host, facts=facts, sequence=SequenceFile(config.home), settings=reach.settings,
        now_ms=wall_clock_ms,
    )  # fmt: skip
    hello = Hello(
        host=host, own=own, peerbook=reach.peerbook, intake=reach.intake, now_ms=wall_clock_ms, random=reach.chance,
        manifests=manifests,
    )  # fmt: skip
    fanout = Fanout(host=host, settings=reach.settings, now_ms=wall_clock_ms)
    fanout.hear(ANNOUNCE_TOPIC, partial(reach.intake.take, must_be_own=True))
    announcer = Announcer(
        own=own, host=host, hello=hello, fanout=fanout, routing=network.routing, values=network.values,
        pubsub=network.pubsub, settings=reach.settings, now_ms=wall_clock_ms, random=reach.chance,
    )  # fmt: skip
    discovery = Discovery(
        host=host, hello=hello, intake=reach.intake, peerbook=reach.peerbook, routing=network.routing,
        values=network.values, now_ms=wall_clock_ms, random=reach.chance,
    )  # fmt: skip
    membership = Membership(
        host=host, hello=hello, intake=reach.intake, peerbook=reach.peerbook, pubsub=network.pubsub,
        settings=reach.settings, now_ms=wall_clock_ms, random=reach.chance,
    )  # fmt: skip
    return Presence(own, hello, fanout, announcer, discovery, membership)


def build_bitswap(config: Config, reach: Reach, holdings: Holdings, pace: Pace, metrics: Metrics) -> Bitswap | None:
    """`pace` is the upload limit, which the gateway keeps to as well."""
    if not config.bitswap.enabled:
        return None
    served = metrics.block_bytes.labels("served")
    limits = BitswapLimits(
        window_bytes_max=config.bitswap.window_bytes_max, wants_per_peer_max=config.bitswap.wants_per_peer_max
    )
    return Bitswap(
        reach.network.host, holdings.store, limits, pace=pace, on_sent=lambda _, size_bytes: served.inc(size_bytes)
    )


def build_fetches(
    config: Config,
    key: NodeKey,
    reach: Reach,
    holdings: Holdings,
    presence: Presence,
    *,
    over_bitswap: MakeSource | None,
    events: Events,
    metrics: Metrics,
) -> tuple[Fetches, Evictor]:
    """What brings models, and what makes room for them."""
    evictor = Evictor(
        holdings.library, holdings.shelf, others=reach.copies,
        in_use=lambda root: holdings.residency.model(root) is not None, emit=events.emit,
        fetching=lambda root: any(each.root.text == root for each in fetches.all()),
    )  # fmt: skip
    fetcher = Fetcher(
        settings=config.models, library=holdings.library, discovery=presence.discovery, host=reach.network.host,
        over_bitswap=over_bitswap, evictor=evictor, events=events, metrics=metrics, own=key.peer_id,
        changed=holdings.source.refresh,
    )  # fmt: skip
    fetches = Fetches(fetcher.act, home=config.home, at_once_max=config.models.fetches_at_once_max, emit=events.emit)
    return fetches, evictor


def _with_joined(config: Config, tokens: TokenFiles) -> NetworkConfig:
    """The network's settings with the addresses of earlier joins. A join line given as bootstrap brings its token."""
    for text in config.network.bootstrap:
        line = parse_line(text)
        if line.token:
            tokens.adopt(line.token)
    bootstrap = tuple(dict.fromkeys((*config.network.bootstrap, *remembered(config.home))))
    return replace(config.network, bootstrap=bootstrap)


def _peer_ids(config: Config) -> tuple[PeerId, ...]:
    for text in config.network.allowed_peers:
        try:
            public_key_from_peer_id(text)
        except ValueError as error:
            raise ConfigError(f"network.allowed_peers: {error}") from None
    return tuple(PeerId(text) for text in config.network.allowed_peers)


def _load_request(config: Config, wishes: Wishes, model: ResolvedModel, path: Path, folder: Path) -> LoadRequest:
    engine = wishes.engine_of(model.name, model.root)
    settings = replace(config.engines, default=engine) if engine else config.engines
    return load_request(
        settings,
        model_root=model.root,
        model_path=path,
        model_folder=folder,
        model_format=model.format,
        context_tokens_max=model.context_tokens,
        category=model.category,
        architecture=model.architecture,
        model_name=model.name,
    )
