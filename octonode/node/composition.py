"""Every part of a node, built once and handed to those who need it; and the nursery tree they run in. No logic."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from octonode.api.app import make_app
from octonode.api.auth import load_or_create_token
from octonode.api.connection import ConnectionLimits
from octonode.api.ports import Ports
from octonode.api.schema import to_json
from octonode.api.server import Bound, serve
from octonode.config import Config, split_host_port
from octonode.engines.select import require_engine
from octonode.identity import NodeKey
from octonode.ids import AGENT_PROTOCOL
from octonode.ipfs.bitswap import Bitswap
from octonode.ipfs.gateway import Gateway, GatewayLimits, Pace
from octonode.metrics import Metrics
from octonode.models.sources.bitswap import BitswapSource
from octonode.models.store import ModelStore
from octonode.node.arrivals import Arrivals, build_arrivals
from octonode.node.bridges import Bridges
from octonode.node.cache_room import Keeping, build_keeping
from octonode.node.counting import count
from octonode.node.doctor import Doctor
from octonode.node.engines import Engines
from octonode.node.events import Events
from octonode.node.fetch_verbs import FetchVerbs
from octonode.node.fetches import Fetches
from octonode.node.fitting import Fitting
from octonode.node.job_room import JobRoom, build_jobs
from octonode.node.lock import daemon_file
from octonode.node.measuring import Measurer
from octonode.node.models import Models
from octonode.node.peers import Peers
from octonode.node.quantizing_files import capability_of
from octonode.node.records import CountedLog
from octonode.node.rooms import (
    Holdings,
    Presence,
    Reach,
    build_bitswap,
    build_fetches,
    build_holdings,
    build_presence,
    build_reach,
)
from octonode.node.storage import Pins, Storage, to_serve
from octonode.node.storage_room import build_keeper, build_pins
from octonode.node.switching import Switcher, available_memory_bytes
from octonode.node.versions import Versions
from octonode.node.view import VERSION, View
from octonode.node.watch import watch
from octonode.tasks.dispatcher import Dispatcher
from octonode.tasks.pinning import SKILL
from octonode.tasks.pricing import price_list
from octonode.tasks.provider import Provider

DRAIN_SECONDS = 10.0
LEAVE_SECONDS = 2.0
HARDWARE_SECONDS = 2.0
"""The ready line waits so long for the tier; a card that sleeps may take longer."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is built and not running: `run` brings it to life."""

    config: Config
    key: NodeKey
    events: Events
    stopping: trio.Event
    """Set it to start the drain."""
    reach: Reach
    holdings: Holdings
    presence: Presence
    fetches: Fetches
    keeping: Keeping
    arrivals: Arrivals
    storage: Storage
    dispatcher: Dispatcher
    provider: Provider
    gateway: Gateway | None
    bitswap: Bitswap | None
    view: View
    app: Any
    jobs: JobRoom
    measurer: Measurer
    watching: Callable[[], Awaitable[None]]
    counting: Callable[[], Awaitable[None]]


def build(config: Config, key: NodeKey, *, events: Events, stopping: trio.Event) -> Node:
    """Raises ConfigError for settings and files that cannot be."""
    if config.node.role == "full":
        require_engine(config.engines.default)
    metrics = Metrics(VERSION)
    reach = build_reach(config, key)
    holdings = build_holdings(config, key, reach)
    host, peerbook, residency = reach.network.host, reach.peerbook, holdings.residency
    counted = CountedLog(holdings.state, metrics)
    view = View(
        config=config, host=host, peerbook=peerbook, supervisor=holdings.supervisor, residency=residency,
        shelf=holdings.shelf, slots=holdings.slots, log=counted, tokens=reach.tokens, events=events, stopping=stopping,
    )  # fmt: skip
    presence = build_presence(config, key, reach, facts=view.announced, manifests=holdings.shelf)
    holdings.resolver.connect(presence.discovery)
    holdings.names.connect(host, reach.network.values, reach.chance)
    pace = Pace(config.gateway.upload_bytes_per_second_max)
    bitswap = build_bitswap(config, reach, holdings, pace, metrics)
    fetches, evictor = build_fetches(
        config, key, reach, holdings, presence, over_bitswap=partial(BitswapSource, bitswap) if bitswap else None,
        events=events, metrics=metrics,
    )  # fmt: skip
    holdings.source.connect(fetches, presence.announcer.changed)
    keeping = build_keeping(config, holdings, fetches, evictor, view, events)
    storage = build_keeper(config, key, reach, holdings, presence, fetches, view)
    arrivals = build_arrivals(config, key, holdings, evictor.make_room)
    dispatcher = Dispatcher(
        host=host, signer=key, settings=config.tasks, providers=presence.discovery, resident=residency,
        slots=holdings.slots, receipts=holdings.state, tasks=counted, token_for=reach.access.show,
    )  # fmt: skip
    provider = Provider(
        signer=key, settings=config.tasks, resident=residency, slots=holdings.slots, access=reach.access,
        receipts=holdings.state, tasks=counted, skills={SKILL: storage.pinning}, prices=price_list(config.pricing),
    )  # fmt: skip
    host.handle(AGENT_PROTOCOL, provider.handle)
    doctor = Doctor(
        config, host, presence.hello, peerbook, presence.membership, presence.announcer, holdings.supervisor,
        reach.chance,
    )  # fmt: skip
    view.examine_with(doctor.examine)
    measurer = Measurer(
        residency=residency, slots=holdings.slots, values=holdings.state, changed=presence.announcer.changed,
        seconds_max=config.engines.measure_seconds,
    )  # fmt: skip
    view.measured_by(measurer)
    watching = partial(
        watch, config=config, host=host, peerbook=peerbook, residency=residency, supervisor=holdings.supervisor,
        gpus=holdings.gpus, slots=holdings.slots, view=view, events=events, metrics=metrics,
        changed=presence.announcer.changed,
    )  # fmt: skip
    engines = Engines(
        settings=config.engines, supervisor=holdings.supervisor, residency=residency, resolver=holdings.resolver,
        measurer=measurer, hardware=lambda: view.hardware,
    )  # fmt: skip
    pins = build_pins(config, key, reach, holdings, storage, counted)
    jobs = build_jobs(config, key, holdings.state, dispatcher, events)
    ports = _ports(
        config, key, reach, holdings, presence, fetches, keeping, arrivals, pins, engines, view, dispatcher, jobs
    )
    app = make_app(ports, config=config.api, token=load_or_create_token(config.home), metrics=metrics.registry)
    gateway = _gateway(config, holdings.store, pace, metrics)
    counting = _counting(metrics, reach, presence, dispatcher, bitswap)
    return Node(
        config, key, events, stopping, reach, holdings, presence, fetches, keeping, arrivals, storage,
        dispatcher, provider, gateway, bitswap, view, app, jobs, measurer, watching, counting,
    )  # fmt: skip


def _ports(
    config: Config,
    key: NodeKey,
    reach: Reach,
    holdings: Holdings,
    presence: Presence,
    fetches: Fetches,
    keeping: Keeping,
    arrivals: Arrivals,
    pins: Pins,
    engines: Engines,
    view: View,
    dispatcher: Dispatcher,
    jobs: JobRoom,
) -> Ports:
    models = Models(
        own=key.peer_id, library=holdings.library, shelf=holdings.shelf, resolver=holdings.resolver,
        source=holdings.source, residency=holdings.residency, announcer=presence.announcer, peerbook=reach.peerbook,
        wishes=holdings.wishes, fetches=fetches, checks=keeping.checks,
        runs_models=config.node.role == "full",
    )  # fmt: skip
    arrivals.uploads.connect(models)
    arrivals.quantizing.connect(models, lambda: capability_of(view.hardware))
    peers = Peers(
        home=config.home, host=reach.network.host, peerbook=reach.peerbook, membership=presence.membership,
        access=reach.access, tokens=reach.tokens,
    )  # fmt: skip
    return Ports(
        asking=dispatcher, models=models, node=view, peers=peers, records=holdings.state,
        versions=_versions(key, holdings, models), pins=pins, uploads=arrivals.uploads,
        bridges=Bridges(holdings.library, models, kubo_rpc=config.models.kubo_rpc),
        quantizing=arrivals.quantizing, engines=engines, cache=keeping.cache, jobs=jobs.jobs,
        fetches=FetchVerbs(fetches, holdings.library.catalogue, holdings.resolver),
        fitting=Fitting(
            home=config.home, library=holdings.library, shelf=holdings.shelf, resolver=holdings.resolver,
            gate=holdings.gate, settings=config.engines,
        ),
    )  # fmt: skip


def _versions(key: NodeKey, holdings: Holdings, models: Models) -> Versions:
    switcher = Switcher(models, holdings.residency, holdings.wishes, available_bytes=available_memory_bytes)
    return Versions(
        own=key.peer_id, library=holdings.library, shelf=holdings.shelf, resolver=holdings.resolver,
        names=holdings.names, source=holdings.source, models=models, switcher=switcher,
    )  # fmt: skip


def _counting(
    metrics: Metrics, reach: Reach, presence: Presence, dispatcher: Dispatcher, bitswap: Bitswap | None
) -> Callable[[], Awaitable[None]]:
    pubsub, intake, fanout = reach.network.pubsub, reach.intake, presence.fanout
    return partial(
        count,
        (
            (lambda: {"": dispatcher.moved_on}, lambda _, more: metrics.next_candidates.inc(more)),
            (lambda: intake.counts, metrics.protocol_error),
            (lambda: fanout.counts, metrics.protocol_error),
            (lambda: bitswap.counts if bitswap else {}, metrics.protocol_error),
            (lambda: {"queue full": pubsub.dropped}, lambda why, more: metrics.gossip_dropped.labels(why).inc(more)),
        ),
    )


def _gateway(config: Config, store: ModelStore, pace: Pace, metrics: Metrics) -> Gateway | None:
    if not config.gateway.enabled:
        return None
    limits = GatewayLimits(
        connections_max=config.gateway.connections_max,
        upload_bytes_per_second_max=config.gateway.upload_bytes_per_second_max,
    )
    served = metrics.block_bytes.labels("served")
    return Gateway(
        config.gateway.listen, store, limits, on_sent=lambda _, size_bytes: served.inc(size_bytes), pace=pace
    )


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
                with trio.move_on_after(HARDWARE_SECONDS):
                    await node.view.hardware_known.wait()
                on_ready(to_json(await node.view.facts()))
                await node.stopping.wait()
                node.events.emit("leaving")
                await _drain(node)
                work.cancel_scope.cancel()
        node.holdings.store.close()
        faces_end.set()


async def _start(node: Node, work: trio.Nursery) -> None:
    """In order of need: what keeps records, what runs models, what reaches peers, and then the work itself."""
    await node.holdings.source.refresh()
    if node.bitswap is not None:
        await work.start(node.bitswap.run)  # before the first peer can ask
    for service in (node.holdings.state.run, node.holdings.supervisor.run, node.reach.network.run):
        await work.start(service)
    if node.gateway is not None:
        await work.start(node.gateway.run)
        host, _ = split_host_port(node.config.gateway.listen, "gateway.listen")
        node.view.gateway_port = node.gateway.port
        node.view.gateway_listen = f"{host}:{node.gateway.port}"
    for service in (node.fetches.run, node.dispatcher.run, node.provider.run, node.holdings.residency.run):
        await work.start(service)
    for service in (node.presence.fanout.run, node.presence.announcer.run, node.presence.membership.run):
        await work.start(service)
    await work.start(node.holdings.names.run)
    await work.start(node.keeping.cache.run)
    await work.start(node.storage.keeping.run)
    for service in (node.jobs.jobs.run, node.jobs.webhooks.run):
        await work.start(service)
    work.start_soon(node.measurer.run)
    work.start_soon(node.watching)
    work.start_soon(node.arrivals.run)
    work.start_soon(node.counting)
    for reference in to_serve(node.config, node.holdings.wishes.all()):
        node.holdings.residency.add(reference)


async def _drain(node: Node) -> None:
    """Say that we leave while open tasks come to their end; after the deadline they are cut."""
    node.jobs.jobs.leaving = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.presence.announcer.leave, LEAVE_SECONDS)
        nursery.start_soon(node.provider.drain, DRAIN_SECONDS)
