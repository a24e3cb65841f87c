"""What the engines cost and give, worker by worker: stalls by long prompts, cancelling, batching, the process line."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import trio

from octonode.config import EnginesConfig
from octonode.engines import samples
from octonode.engines.contract import Engine, Finished, GenerateRequest, LoadRequest, Pieces, Prefill
from octonode.engines.select import load_request
from octonode.engines.supervisor import Supervisor
from octonode.protocol.work.text import EmbedRequest
from scripts.bench.nodes import MODEL, ROOT
from scripts.bench.rows import Goal, Row, median, percentile

MINILM = ROOT / "build" / "models" / "minilm-int8"
ROUNDS = 5
CANCELS = 20
LONG_WORDS = 900
"""About 1,200 tokens."""
CLIENTS = 32
EMBED_SECONDS = 4.0
IPC_TOKENS = 20_000
_SMOL = "SmolLM2-135M Q4_1, 1 engine thread"

STALL = Goal(
    "long_prompt_stall", "ms", "<=", 250, f"longest pause of two running streams less their usual one; {_SMOL}"
)
DECODE = Goal("cancel_in_decode_p95", "ms", "<=", 150, f"what the next request waits for one that was left; {_SMOL}")
PREFILL = Goal("cancel_in_prefill_p95", "ms", "<=", 350, f"one chunk (at most 200 ms) + 150 ms; {_SMOL}")
GENERATING_GOALS = (STALL, DECODE, PREFILL)
LOADED = Goal(
    "embeddings_batching", "times", ">=", 1.3, f"the same worker with batches of 1, {CLIENTS} clients; MiniLM INT8"
)
IDLE = Goal("embeddings_alone", "ratio", "<=", 1.05, "seconds of a lone request / the same with batches of 1, in turn")
BATCHING_GOALS = (LOADED, IDLE)
LINE = Goal("process_line", "%", "<=", 1, f"CPU of our side for a token / one decode step of {_SMOL}")
LINE_GOALS = (LINE,)


@asynccontextmanager
async def loaded(folder: Path, request: LoadRequest, name: str = "worker") -> AsyncIterator[Engine]:
    """A model in a worker of ours."""
    supervisor = Supervisor(EnginesConfig(), directory=folder / name)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.set_desired({request.model_root: request})
        yield await supervisor.wait_ready(request.model_root)
        nursery.cancel_scope.cancel()


def smollm2(**changes: object) -> LoadRequest:
    settings = EnginesConfig(threads=1, parallel=4, context_tokens=2048)
    request = load_request(settings, model_root="bench", model_path=MODEL, model_format="gguf")
    return replace(request, **changes)  # type: ignore[arg-type]


def chat(content: str, max_tokens: int) -> GenerateRequest:
    return GenerateRequest(({"role": "user", "content": content},), max_tokens, temperature=0.0)


async def measure_generating(folder: Path) -> list[Row]:
    async with loaded(folder, smollm2()) as engine:
        stalls = [await _stall(engine, number) for number in range(-1, ROUNDS)][1:]
    async with loaded(folder, smollm2(parallel=1), "one") as engine:
        decode = [await _cancel(engine, chat(f"{n}: tell a long story.", 400), Pieces, n) for n in range(CANCELS)]
        prefill = [
            await _cancel(engine, samples.prompt(LONG_WORDS, 1000 + n), Prefill, CANCELS + n) for n in range(CANCELS)
        ]
    return [
        STALL.row(median(stalls) * 1000, ROUNDS),
        DECODE.row(percentile(decode, 0.95) * 1000, CANCELS),
        PREFILL.row(percentile(prefill, 0.95) * 1000, CANCELS),
    ]


async def _stall(engine: Engine, number: int) -> float:
    """How much longer than usual the running streams paused while a newcomer's long prompt was read."""
    times: list[list[float]] = [[], []]
    newcomer = [0.0, 0.0]

    async def run(stream: int) -> None:
        async with engine.generate(chat(f"{number} {stream}: write a very long story.", 900)) as events:
            async for event in events:
                if isinstance(event, Pieces):
                    times[stream].append(trio.current_time())
                if newcomer[1]:
                    return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 0)
        nursery.start_soon(run, 1)
        while min(map(len, times)) < 20:
            await trio.sleep(0.05)
        newcomer[0] = trio.current_time()
        async with engine.generate(samples.prompt(LONG_WORDS, number)) as events:
            async for event in events:
                if isinstance(event, Pieces | Finished):
                    break
        newcomer[1] = trio.current_time()
    pauses = [_pauses(each) for each in times]
    usual = median([length for each in pauses for at, length in each if at < newcomer[0]])
    longest = max(length for each in pauses for at, length in each if at >= newcomer[0])
    return longest - usual


def _pauses(times: list[float]) -> list[tuple[float, float]]:
    """(when it ended, how long it was) of each pause between two events."""
    return [(later, later - earlier) for earlier, later in pairwise(times)]


async def _cancel(engine: Engine, request: GenerateRequest, after: type, number: int) -> float:
    """Seconds for which the engine still worked on a request that was left once an event of this kind came: by so much
    the next request is later than the one after it. The engine has one slot, so that the next one waits for it."""
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, after) and not (isinstance(event, Prefill) and not event.done_tokens):
                break
    behind = await _seconds(engine, samples.prompt(8, 5000 + 2 * number))
    return max(0.0, behind - await _seconds(engine, samples.prompt(8, 5001 + 2 * number)))


async def _seconds(engine: Engine, request: GenerateRequest) -> float:
    begun = trio.current_time()
    async with engine.generate(request) as events:
        async for _ in events:
            pass
    return trio.current_time() - begun


async def measure_batching(folder: Path) -> list[Row]:
    settings = EnginesConfig(threads=1)
    request = load_request(
        settings, model_root="bench", model_path=MINILM / "model.onnx", model_folder=MINILM, model_format="onnx",
        category="embeddings",
    )  # fmt: skip
    plain = replace(request, options={**request.options, "measure_seconds": 0})
    measured = replace(request, options={**request.options, "measure_seconds": 3})
    async with loaded(folder, plain, "plain") as ones, loaded(folder, measured, "measured") as batches:
        gains, delays = [], []
        for number in range(-1, ROUNDS):
            order = (ones, batches) if number % 2 else (batches, ones)
            rates = {engine: await _rate(engine) for engine in order}
            alone = {engine: await _alone(engine) for engine in order}
            if number >= 0:
                gains.append(rates[batches] / rates[ones])
                delays.append(alone[batches] / alone[ones])
    return [LOADED.row(median(gains), ROUNDS), IDLE.row(median(delays), ROUNDS)]


def _texts(number: int) -> EmbedRequest:
    return EmbedRequest((f"{number} {samples.SENTENCE}",))


async def _embed(engine: Engine, number: int) -> None:
    async with engine.make(_texts(number)) as events:
        async for _ in events:
            pass


async def _rate(engine: Engine) -> float:
    """Requests a second of many clients, each with one text at a time."""
    done = 0
    ends_at = trio.current_time() + EMBED_SECONDS

    async def client(number: int) -> None:
        nonlocal done
        while trio.current_time() < ends_at:
            await _embed(engine, number)
            done += 1

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(min(CLIENTS, engine.facts.parallel + 32)):
            nursery.start_soon(client, number)
    return done / (trio.current_time() - begun)


async def _alone(engine: Engine) -> float:
    """Median seconds of requests that come one after the other."""
    seconds = []
    for number in range(100):
        begun = trio.current_time()
        await _embed(engine, number)
        seconds.append(trio.current_time() - begun)
    return median(seconds)


async def measure_line(folder: Path) -> list[Row]:
    scripted = LoadRequest(
        "scripted",
        None,
        "line",
        context_tokens=IPC_TOKENS * 2,
        options={"answer_tokens": IPC_TOKENS, "tokens_per_second": 4000},
    )
    async with loaded(folder, scripted, "line") as engine:
        before = _cpu_seconds()
        async with engine.generate(chat("count", IPC_TOKENS)) as events:
            async for _ in events:
                pass
        per_token = (_cpu_seconds() - before) / IPC_TOKENS
    async with loaded(folder, smollm2()) as engine:
        steps = [await _step(engine, number) for number in range(ROUNDS)]
    return [LINE.row(100 * per_token / median(steps), ROUNDS)]


async def _step(engine: Engine, number: int) -> float:
    """Seconds of one decode step."""
    times: list[float] = []
    tokens = 0
    async with engine.generate(chat(f"{number}: tell a long story.", 64)) as events:
        async for event in events:
            if isinstance(event, Pieces):
                times.append(trio.current_time())
                tokens += len(event.pieces)
    return (times[-1] - times[0]) / max(1, tokens - 1)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
