"""What the node says of itself: to its peers in announcements, to its owner over HTTP."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any

import trio

from octonode.api.schema import Degraded, Finding, NodeFacts, TaskCounts
from octonode.api.schema.facts import GpuFacts, StorageFacts, WorkerFacts
from octonode.config import Config
from octonode.engines.measuring import Figures
from octonode.engines.select import available_engines
from octonode.engines.supervisor import Supervisor, WorkerStatus
from octonode.errors import OctonodeError
from octonode.hardware.facts import GpuLive, Hardware, summary
from octonode.network import own_announcement
from octonode.network.access import TokenFiles
from octonode.network.clock import wall_clock_ms
from octonode.network.host import Host
from octonode.network.joinline import JoinLine
from octonode.network.joinline import encode as encode_join_line
from octonode.network.peerbook import Peerbook
from octonode.node.events import Events
from octonode.node.measuring import Measurer
from octonode.node.records import CountedLog
from octonode.node.shelf import Shelf
from octonode.node.storage import Storage
from octonode.protocol.announcement import Holding, Serving, StorageRoom
from octonode.tasks.pricing import announced_prices, price_list
from octonode.tasks.residency import Residency
from octonode.tasks.slots import EngineSlots

VERSION = version("octonode")


class View:
    """Reads of every part and changes none. `api.ports.Node`, and the facts of the announcer."""

    def __init__(
        self,
        *,
        config: Config,
        host: Host,
        peerbook: Peerbook,
        supervisor: Supervisor,
        residency: Residency,
        shelf: Shelf,
        slots: EngineSlots,
        log: CountedLog,
        tokens: TokenFiles,
        events: Events,
        stopping: trio.Event,
    ) -> None:
        self._config = config
        self._host = host
        self._peerbook = peerbook
        self._supervisor = supervisor
        self._residency = residency
        self._shelf = shelf
        self._slots = slots
        self._log = log
        self._tokens = tokens
        self._events = events
        self._stopping = stopping
        self._started_at_ms = wall_clock_ms()
        self._examine: Callable[[], Any] | None = None
        self._measurer: Measurer | None = None
        self._prices = announced_prices(price_list(config.pricing))
        self.hardware: Hardware | None = None
        """Probed in a thread after the start; None until then."""
        self.hardware_known = trio.Event()
        self.gpus: tuple[GpuLive, ...] = ()
        """As last read."""
        self.api = ""
        self.gateway_port = 0
        self.gateway_listen = ""
        self.storage: Storage | None = None
        """What is kept for others; set once it is built."""
        self.troubles: dict[str, str] = {}
        """Parts that do not work now: what is wrong and what to do, in a line."""

    # For the announcer.

    def announced(self) -> own_announcement.NodeFacts:
        return own_announcement.NodeFacts(
            tier=self.hardware.tier.name if self.hardware else "edge",
            hardware={
                name: plain(value) if isinstance(value, str) else value
                for name, value in (summary(self.hardware) if self.hardware else {}).items()
            },
            engines=tuple(name for name in self._engines() if name != "scripted"),
            serving=tuple(self._serving()),
            holding=tuple(
                Holding(
                    root=each.root, manifest=each.manifest, name=each.name, version=each.version, complete=each.complete
                )
                for each in self._shelf.public()
            ),
            gateway_port=self.gateway_port,
            access=self._config.network.access,
            region=self._config.network.region,
            agent_version=f"octonode/{VERSION}",
            role=self._config.node.role,
            storage=self._room(),
        )

    def _engines(self) -> tuple[str, ...]:
        return tuple(available_engines(self._config.engines.pythons)) if self._config.node.role == "full" else ()

    def _room(self) -> StorageRoom | None:
        """For models that peers pin here; None where nobody may."""
        return self.storage.room(self.hardware.disk_free_bytes if self.hardware else 0) if self.storage else None

    def _serving(self) -> Sequence[Serving]:
        """The models that take tasks here: those that are loaded, and those that were and come back when asked."""
        found = []
        for status in self._residency.status():
            model = status.model
            engine = self._residency.engine(model.root) if model else None
            before = status.before if status.state in ("loading", "standby") else None
            facts = engine.facts if engine else before.facts if before else None
            if model is None or facts is None:
                continue
            measured = self._slots.measured.of(model.root)
            found.append(
                Serving(
                    root=model.root,
                    manifest=model.manifest,
                    name=model.name,
                    version=model.version,
                    context_tokens=facts.context_tokens,
                    parallel=facts.parallel,
                    running=self._slots.taken(model.root),
                    tokens_per_second=round(measured.tokens_per_second, 1),
                    first_token_ms=round(measured.first_token_ms),
                    **_announced(self._measurer.of(model.root) if self._measurer else None),
                    quantization=plain(facts.quantization),
                    loads_in_ms=0 if engine or before is None else max(1, round(before.seconds * 1000)),
                    **self._prices,
                    skills=facts.skills,
                )
            )
        return found

    # For the HTTP faces.

    async def facts(self) -> NodeFacts:
        now_ms = wall_clock_ms()
        loaded = [each for each in self._serving() if not each.loads_in_ms]
        return NodeFacts(
            peer_id=self._host.peer_id,
            version=VERSION,
            state="leaving" if self._stopping.is_set() else "active" if self._host.addresses else "starting",
            addresses=self._host.addresses,
            api=self.api,
            gateway=self.gateway_listen,
            join=self.join_line(),
            pid=os.getpid(),
            started_at_ms=self._started_at_ms,
            tier=self.hardware.tier.name if self.hardware else "",
            hardware=summary(self.hardware) if self.hardware else {},
            engines=self._engines(),
            role=self._config.node.role,
            storage=_shown_room(self._room(), self.storage),
            access=self._config.network.access,
            region=self._config.network.region,
            muxer=self._host.muxer,
            peers_connected=len(self._host.connected),
            peers_known=len(self._peerbook.peers(now_ms)),
            serving=tuple(each.name or f"cid:{each.root}" for each in loaded),
            unsigned=tuple(f"cid:{each.root}" for each in loaded if not each.manifest),
            tasks=TaskCounts(self._slots.running, self._slots.waiting, self._log.completed, self._log.failed),
            degraded=tuple(self.degraded()),
            gpus=tuple(_gpu(each) for each in self.gpus),
            workers=self._workers(),
        )

    def _workers(self) -> tuple[WorkerFacts, ...]:
        wanted = {each.model.root: each.reference for each in self._residency.status() if each.model}
        return tuple(_worker(each, wanted.get(each.model_root, "")) for each in self._supervisor.status())

    def measured_by(self, measurer: Measurer) -> None:
        self._measurer = measurer

    def join_line(self) -> str:
        """The line for friends; empty before we listen. Where access is open it carries no token."""
        addresses = tuple(self._config.network.announce_addresses) or reachable(self._host.addresses)
        if not addresses:
            return ""
        token = self._tokens.own() if self._config.network.access == "token" else ""
        return encode_join_line(JoinLine(self._host.peer_id, addresses[:8], token))

    def degraded(self) -> list[Degraded]:
        found = [Degraded(part, reason) for part, reason in self.troubles.items()]
        found += [
            Degraded(status.reference, f"{status.state}: {status.reason or 'not ready yet'}")
            for status in self._residency.status()
            if status.state not in ("serving", "standby")
        ]
        return found

    def unready(self) -> Sequence[str]:
        if self._stopping.is_set():
            return ["the node is stopping"]
        reasons = [] if self._host.addresses else ["the network is not up yet"]
        return [*reasons, *(f"{each.part}: {each.reason}" for each in self.degraded())]

    async def doctor(self) -> Sequence[Finding]:
        if self._examine is None:
            raise OctonodeError("the node is starting; ask again in a second", code="LEAVING", retry_after_seconds=1)
        findings: Sequence[Finding] = await self._examine()
        return findings

    def examine_with(self, examine: Callable[[], Any]) -> None:
        self._examine = examine

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Mapping[str, Any]]]:
        return self._events.subscribe()

    def stop(self) -> None:
        self._stopping.set()


def _gpu(live: GpuLive) -> GpuFacts:
    return GpuFacts(
        live.label,
        live.vendor,
        plain(live.name or ""),
        live.memory_bytes,
        live.memory_used_bytes,
        live.utilization_percent,
        live.temperature_celsius,
        live.power_watts,
    )


def _worker(status: WorkerStatus, reference: str) -> WorkerFacts:
    return WorkerFacts(
        status.model_root,
        status.engine,
        status.state,
        status.reason,
        status.pid,
        status.isolation,
        status.resident_bytes,
        status.gpu_bytes,
        status.devices,
        reference,
    )


def _shown_room(room: StorageRoom | None, storage: Storage | None) -> StorageFacts | None:
    if room is None or storage is None:
        return None
    return StorageFacts(room.total_bytes, room.used_bytes, room.free_bytes, pins=len(storage.keeping.book))


def _announced(figures: Figures | None) -> dict[str, Any]:
    """What is announced of self-measured figures, beside those that tasks go on measuring."""
    if figures is None:
        return {}
    together = max((each.per_second_together for each in figures.skills.values()), default=0.0)
    return {
        "first_token_long_ms": round(figures.first_token_long_ms),
        "long_tokens": figures.long_tokens,
        "tokens_per_second_together": round(figures.tokens_per_second_together, 1),
        "results_per_second": round(together, 2),
    }


def plain(text: str) -> str:
    """What an announcement takes of a text that a model file or a driver wrote: printable, at most 64 bytes."""
    return "".join(each for each in text if each.isprintable()).encode()[:64].decode(errors="ignore")


def reachable(addresses: Sequence[str]) -> tuple[str, ...]:
    """Listening addresses that mean something to another machine, public ones first, loopback for want of others."""
    from octonode.network.addresses import parse

    order = {"public": 0, "name": 0, "private": 1, "loopback": 2}
    ranked = sorted((order.get(parse(text).scope, 9), text) for text in addresses)
    best = [text for rank, text in ranked if rank < 2] or [text for rank, text in ranked if rank == 2]
    return tuple(best)
