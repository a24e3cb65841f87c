"""Whole nodes of the task room on the in-memory network: real dispatcher, provider, residency and state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from octonode.config import TasksConfig
from octonode.engines.contract import LoadRequest
from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.ids import AGENT_PROTOCOL, PeerId
from octonode.protocol.announcement import Announcement, Serving
from octonode.state import State
from octonode.tasks.dispatcher import Answered, Ask, AskEvent, Attempt, Dispatcher, Pieces
from octonode.tasks.pricing import FREE, PriceList, announced_prices
from octonode.tasks.provider import Provider
from octonode.tasks.residency import FetchProgress, Residency, ResolvedModel
from octonode.tasks.room import Room
from octonode.tasks.slots import EngineSlots
from octonode.testing.engine import TwinEngines
from octonode.testing.network import MemoryNetwork

ROOT = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
EPOCH_MS = 1_800_000_000_000
QUESTION = ({"role": "user", "content": "where does the river go"},)


def now_ms() -> int:
    return EPOCH_MS + int(trio.current_time() * 1000)


def ask(**changes: object) -> Ask:
    return replace(Ask(ROOT, QUESTION, temperature=0.0), **changes)  # type: ignore[arg-type]


class Source:
    """Models that are files at once, or after failures and a download."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.failures: list[OctonodeError] = []
        self.resolved: list[str] = []
        self.times: list[float] = []
        """Loop times of the tries to resolve."""
        self.fetch_seconds = 0.0
        self.here: set[str] = set()

    async def resolve(self, reference: str) -> ResolvedModel:
        self.resolved.append(reference)
        self.times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.failures:
            raise self.failures.pop(0)
        return ResolvedModel(reference, "scripted", manifest="bafymanifest", size_bytes=1000)

    def path(self, root: str) -> Path | None:
        return self._directory / root if root in self.here else None

    async def fetch(self, root: str, progress: FetchProgress) -> None:
        for done in range(0, 1001, 100):
            progress(done, 1000)
            await trio.sleep(self.fetch_seconds / 10)
        if self.failures:
            raise self.failures.pop(0)
        self.here.add(root)


class Book:
    """What a node knows of providers at once, and what a look-up in the network would add."""

    def __init__(self) -> None:
        self.at_hand: list[Announcement] = []
        self.in_network: list[Announcement] = []
        self.finds = 0

    def known(self, root: str) -> Sequence[Announcement]:
        return self.at_hand

    async def find(self, root: str) -> Sequence[Announcement]:
        self.finds += 1
        await trio.lowlevel.checkpoint()
        return self.in_network


class Door:
    """Access with a switch."""

    policy = "token"

    def __init__(self) -> None:
        self.token = ""

    def allows(self, peer_id: PeerId, token: str) -> bool:
        return token == self.token

    def known(self, peer_id: PeerId) -> bool:
        return True


class Node:
    room: Room | None = None
    """Of all nodes that are built; None: memory is nobody's concern."""

    def __init__(
        self,
        net: MemoryNetwork,
        number: int,
        home: Path,
        settings: TasksConfig,
        engines: Any = None,
        prices: PriceList = FREE,
    ) -> None:
        self.network = net
        self.key = NodeKey(bytes([number]) * 32)
        self.peer = self.key.peer_id
        self.net = net.node(self.peer)
        self.host = self.net.host
        self.state = State(home / f"state{number}.sqlite", receipts_max=1000)
        self.engines = engines or TwinEngines()
        self.source = Source(home)
        self.book = Book()
        self.door = Door()
        self.prices = prices
        self.slots = EngineSlots(settings.queue_max, batch_seconds=settings.batch_seconds)
        self.residency = Residency(
            source=self.source,
            engines=self.engines,
            load_request=lambda model, path, folder: LoadRequest("scripted", None, model.root, options=self.options),
            room=self.room,
        )
        common = {"signer": self.key, "settings": settings, "resident": self.residency, "slots": self.slots}
        kept = {"receipts": self.state, "tasks": self.state, "now_ms": now_ms}
        self.provider = Provider(access=self.door, prices=prices, **common, **kept)  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(
            host=self.host,
            providers=self.book,
            token_for=lambda peer: self.shows,
            **common,
            **kept,  # type: ignore[arg-type]
        )
        self.shows = ""
        self.options: dict[str, str | int | float | bool] = {}
        """Of the engine, at its next load."""

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.state.run)
        await nursery.start(self.net.run)
        for service in (self.residency, self.provider, self.dispatcher):
            await nursery.start(service.run)
        self.host.handle(AGENT_PROTOCOL, self.provider.handle)

    async def serve(self, root: str = ROOT) -> Any:
        """The loaded engine: a `TwinEngine`, unless the node was given other engines."""
        self.source.here.add(root)
        self.residency.add(root)
        while self.residency.engine(root) is None:
            await self.residency.wait_changed(self.residency.changes)
        return self.residency.engine(root)

    def announcement(self, **changes: object) -> Announcement:
        served: dict[str, object] = {"context_tokens": 2048, "parallel": 4, **announced_prices(self.prices), **changes}
        serving = Serving(ROOT, **served)  # type: ignore[arg-type]
        return Announcement(self.peer, 1, now_ms(), now_ms() + 3_600_000, serving=(serving,))


@asynccontextmanager
async def nodes(
    home: Path,
    count: int,
    settings: TasksConfig | None = None,
    engines: Sequence[Any] = (),
    prices: PriceList = FREE,
) -> AsyncIterator[list[Node]]:
    """`count` running nodes; the first knows the way to all others and has an announcement of none yet.

    `engines` are those of the first nodes, in-process twins for the rest.
    """
    net = MemoryNetwork()
    given: list[Any] = [*engines, *[None] * count]
    chosen = settings or TasksConfig()
    built = [Node(net, number + 1, home, chosen, given[number], prices) for number in range(count)]
    async with trio.open_nursery() as nursery:
        for node in built:
            await node.start(nursery)
        for other in built[1:]:
            await built[0].host.connect(other.host.addresses[0])
        yield built
        nursery.cancel_scope.cancel()


async def events_of(node: Node, question: Ask, look: Callable[[AskEvent], None] = lambda event: None) -> list[AskEvent]:
    """All events of a question; `look` sees each at once."""
    seen: list[AskEvent] = []
    async with node.dispatcher.ask(question) as events:
        async for event in events:
            seen.append(event)
            look(event)
    return seen


def text_of(events: Sequence[AskEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Pieces))


def providers_of(events: Sequence[AskEvent]) -> list[PeerId]:
    return [event.provider for event in events if isinstance(event, Attempt)]


def answer_of(events: Sequence[AskEvent]) -> Answered:
    last = events[-1]
    assert isinstance(last, Answered)
    return last
