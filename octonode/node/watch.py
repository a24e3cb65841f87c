"""Watches the parts and tells: events for who looks on, `changed` for the announcer, gauges for the metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import trio

from octonode.config import Config
from octonode.engines.supervisor import Supervisor
from octonode.hardware.probe import probe
from octonode.ids import PeerId
from octonode.metrics import Metrics
from octonode.network.clock import wall_clock_ms
from octonode.network.host import Host
from octonode.network.peerbook import Peerbook
from octonode.node.events import Events
from octonode.node.gpus import Gpus
from octonode.node.view import View
from octonode.tasks.residency import ModelStatus, Residency
from octonode.tasks.slots import EngineSlots

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.25
HARDWARE_EVERY_SECONDS = 15.0
GPUS_EVERY_SECONDS = 2.0
"""Where there are any: how often their load, memory, temperature and power are read."""


async def watch(
    *,
    config: Config,
    host: Host,
    peerbook: Peerbook,
    residency: Residency,
    supervisor: Supervisor,
    gpus: Gpus,
    slots: EngineSlots,
    view: View,
    events: Events,
    metrics: Metrics,
    changed: Callable[[], None],
) -> None:
    """Until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_models, residency, events, changed)
        nursery.start_soon(_workers, supervisor, events, metrics, changed)
        nursery.start_soon(_peers, host, peerbook, slots, events, metrics)
        nursery.start_soon(_hardware, config.home, view, changed)
        nursery.start_soon(_gpus, gpus, supervisor, view, metrics)


async def _models(residency: Residency, events: Events, changed: Callable[[], None]) -> None:
    shown: dict[str, ModelStatus] = {}
    seen = -1
    while True:
        if residency.changes == seen:
            await residency.wait_changed(seen)
        seen = residency.changes
        for status in residency.status():
            if shown.get(status.reference) == status:
                continue
            shown[status.reference] = status
            events.emit(
                "model",
                reference=status.reference,
                root=status.model.root if status.model else "",
                state=status.state,
                done_bytes=status.done_bytes,
                total_bytes=status.total_bytes,
                reason=status.reason,
                code=status.code,
            )
        changed()


async def _workers(supervisor: Supervisor, events: Events, metrics: Metrics, changed: Callable[[], None]) -> None:
    states: dict[str, tuple[str, int]] = {}
    seen = -1
    while True:
        if supervisor.changes == seen:
            await supervisor.wait_changed(seen)
        seen = supervisor.changes
        workers = supervisor.status()
        for worker in workers:
            state, crashes = states.get(worker.model_root, ("", 0))
            if (worker.state, worker.crashes) == (state, crashes):
                continue
            if worker.crashes > crashes:
                metrics.engine_crashes.labels(worker.engine).inc(worker.crashes - crashes)
            states[worker.model_root] = (worker.state, worker.crashes)
            events.emit(
                "worker",
                root=worker.model_root,
                engine=worker.engine,
                state=worker.state,
                pid=worker.pid,
                reason=worker.reason,
            )
        ready = [worker for worker in workers if worker.state == "ready"]
        metrics.models_loaded.set(len(ready))
        metrics.isolation((worker.engine, worker.isolation) for worker in ready)
        changed()


async def _peers(host: Host, peerbook: Peerbook, slots: EngineSlots, events: Events, metrics: Metrics) -> None:
    before: frozenset[PeerId] = frozenset()
    late_at = trio.current_time()
    while True:
        now = host.connected
        for peer_id in sorted(now - before):
            events.emit("peer_connected", peer_id=peer_id)
        for peer_id in sorted(before - now):
            events.emit("peer_lost", peer_id=peer_id)
        before = now
        metrics.peers.labels("connected").set(len(now))
        metrics.peers.labels("known").set(len(peerbook.peers(wall_clock_ms())))
        metrics.tasks_open.labels("running").set(slots.running)
        metrics.tasks_open.labels("queued").set(slots.waiting)
        late_at = trio.current_time() + LOOK_EVERY_SECONDS
        await trio.sleep(LOOK_EVERY_SECONDS)
        metrics.loop_lag_seconds.set(max(0.0, trio.current_time() - late_at))


async def _gpus(gpus: Gpus, supervisor: Supervisor, view: View, metrics: Metrics) -> None:
    """A reading after the other, never two at a time: a driver that needs long is asked less often."""
    await view.hardware_known.wait()
    while True:
        if view.hardware is not None and view.hardware.gpus:
            reading = await gpus.read()
            view.gpus = reading.live
            metrics.gpus(reading.live)
            supervisor.note_gpu_memory(reading.process_bytes)
        await trio.sleep(GPUS_EVERY_SECONDS)


async def _hardware(home: Path, view: View, changed: Callable[[], None]) -> None:
    """The probe may need seconds to wake a card, so the node starts without it."""
    while True:
        view.hardware = await trio.to_thread.run_sync(probe, home)
        view.hardware_known.set()
        for problem in view.hardware.problems:
            log.warning("%s", problem)
        changed()
        await trio.sleep(HARDWARE_EVERY_SECONDS)
