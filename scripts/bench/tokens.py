"""Tokens a second of a real model through a peer, against the same worker driven over frames by a bare trio parent."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from octonode.config import EnginesConfig
from octonode.engines import frames
from octonode.engines.channel import FrameChannel
from octonode.engines.contract import GenerateRequest
from octonode.engines.process import WorkerProcess
from octonode.engines.select import load_request
from scripts.bench.chat import ask
from scripts.bench.nodes import MODEL, START_SECONDS, pair
from scripts.bench.rows import Goal, Row, median

ROUNDS = 8
STREAMS = 8
TOKENS = 128
_AGAINST = "the same worker driven over frames by a bare trio parent, in turn; SmolLM2-135M Q4_1, 1 engine thread"

ONE = Goal("tokens_through_peer_1", "ratio", ">=", 0.97, f"{_AGAINST}, 1 stream")
EIGHT = Goal("tokens_through_peer_8", "ratio", ">=", 0.97, f"{_AGAINST}, {STREAMS} streams")
GOALS = (ONE, EIGHT)


@dataclass(slots=True)
class BareParent:
    """The least that can drive a worker: writes `Submit`, reads frames, counts."""

    channel: FrameChannel
    ends: dict[int, frames.EndFrame | frames.ErrorFrame] = field(default_factory=dict)
    loaded: trio.Event = field(default_factory=trio.Event)
    news: trio.Condition = field(default_factory=trio.Condition)
    next_id: int = 1

    async def read(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while (received := await self.channel.receive()) is not None:
                for frame in received:
                    if isinstance(frame, frames.Ready):
                        self.loaded.set()
                    elif isinstance(frame, frames.LoadFailed):
                        raise RuntimeError(frame.message)
                    elif isinstance(frame, frames.EndFrame | frames.ErrorFrame):
                        self.ends[frame.id] = frame
                        async with self.news:
                            self.news.notify_all()

    async def generate(self, prompt: str, max_tokens: int) -> int:
        """Tokens of one greedy answer."""
        id_, self.next_id = self.next_id, self.next_id + 1
        messages = ({"role": "user", "content": prompt},)
        self.channel.send(frames.Submit(id_, GenerateRequest(messages, max_tokens, temperature=0.0)))
        async with self.news:
            while id_ not in self.ends:
                await self.news.wait()
        end = self.ends.pop(id_)
        if isinstance(end, frames.ErrorFrame):
            raise RuntimeError(end.message)
        return end.tokens_out


@asynccontextmanager
async def bare_parent(folder: Path, settings: EnginesConfig) -> AsyncIterator[BareParent]:
    request = load_request(settings, model_root="bench", model_path=MODEL, model_format="gguf")
    process = WorkerProcess(python="", directory=folder / "worker", threads=1, name="bench")
    parent = BareParent(FrameChannel(process.socket))
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(process.run_output)
            nursery.start_soon(parent.channel.run_writer)
            nursery.start_soon(parent.read)
            parent.channel.send(frames.Load(request, settings.sandbox, process.directory))
            with trio.fail_after(START_SECONDS):
                await parent.loaded.wait()
            yield parent
        finally:
            process.kill()
            await process.finish()
            nursery.cancel_scope.cancel()


async def measure(folder: Path) -> list[Row]:
    values = {"engines_parallel": STREAMS, "engines_context_tokens": 2048}
    settings = EnginesConfig(threads=1, parallel=STREAMS, context_tokens=2048)
    async with (
        pair(folder, MODEL, **values) as (_, asker, reference),
        bare_parent(folder, settings) as parent,
    ):

        async def through_peer(prompt: str) -> int:
            reply = await ask(asker.api, reference, prompt, TOKENS)
            if not reply.whole:
                raise RuntimeError(f"an answer broke off: {reply}")
            return reply.tokens_out

        async def bare(prompt: str) -> int:
            return await parent.generate(prompt, TOKENS)

        rows: list[Row] = []
        for goal, streams in ((ONE, 1), (EIGHT, STREAMS)):
            ratios = []
            for number in range(-1, ROUNDS):  # the first warms both and does not count
                prompts = [f"Round {number}, {stream}: write a long story about the sea." for stream in range(streams)]
                ways = (bare, through_peer) if number % 2 else (through_peer, bare)
                speeds = {way: await _speed(way, prompts) for way in ways}
                if number >= 0:
                    ratios.append(speeds[through_peer] / speeds[bare])
            rows.append(goal.row(median(ratios), ROUNDS))
    return rows


async def _speed(generate: Callable[[str], Awaitable[int]], prompts: list[str]) -> float:
    """Tokens a second of all prompts at once, from the first request to the last end."""
    tokens = 0

    async def one(prompt: str) -> None:
        nonlocal tokens
        made = await generate(prompt)  # apart: `+=` would read the sum before it waits
        tokens += made

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for prompt in prompts:
            nursery.start_soon(one, prompt)
    return tokens / (trio.current_time() - begun)
