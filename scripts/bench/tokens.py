"""Tokens of a real model through a peer, against the same worker driven bare, and against the engine's own server.

The three take turns in one run, each with a worker of its own: the daemons, a bare trio parent that writes frames to a
worker, and xllamacpp's HTTP server with the settings that our worker gives it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from octonode.config import EnginesConfig
from octonode.engines import frames
from octonode.engines.channel import FrameChannel
from octonode.engines.contract import GenerateRequest
from octonode.engines.process import WorkerProcess
from octonode.engines.select import load_request
from scripts.bench.chat import ask
from scripts.bench.metrics import lags_of
from scripts.bench.nodes import MODEL, START_SECONDS, pair
from scripts.bench.own_server import own_server
from scripts.bench.rows import Goal, Row, median, percentile

STREAMS = (1, 4, 8, 32)
ROUNDS = {1: 8, 4: 6, 8: 6, 32: 3}
TOKENS = {1: 128, 4: 64, 8: 64, 32: 24}
"""Of each answer, by the number of streams: a round takes some seconds each way."""
CONTEXT_TOKENS = 512
NO_CACHE = {"cache_prompt": False}
"""Prompts of strangers share no cache in a node; the engine's own server would reuse the beginning that they share."""
CHUNK_TOKENS = 24
"""The same for all three: what each would measure could differ."""
_MODEL = "in turn; SmolLM2-135M Q4_1, 1 engine thread"
_BARE = f"the same worker driven over frames by a bare trio parent, {_MODEL}"
_OWN = f"xllamacpp's own HTTP server with the same settings, {_MODEL}"

BARE = {n: Goal(f"tokens_through_peer_{n}", "ratio", ">=", 0.97, f"{_BARE}, {n} streams") for n in STREAMS}
OWN = {n: Goal(f"tokens_peer_vs_own_server_{n}", "ratio", ">=", 0.97, f"{_OWN}, {n} streams") for n in STREAMS}
FIRST_BARE = {
    n: Goal(f"first_token_real_added_p50_{n}", "ms", "<=", 10, f"{_BARE}, {n} streams, p50 of each") for n in STREAMS
}
FIRST_OWN = {
    n: Goal(f"first_token_vs_own_server_p50_{n}", "ms", "<=", 10, f"{_OWN}, {n} streams, p50 of each") for n in STREAMS
}
GAIN = Goal(
    "streams_gain_8", "ratio", ">=", 0.95, "gain from 1 to 8 streams through a peer / of the engine's own server"
)
LAG = Goal("loop_lag_p99_32_streams", "ms", "<=", 30, "the worse of both daemons' loops, looked at four times a second")
GOALS = (*BARE.values(), *OWN.values(), *FIRST_BARE.values(), *FIRST_OWN.values(), GAIN, LAG)


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: its tokens, and when the first one came."""

    tokens: int
    first_seconds: float


Generate = Callable[[str, int], Awaitable[Said]]


@dataclass(slots=True)
class BareParent:
    """The least that can drive a worker: writes `Submit`, reads frames, counts."""

    channel: FrameChannel
    ends: dict[int, frames.EndFrame | frames.ErrorFrame] = field(default_factory=dict)
    firsts: dict[int, float] = field(default_factory=dict)
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
                    elif isinstance(frame, frames.PiecesFrame):
                        self.firsts.setdefault(frame.id, trio.current_time())
                    elif isinstance(frame, frames.EndFrame | frames.ErrorFrame):
                        self.ends[frame.id] = frame
                        async with self.news:
                            self.news.notify_all()

    async def generate(self, prompt: str, max_tokens: int) -> Said:
        """One greedy answer."""
        begun = trio.current_time()
        id_, self.next_id = self.next_id, self.next_id + 1
        messages = ({"role": "user", "content": prompt},)
        self.channel.send(frames.Submit(id_, GenerateRequest(messages, max_tokens, temperature=0.0)))
        async with self.news:
            while id_ not in self.ends:
                await self.news.wait()
        end = self.ends.pop(id_)
        if isinstance(end, frames.ErrorFrame):
            raise RuntimeError(end.message)
        return Said(end.tokens_out, self.firsts.pop(id_, begun) - begun)


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
    most = max(STREAMS)
    values = {
        "engines_parallel": most, "engines_context_tokens": CONTEXT_TOKENS, "engines_measure_seconds": 0,
        "engines_prefill_chunk_tokens": CHUNK_TOKENS,
    }  # fmt: skip
    settings = EnginesConfig(threads=1, parallel=most, context_tokens=CONTEXT_TOKENS, prefill_chunk_tokens=CHUNK_TOKENS)
    request = load_request(settings, model_root="bench", model_path=MODEL, model_format="gguf")
    async with (
        pair(folder, MODEL, **values) as (provider, asker, reference),
        bare_parent(folder, settings) as parent,
        own_server(folder, request) as own,
    ):
        ways: dict[str, Generate] = {
            "peer": partial(ask_api, asker.api, reference),
            "bare": parent.generate,
            "own": partial(ask_api, own, "smollm2", more=NO_CACHE),
        }
        rows: list[Row] = []
        speeds: dict[int, dict[str, list[float]]] = {}
        for streams in STREAMS:
            async with lags_of((provider, asker)) as lags:
                speeds[streams], firsts = await rounds(ways, streams, ROUNDS[streams])
            for way, tokens, first in (("bare", BARE, FIRST_BARE), ("own", OWN, FIRST_OWN)):
                rows.append(tokens[streams].row(ratio(speeds[streams], way), ROUNDS[streams]))
                rows.append(first[streams].row(added_ms(firsts, way), len(firsts["peer"])))
            if streams == most:
                rows.append(LAG.row(percentile(lags, 0.99) * 1000, len(lags)))
    rows.append(GAIN.row(gain(speeds[8], speeds[1]), ROUNDS[8]))
    return rows


def ratio(speeds: Mapping[str, Sequence[float]], against: str) -> float:
    """Tokens through the peer to those of the other way, each pair of the same round."""
    return median([ours / theirs for ours, theirs in zip(speeds["peer"], speeds[against], strict=True)])


def added_ms(firsts: Mapping[str, Sequence[float]], against: str) -> float:
    """By how much the median first token of the peer comes later than that of the other way."""
    return (percentile(firsts["peer"], 0.5) - percentile(firsts[against], 0.5)) * 1000


def gain(many: Mapping[str, Sequence[float]], one: Mapping[str, Sequence[float]]) -> float:
    """What many streams gain over one through the peer, to what they gain at the engine's own server."""
    gains = {way: median(many[way]) / median(one[way]) for way in ("peer", "own")}
    return gains["peer"] / gains["own"]


async def rounds(
    ways: Mapping[str, Generate], streams: int, count: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(tokens a second of each round, seconds to each first token), by way."""
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    firsts: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(-1, count):  # the first warms all and does not count
        prompts = [f"Round {number}, {stream}: write a long story about the sea." for stream in range(streams)]
        turn = number % len(ways)
        for way in [*ways][turn:] + [*ways][:turn]:
            speed, seen = await _speed(ways[way], prompts, TOKENS[streams])
            if number >= 0:
                speeds[way].append(speed)
                firsts[way] += seen
    return speeds, firsts


async def ask_api(api: str, model: str, prompt: str, max_tokens: int, more: Mapping[str, Any] | None = None) -> Said:
    reply = await ask(api, model, prompt, max_tokens, more=more)
    if not reply.whole:
        raise RuntimeError(f"an answer broke off: {reply}")
    return Said(reply.tokens_out, reply.first_seconds)


async def _speed(generate: Generate, prompts: list[str], max_tokens: int) -> tuple[float, list[float]]:
    """(tokens a second of all prompts at once, from the first request to the last end; seconds to each first)."""
    answers: list[Said] = []

    async def one(prompt: str) -> None:
        answers.append(await generate(prompt, max_tokens))

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for prompt in prompts:
            nursery.start_soon(one, prompt)
    seconds = trio.current_time() - begun
    return sum(answer.tokens for answer in answers) / seconds, [answer.first_seconds for answer in answers]
