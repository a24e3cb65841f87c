"""What a gossip message costs four nodes, against the same four on the library alone with its own defaults."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from scripts.bench.nodes import START_SECONDS
from scripts.bench.rows import Goal, Row, median

WINDOWS = 3
WINDOW_SECONDS_MAX = 60.0

CPU = Goal(
    "gossip_cpu_ratio",
    "ratio",
    "<=",
    0.35,
    "the library alone with its own defaults; CPU a message of 4 nodes in a star, 208 bytes, 20/s for 5 s, in turn",
)
GOALS = (CPU,)


class Star:
    """A process of `gossip_nodes`, which measures when it is told to."""

    def __init__(self, kind: str, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._kind = kind
        self._to, self._from = process.stdin, process.stdout

    async def line(self, timeout_seconds: float) -> str:
        data = b""
        with trio.fail_after(timeout_seconds):
            while not data.endswith(b"\n"):
                piece = await self._from.receive_some()
                if not piece:
                    raise RuntimeError(f"the star of {self._kind} has ended; see above")
                data += piece
        return data.decode().strip()

    async def window(self) -> float:
        """CPU milliseconds a message."""
        await self._to.send_all(b"\n")
        return float(await self.line(WINDOW_SECONDS_MAX))


@asynccontextmanager
async def star(kind: str) -> AsyncIterator[Star]:
    command = [sys.executable, "-m", "scripts.bench.gossip_nodes", kind]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        running = Star(kind, process)
        await running.line(START_SECONDS)
        yield running
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def measure(folder: Path) -> list[Row]:
    async with star("stock") as stock, star("octonode") as ours:
        costs: dict[Star, list[float]] = {stock: [], ours: []}
        for _ in range(WINDOWS):
            for each, taken in costs.items():
                taken.append(await each.window())
    stock_ms, our_ms = median(costs[stock]), median(costs[ours])
    print(f"gossip: {our_ms:.2f} ms a message, the library alone {stock_ms:.2f} ms", file=sys.stderr)
    return [CPU.row(our_ms / stock_ms, WINDOWS)]
