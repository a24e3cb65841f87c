"""Every part of a node, built once and handed to those who need it; and the nursery tree they run in. No logic."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from octonode.api.app import make_app
from octonode.api.auth import load_or_create_token
from octonode.api.connection import ConnectionLimits
from octonode.api.ports import Ports
from octonode.api.schema import to_json
from octonode.api.server import Bound, serve
from octonode.config import Config, NetworkConfig, split_host_port
from octonode.engines.contract import LoadRequest
from octonode.engines.select import load_request
from octonode.engines.supervisor import Supervisor
from octonode.errors import ConfigError
from octonode.identity import NodeKey
from octonode.ids import AGENT_PROTOCOL, PeerId, public_key_from_peer_id
from octonode.ipfs.gateway import Gateway, GatewayLimits
from octonode.metrics import Metrics
from octonode.models.formats import sniff
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.network.access import Access, TokenFiles
from octonode.network.announcer import Announcer
from octonode.network.clock import wall_clock_ms
from octonode.network.discovery import Discovery
from octonode.network.hello import Hello
from octonode.network.host import Network
from octonode.network.intake import Intake
from octonode.network.joinline import parse_line
from octonode.network.libp2p import build_network
from octonode.network.membership import Membership
from octonode.network.own_announcement import OwnAnnouncement
from octonode.network.peerbook import Peerbook
from octonode.network.records import RecordRules
from octonode.network.sequence import SequenceFile
from octonode.node.counting import count
from octonode.node.doctor import Doctor
from octonode.node.events import Events
from octonode.node.lock import daemon_file
from octonode.node.models import Models
from octonode.node.peers import Peers, remembered
from octonode.node.records import CountedLog
from octonode.node.resolving import Resolver
from octonode.node.shelf import Shelf
from octonode.node.source import Source
from octonode.node.view import VERSION, View
from octonode.node.watch import watch
from octonode.node.wishes import Wishes
from octonode.state import State
from octonode.tasks.dispatcher import Dispatcher
from octonode.tasks.provider import Provider
from octonode.tasks.residency import Residency, ResolvedModel
from octonode.tasks.slots import EngineSlots

DRAIN_SECONDS = 10.0
LEAVE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _Parts:
    """What runs, in the order of being started."""

    state: State
    supervisor: Supervisor
    network: Network
    dispatcher: Dispatcher
    provider: Provider
    residency: Residency
    announcer: Announcer
    membership: Membership
    gateway: Gateway | None


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is built and not running: `run` brings it to life."""

    config: Config
    key: NodeKey
    events: Events
    stopping: trio.Event
    """Set it to start the drain."""
    parts: _Parts
    store: ModelStore
    source: Source
    wishes: Wishes
    view: View
    app: Any
    watching: Callable[[], Awaitable[None]]
    counting: Callable[[], Awaitable[None]]


def build(config: Config, key: NodeKey, *, events: Events, stopping: trio.Event) -> Node:
    """Raises ConfigError for settings and files that cannot be."""
    chance = random.Random()
    metrics = Metrics(VERSION)
    tokens = TokenFiles(config.home)
    network_settings = _with_joined(config, tokens)
    rules = RecordRules(wall_clock_ms)
    network = build_network(key, network_settings, validator=rules.validate, select=rules.select)
    host = network.host
    access = Access(config.network.access, key.peer_id, (tokens.own(), *tokens.joined()), _peer_ids(config))
    peerbook = Peerbook(key.peer_id, config.network.peerbook_peers_max)
    intake = Intake(host, peerbook, wall_clock_ms)

    state = State(config.home / "state.sqlite", receipts_max=config.tasks.receipts_max)
    counted = CountedLog(state, metrics)
    slots = EngineSlots(config.tasks.queue_max)
    supervisor = Supervisor(config.engines, directory=config.home / "workers")
    store = ModelStore(config.home, disk_bytes_max=config.models.disk_bytes_max)
    trust = TrustTable(config.home, always=(key.peer_id, *config.models.trust), trust_all=config.models.trust_all)
    library = Library(store, trust, key)
    shelf = Shelf(library)
    resolver = Resolver(library, shelf, peerbook)
    source = Source(
        settings=config.models, library=library, shelf=shelf, resolver=resolver, events=events, metrics=metrics
    )
    wishes = Wishes(config.home)
    residency = Residency(source=source, engines=supervisor, load_request=partial(_load_request, config, wishes))
    view = View(
        config=config, host=host, peerbook=peerbook, supervisor=supervisor, residency=residency, shelf=shelf,
        slots=slots, log=counted, tokens=tokens, events=events, stopping=stopping,
    )  # fmt: skip
    own = OwnAnnouncement(
        signer=key,
        host=host,
        facts=view.announced,
        sequence=SequenceFile(config.home),
        settings=network_settings,
        now_ms=wall_clock_ms,
    )
    hello = Hello(
        host=host, own=own, peerbook=peerbook, intake=intake, now_ms=wall_clock_ms, random=chance, manifests=shelf
    )
    announcer = Announcer(
        own=own, host=host, hello=hello, routing=network.routing, values=network.values, pubsub=network.pubsub,
        settings=network_settings, now_ms=wall_clock_ms, random=chance,
    )  # fmt: skip
    discovery = Discovery(
        host=host, hello=hello, intake=intake, peerbook=peerbook, routing=network.routing, values=network.values,
        now_ms=wall_clock_ms, random=chance,
    )  # fmt: skip
    membership = Membership(
        host=host, hello=hello, intake=intake, peerbook=peerbook, pubsub=network.pubsub, settings=network_settings,
        now_ms=wall_clock_ms, random=chance,
    )  # fmt: skip
    resolver.connect(discovery)
    source.connect(discovery, announcer.changed)
    models = Models(
        own=key.peer_id, library=library, shelf=shelf, resolver=resolver, source=source, residency=residency,
        announcer=announcer, peerbook=peerbook, wishes=wishes,
    )  # fmt: skip
    dispatcher = Dispatcher(
        host=host, signer=key, settings=config.tasks, providers=discovery, resident=residency, slots=slots,
        receipts=state, tasks=counted, token_for=access.show,
    )  # fmt: skip
    provider = Provider(
        signer=key, settings=config.tasks, resident=residency, slots=slots, access=access, receipts=state, tasks=counted
    )
    host.handle(AGENT_PROTOCOL, provider.handle)
    doctor = Doctor(config, host, hello, peerbook, membership, announcer, supervisor, chance)
    view.examine_with(doctor.examine)
    peers = Peers(home=config.home, host=host, peerbook=peerbook, membership=membership, access=access, tokens=tokens)
    ports = Ports(asking=dispatcher, models=models, node=view, peers=peers, records=state)
    app = make_app(ports, config=config.api, token=load_or_create_token(config.home), metrics=metrics.registry)
    parts = _Parts(
        state,
        supervisor,
        network,
        dispatcher,
        provider,
        residency,
        announcer,
        membership,
        _gateway(config, store, metrics),
    )
    watching = partial(
        watch, config=config, host=host, peerbook=peerbook, residency=residency, supervisor=supervisor, slots=slots,
        view=view, events=events, metrics=metrics, changed=announcer.changed,
    )  # fmt: skip
    counting = partial(
        count,
        (
            (lambda: {"": dispatcher.moved_on}, lambda _, more: metrics.next_candidates.inc(more)),
            (lambda: intake.counts, metrics.protocol_error),
            (lambda: {"queue full": network.pubsub.dropped}, lambda why, n: metrics.gossip_dropped.labels(why).inc(n)),
        ),
    )
    return Node(config, key, events, stopping, parts, store, source, wishes, view, app, watching, counting)


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


def _load_request(config: Config, wishes: Wishes, model: ResolvedModel, path: Path) -> LoadRequest:
    engine = wishes.engine_of(model.name, model.root)
    settings = replace(config.engines, default=engine) if engine else config.engines
    model_format = model.format
    if not model_format:  # known by its root alone: the content says what it is
        with path.open("rb") as file:
            model_format = sniff(file).format
    return load_request(
        settings,
        model_root=model.root,
        model_path=path,
        model_format=model_format,
        context_tokens_max=model.context_tokens,
    )


def _gateway(config: Config, store: ModelStore, metrics: Metrics) -> Gateway | None:
    if not config.gateway.enabled:
        return None
    limits = GatewayLimits(
        connections_max=config.gateway.connections_max,
        upload_bytes_per_second_max=config.gateway.upload_bytes_per_second_max,
    )
    served = metrics.block_bytes.labels("served")
    return Gateway(config.gateway.listen, store, limits, on_sent=lambda _, size_bytes: served.inc(size_bytes))


async def run(node: Node, on_ready: Callable[[Mapping[str, Any]], None]) -> None:
    """Serve until `node.stopping` is set, then drain. The API is there first and goes last."""
    faces_end = trio.Event()
    async with trio.open_nursery() as faces:
        limits = ConnectionLimits(connections_max=node.config.api.connections_max)
        serving = partial(serve, node.app, node.config.api.listen, shutdown_event=faces_end, limits=limits)
        bound: Bound = await faces.start(serving)
        node.view.api = bound.url
        with daemon_file(node.config.home, {"api": bound.url, "pid": os.getpid(), "peer_id": node.key.peer_id}):
            async with trio.open_nursery() as work:
                await _start(node, work)
                on_ready(to_json(await node.view.facts()))
                await node.stopping.wait()
                node.events.emit("leaving")
                await _drain(node.parts)
                work.cancel_scope.cancel()
        node.store.close()
        faces_end.set()


async def _start(node: Node, work: trio.Nursery) -> None:
    """In order of need: what keeps records, what runs models, what reaches peers, and then the work itself."""
    parts = node.parts
    await node.source.refresh()
    for service in (parts.state.run, parts.supervisor.run, parts.network.run):
        await work.start(service)
    if parts.gateway is not None:
        await work.start(parts.gateway.run)
        host, _ = split_host_port(node.config.gateway.listen, "gateway.listen")
        node.view.gateway_port = parts.gateway.port
        node.view.gateway_listen = f"{host}:{parts.gateway.port}"
    for service in (
        parts.dispatcher.run,
        parts.provider.run,
        parts.residency.run,
        parts.announcer.run,
        parts.membership.run,
    ):
        await work.start(service)
    work.start_soon(node.watching)
    work.start_soon(node.counting)
    for reference in (*node.config.models.serve, *node.wishes.all()):
        parts.residency.add(reference)


async def _drain(parts: _Parts) -> None:
    """Say that we leave while open tasks come to their end; after the deadline they are cut."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.announcer.leave, LEAVE_SECONDS)
        nursery.start_soon(parts.provider.drain, DRAIN_SECONDS)
