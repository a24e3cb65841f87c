"""What a provider refuses, and why: forgeries, stale requests, floods, a full house; and how it leaves."""

from __future__ import annotations

import contextlib
from pathlib import Path

import trio
from trio.testing import MockClock as Clock

from octonode.config import TasksConfig
from octonode.identity import NodeKey
from octonode.ids import AGENT_PROTOCOL
from octonode.network.host import StreamReset
from octonode.protocol.codec import pack, unpack
from octonode.protocol.exchange import Exchange
from octonode.protocol.framing import FrameDecoder, encode_frame
from octonode.protocol.limits import DEFAULT_LIMITS
from octonode.protocol.messages import ErrorReport, StatusUpdate, TaskResponse
from octonode.tasks.slots import new_id
from tests.tasks.callers import call, has_pieces, pair, read_all, request
from tests.tasks.nodes import EPOCH_MS, Node, now_ms


async def refused(asker: Node, provider: Node, data: bytes) -> str:
    """The code that the provider answers these bytes with; empty when it just ends the stream."""
    stream = await asker.host.open(provider.peer, AGENT_PROTOCOL)
    await stream.send(data)
    buffer = b""
    with contextlib.suppress(StreamReset):
        buffer = await read_all(stream)
    await stream.reset()
    for code in ("MISADDRESSED", "EXPIRED", "CLOCK_SKEW", "BAD_SIGNATURE", "REPLAY", "TOO_LARGE", "BAD_MESSAGE"):
        if code.encode() in buffer:
            return code
    return ""


async def test_forged_stale_and_truncated_requests_are_refused_and_reach_no_engine(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        mallory = NodeKey(b"m" * 32)

        def sealed(key: NodeKey = asker.key, to: Node = provider, at_ms: int = 0, left_ms: int = 60_000) -> bytes:
            exchange = Exchange("asker", key, to.peer, new_id=new_id)
            sent_ms = now_ms() + at_ms
            return exchange.send(request(), sent_ms, expires_at_ms=sent_ms + left_ms)

        good = sealed()
        unsigned = sealed()
        signature_at = unsigned.index(b"\xc4\x40") + 2
        broken = unsigned[:signature_at] + bytes(64) + unsigned[signature_at + 64 :]
        bare = FrameDecoder(DEFAULT_LIMITS.frame_bytes_max).feed(unsigned)[0]
        header, _, body = unpack(bare, DEFAULT_LIMITS)
        assert await refused(asker, provider, encode_frame(pack([header, b"", body]))) == "BAD_SIGNATURE"
        assert await refused(asker, provider, broken) == "BAD_SIGNATURE"
        assert await refused(asker, provider, sealed(key=mallory)) == "MISADDRESSED"
        assert await refused(asker, provider, sealed(to=asker)) == "MISADDRESSED"
        assert await refused(asker, provider, sealed(at_ms=-30_000, left_ms=1000)) == "EXPIRED"
        assert await refused(asker, provider, sealed(left_ms=7_200_000)) == "EXPIRED"
        assert await refused(asker, provider, sealed(at_ms=3_600_000)) == "CLOCK_SKEW"
        assert await refused(asker, provider, b"\x05junk!" * 10) in ("BAD_MESSAGE", "")
        assert await refused(asker, provider, b"\xff\xff\xff\xff\x0f") in ("TOO_LARGE", "BAD_MESSAGE", "")
        for part in (1, len(good) // 2, len(good) - 1):
            stream = await asker.host.open(provider.peer, AGENT_PROTOCOL)
            await stream.send(good[:part])
            await stream.finish()
            with contextlib.suppress(StreamReset):
                await read_all(stream)
        assert not engine.requests
        assert provider.provider.open == 0
        await refused(asker, provider, good)
        assert len(engine.requests) == 1


async def test_a_full_house_refuses_with_a_time_to_come_back(tmp_path: Path, autojump_clock: Clock) -> None:
    async with pair(tmp_path, TasksConfig(queue_max=2)) as (asker, provider, engine):
        engine.script.hang_at = 0
        callers = []
        for _ in range(engine.facts.parallel + 2):
            callers.append(await call(asker, provider))
            await callers[-1].send(request())
        late = await call(asker, provider)
        await trio.sleep(0.5)
        await late.send(request())
        error = await late.error()
        assert error.code == "OVERLOADED"
        assert error.retry_after_ms > 0
        assert engine.most_running == engine.facts.parallel
        waiting = await callers[-1].until(lambda m: isinstance(m, StatusUpdate) and m.stage == "queued")
        assert isinstance(waiting, StatusUpdate)
        assert waiting.done == 2


async def test_a_flood_meets_the_rate_and_is_told_when_to_come_back(tmp_path: Path, autojump_clock: Clock) -> None:
    settings = TasksConfig(requests_per_second_known=1.0, requests_burst_known=3)
    async with pair(tmp_path, settings) as (asker, provider, engine):
        codes = []
        for _ in range(5):
            caller = await call(asker, provider)
            await caller.send(request())
            last = await caller.until()
            codes.append(last.code if isinstance(last, ErrorReport) else "")
        assert codes == ["", "", "", "RATE_LIMITED", "RATE_LIMITED"]
        assert isinstance(last, ErrorReport)
        assert 0 < last.retry_after_ms <= 1001
        await trio.sleep(last.retry_after_ms / 1000)
        caller = await call(asker, provider)
        await caller.send(request())
        assert isinstance(await caller.until(), TaskResponse)
        assert len(engine.requests) == 4


async def test_a_leaving_provider_refuses_new_tasks_and_finishes_the_open_ones(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.seconds_per_token = 20, 0.1
        running = await call(asker, provider)
        await running.send(request())
        await running.until(has_pieces)
        done: list[bool] = []
        async with trio.open_nursery() as nursery:

            async def drain() -> None:
                done.append(await provider.provider.drain(30))

            nursery.start_soon(drain)
            await trio.sleep(0.1)
            late = await call(asker, provider)
            await late.send(request())
            error = await late.error()
            assert (error.code, error.retry_after_ms > 0) == ("LEAVING", True)
            assert isinstance(await running.until(), TaskResponse)
        assert done == [True]


async def test_a_drain_cuts_what_outlasts_its_deadline(tmp_path: Path, autojump_clock: Clock) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.hang_at = 2
        running = await call(asker, provider)
        await running.send(request())
        await running.until(has_pieces)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(provider.provider.drain, 5)
            assert (await running.error()).code == "LEAVING"
        assert engine.canceled == 1
        assert provider.provider.open == 0


async def test_a_task_that_outlives_its_expiry_ends_with_deadline(tmp_path: Path, autojump_clock: Clock) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.hang_at = 2
        caller = await call(asker, provider)
        await caller.send(request(), expires_at_ms=now_ms() + 5000)
        assert (await caller.error()).code == "DEADLINE"
        assert now_ms() - EPOCH_MS < 6500
        assert engine.canceled == 1
