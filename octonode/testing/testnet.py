"""A network of real daemons on this machine, each its own process and identity; node 0 is the others' bootstrap."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from octonode.client import AsyncClient
from octonode.models.formats import SCRIPTED_MAGIC
from octonode.testing.daemon import Daemon

NODES_MAX = 64
"""About 110 MB of memory a node."""
SERVING_TIMEOUT_SECONDS = 300.0
KILL_PERIOD_SECONDS = 10.0
RESTART_AFTER_SECONDS = 2.0


def write_scripted_model(path: Path, *, seed: int = 0, size_bytes: int = 3 * 1024 * 1024) -> Path:
    """A model file of the scripted format; its content, and so its CID, follows from `seed`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(SCRIPTED_MAGIC + random.Random(seed).randbytes(size_bytes - len(SCRIPTED_MAGIC)))
    return path


class EventLog:
    """All nodes' events in one NDJSON file, each with the node's name and the time it was seen."""

    def __init__(self, path: Path | None, show: Callable[[str], None] | None = None) -> None:
        self._file = path.open("a", encoding="utf-8") if path else None
        self._show = show

    def take(self, node: str, event: dict[str, Any]) -> None:
        line = json.dumps({"node": node, "seen_ms": int(time.time() * 1000), **event}, ensure_ascii=False)
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()
        if self._show:
            self._show(line)

    def close(self) -> None:
        if self._file:
            self._file.close()


@dataclass(slots=True)
class Testnet:
    """What a test network is made of. `run` starts it and keeps it until cancelled."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    directory: Path
    count: int
    flags: Sequence[str] = ()
    model: str = ""
    """Served by every node but the first. Of a `file:` node 1 is the publisher, and the others fetch it there."""
    kill_probability: float = 0.0
    """Chance of each node but the first to be killed with -9 in each period of 10 s; it is started again after 2 s."""
    seed: int = 0
    on_event: Callable[[str, dict[str, Any]], None] | None = None
    nodes: list[Daemon] = field(default_factory=list)

    async def run(self, *, task_status: trio.TaskStatus[list[Daemon]] = trio.TASK_STATUS_IGNORED) -> None:
        assert 1 <= self.count <= NODES_MAX
        async with trio.open_nursery() as nursery:
            try:
                await self._start_all(nursery)
                task_status.started(self.nodes)
                if self.kill_probability > 0:
                    nursery.start_soon(self._kill_some, nursery)
                await trio.sleep_forever()
            finally:
                await self._stop_all()

    async def _start_all(self, nursery: trio.Nursery) -> None:
        first = self._daemon(0)
        self.nodes.append(first)
        await first.start(nursery)
        for number in range(1, self.count):  # one after the other: imports of many at once starve a small machine
            node = self._daemon(number, "--bootstrap", first.address)
            self.nodes.append(node)
            await node.start(nursery)
            if self.model.startswith("file:"):
                self.model = await self._published(node)

    async def _published(self, node: Daemon) -> str:
        """The reference under which the others find what `node` serves."""
        with trio.fail_after(SERVING_TIMEOUT_SECONDS):
            served = await node.wait_for("model", state="serving")
        async with AsyncClient.from_home(node.home) as client:
            return (await client.model(f"cid:{served['root']}")).reference

    def _daemon(self, number: int, *flags: str) -> Daemon:
        serve = ("--model", self.model) if self.model and number > 0 else ()
        home = self.directory / f"node{number}"
        return Daemon(home, *flags, *serve, *self.flags, on_event=self.on_event)

    async def _kill_some(self, nursery: trio.Nursery) -> None:
        dice = random.Random(self.seed)
        while True:
            await trio.sleep(KILL_PERIOD_SECONDS)
            doomed = [node for node in self.nodes[1:] if dice.random() < self.kill_probability]
            for node in doomed:
                self._tell(node, "killed")
                node.kill()
                await node.wait()
            await trio.sleep(RESTART_AFTER_SECONDS)
            for node in doomed:
                await node.start(nursery)
                self._tell(node, "restarted")

    def _tell(self, node: Daemon, event: str) -> None:
        if self.on_event is not None:
            self.on_event(node.name, {"event": event})

    async def _stop_all(self) -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for node in self.nodes:
                    nursery.start_soon(node.stop)
