"""Nodes that keep models for others, whole but for the models: those come from a twin of a disk and of a network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.config import TasksConfig
from octonode.errors import OctonodeError, VerificationFailed
from octonode.identity import NodeKey
from octonode.ids import AGENT_PROTOCOL, PeerId
from octonode.protocol.exchange import Exchange
from octonode.protocol.pins import PinFacts, PinRequest
from octonode.tasks.keeping import Keeping
from octonode.tasks.pin_asking import PinAnswer, PinAsker
from octonode.tasks.pin_ports import HeldFacts
from octonode.tasks.pinning import SKILL, Pinning
from octonode.tasks.pins import Pin, Quotas, Released
from octonode.tasks.provider import Provider
from octonode.tasks.slots import new_id
from tests.tasks.callers import Caller
from tests.tasks.nodes import Node, nodes, now_ms

ROOTS = tuple(f"bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzd{letter}" for letter in "abcdef")
SIZE = 1000


class Disk:
    """A `Keeper` whose models come from a network with `fetch_seconds` and `faults`."""

    def __init__(self) -> None:
        self.models: dict[str, HeldFacts] = {}
        self.sizes: dict[str, int] = {}
        self.free_bytes = 10**9
        self.fetch_seconds = 0.0
        self.faults: list[OctonodeError] = []
        self.fetched: list[str] = []
        self.removed: list[str] = []
        self.manifests: dict[str, bytes] = {}
        self.holders: dict[str, int] = {}
        self.in_use: set[str] = set()

    def held(self, root: str) -> HeldFacts | None:
        return self.models.get(root)

    def others(self, root: str) -> int:
        return self.holders.get(root, 0)

    async def disk_free_bytes(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.free_bytes

    async def check(self, root: str, manifest: bytes, asker: PeerId) -> None:
        if manifest and manifest != b"manifest of " + root.encode():
            raise VerificationFailed("that is the manifest of another model", code="BAD_MESSAGE")

    async def fetch(self, root: str, manifest: bytes, progress: Callable[[int, int], None]) -> None:
        self.fetched.append(root)
        size = self.sizes.get(root, SIZE)
        for tenth in range(11):
            progress(size * tenth // 10, size)
            await trio.sleep(self.fetch_seconds / 11)
            self.models[root] = HeldFacts(size, size * tenth // 10, False, False)
            if self.faults and tenth == 5:
                raise self.faults.pop(0)
        self.models[root] = HeldFacts(size, size, True, False)
        self.manifests[root] = manifest

    async def keep(self, root: str, pinned: bool) -> None:
        await trio.lowlevel.checkpoint()
        if root in self.models:
            self.models[root] = self.models[root].__class__(*self._parts(root), pinned)

    def _parts(self, root: str) -> tuple[int, int, bool]:
        held = self.models[root]
        return held.size_bytes, held.have_bytes, held.complete

    async def remove(self, root: str) -> None:
        if root in self.in_use:
            raise OctonodeError("it is being served", code="FORBIDDEN")
        assert not self.models[root].pinned
        del self.models[root]
        self.removed.append(root)


class Rows:
    """A `PinStore` in memory that outlives the node."""

    def __init__(self) -> None:
        self.pins: dict[tuple[str, PeerId], Pin] = {}
        self.released: dict[str, Released] = {}
        self.manifests: dict[str, bytes] = {}
        self.full = False

    async def load(self) -> tuple[Sequence[Pin], Sequence[Released]]:
        return tuple(self.pins.values()), tuple(self.released.values())

    async def _write(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.full:
            raise OctonodeError("state.sqlite cannot be written", code="DISK_FULL")

    async def save(self, pin: Pin, manifest: bytes = b"") -> None:
        await self._write()
        self.pins[pin.root, pin.asker] = pin
        self.released.pop(pin.root, None)
        if manifest:
            self.manifests[pin.root] = manifest

    async def drop(self, pin: Pin, released: Released | None) -> None:
        await self._write()
        del self.pins[pin.root, pin.asker]
        if released is not None:
            self.released[pin.root] = released

    async def forget(self, root: str) -> None:
        self.released.pop(root, None)

    async def manifest(self, root: str) -> bytes:
        return self.manifests.get(root, b"")


class Keeper:
    """The keeping node, which can be ended and started again on the same disk and rows."""

    def __init__(self, node: Node, allowed: Sequence[PeerId], quotas: Quotas) -> None:
        self.node = node
        self.disk, self.rows = Disk(), Rows()
        self.allowed = allowed
        self.quotas = quotas
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        node = self.node
        self.scope = trio.CancelScope()
        with self.scope:
            async with trio.open_nursery() as nursery:
                self.keeping = Keeping(
                    own=node.peer, quotas=self.quotas, keeper=self.disk, store=self.rows, now_ms=now_ms
                )
                self.pinning = Pinning(self.keeping, own=node.peer, allowed=self.allowed)
                self.provider = Provider(
                    signer=node.key, settings=TasksConfig(), resident=node.residency, slots=node.slots,
                    access=node.door, receipts=node.state, tasks=node.state, skills={SKILL: self.pinning},
                    now_ms=now_ms,
                )  # fmt: skip
                await nursery.start(self.keeping.run)
                await nursery.start(self.provider.run)
                node.host.handle(AGENT_PROTOCOL, self.provider.handle)
                task_status.started()

    async def ask(self, verb: Any, root: str = "", **fields: Any) -> Any:
        """As its owner."""
        return await self.pinning.ask(PinRequest(verb, root, **fields), self.node.peer, lambda done, total: None)


class Asking:
    def __init__(self, node: Node, keeper: Keeper) -> None:
        self.node = node
        self.keeper = keeper
        self.asker = PinAsker(
            host=node.host, signer=node.key, settings=TasksConfig(), token_for=lambda peer: "", receipts=node.state,
            tasks=node.state, now_ms=now_ms,
        )  # fmt: skip
        self.progress: list[tuple[int, int]] = []

    async def __call__(self, verb: Any, root: str = "", **fields: Any) -> PinAnswer:
        return await self.asker.ask(
            self.keeper.node.peer, PinRequest(verb, root, **fields), lambda *each: self.progress.append(each)
        )

    async def refused(self, verb: Any, root: str = "", **fields: Any) -> str:
        with pytest.raises(OctonodeError) as caught:
            await self(verb, root, **fields)
        return caught.value.code


@asynccontextmanager
async def three(home: Path, **quotas: int) -> AsyncIterator[tuple[Asking, Asking, Keeper, trio.Nursery]]:
    """Two askers, of whom both are listed, and a keeper."""
    async with nodes(home, 3) as (anna, bert, keeping), trio.open_nursery() as nursery:
        keeping.door.token = "a token that neither has"
        keeper = Keeper(keeping, (anna.peer, bert.peer), Quotas(**quotas))
        await bert.host.connect(keeping.host.addresses[0])
        await nursery.start(keeper.run)
        yield Asking(anna, keeper), Asking(bert, keeper), keeper, nursery
        nursery.cancel_scope.cancel()


async def by_hand(asking: Asking, key: NodeKey | None = None) -> Caller:
    keeper = asking.keeper.node.peer
    stream = await asking.node.host.open(keeper, AGENT_PROTOCOL)
    return Caller(stream, Exchange("asker", key or asking.node.key, keeper, new_id=new_id))


def only(answer: PinAnswer) -> PinFacts:
    (pin,) = answer.result.pins
    return pin
