"""A provider and what strangers do to it: cancels, stalls, forgeries, replays, floods; and how it leaves."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.config import TasksConfig
from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.ids import AGENT_PROTOCOL
from octonode.network.host import Stream, StreamReset
from octonode.protocol.exchange import Exchange
from octonode.protocol.messages import ErrorReport, Message, StatusUpdate, TaskRequest, TaskResponse
from octonode.protocol.receipt import verify_receipt
from octonode.tasks.chat import task_request
from octonode.tasks.dispatcher import Pieces, Progress
from octonode.tasks.slots import new_id
from octonode.testing.engine import TwinEngine
from tests.tasks.nodes import EPOCH_MS, ROOT, Node, answer_of, ask, events_of, nodes, now_ms, text_of


class Caller:
    """An asker with its own hands on the stream."""

    def __init__(self, stream: Stream, exchange: Exchange) -> None:
        self.stream = stream
        self.exchange = exchange
        self.messages: list[Message] = []

    async def send(self, message: Message, **options: object) -> None:
        await self.stream.send(self.exchange.send(message, now_ms(), **options))  # type: ignore[arg-type]

    async def until(self, done: Callable[[Message], bool] = lambda message: False) -> Message:
        """Reads to the message that is `done`, or to the terminal frame."""
        while not self.exchange.closed:
            data = await self.stream.receive()
            if not data:
                self.exchange.receive_end(now_ms())
            for event in self.exchange.receive(data, now_ms()):
                self.messages.append(event.message)
                if done(event.message):
                    return event.message
        return self.messages[-1]

    async def error(self) -> ErrorReport:
        last = await self.until()
        assert isinstance(last, ErrorReport), last
        return last

    @property
    def text(self) -> str:
        return "".join(piece for m in self.messages if isinstance(m, StatusUpdate) for piece in m.pieces)


async def call(asker: Node, provider: Node, key: NodeKey | None = None) -> Caller:
    stream = await asker.host.open(provider.peer, AGENT_PROTOCOL)
    return Caller(stream, Exchange("asker", key or asker.key, provider.peer, new_id=new_id))


def request(**changes: object) -> TaskRequest:
    return replace(task_request(ask(), ""), **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def pair(home: Path, settings: TasksConfig | None = None) -> AsyncIterator[tuple[Node, Node, TwinEngine]]:
    async with nodes(home, 2, settings) as (asker, provider):
        yield asker, provider, await provider.serve()


def has_pieces(message: Message) -> bool:
    return isinstance(message, StatusUpdate) and bool(message.pieces)


async def test_frames_carry_heartbeats_checkpoints_and_a_receipt(tmp_path: Path, autojump_clock: Clock) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.seconds_per_token = 200, 0.05
        engine.script.prefill_seconds = 5.0
        caller = await call(asker, provider)
        times: list[float] = []
        await caller.send(request())
        await caller.until(lambda message: times.append(trio.current_time()) is not None)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert max(gaps) <= 1.01
        checkpoints = [m for m in caller.messages if isinstance(m, StatusUpdate) and m.checkpoint]
        assert len(checkpoints) >= 9  # ten seconds of decoding
        first = next(m for m in caller.messages if isinstance(m, StatusUpdate) and m.pieces)
        assert len(first.pieces) == 1
        response = caller.messages[-1]
        assert isinstance(response, TaskResponse)
        assert verify_receipt(response.receipt).transcript == response.transcript


async def test_a_fast_answer_is_few_frames_and_a_checkpoint_each_64_pieces(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.batch = 640, 16
        caller = await call(asker, provider)
        await caller.send(request(parameters={"max_tokens": 1000}))
        await caller.until()
        updates = [m for m in caller.messages if isinstance(m, StatusUpdate)]
        assert sum(len(m.pieces) for m in updates) == 640
        assert len(updates) <= 41
        assert 3 <= len([m for m in updates if m.checkpoint]) <= 10


@pytest.mark.parametrize("where", ["queue", "prefill", "decode"])
async def test_a_cancel_reaches_the_engine(tmp_path: Path, autojump_clock: Clock, where: str) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.seconds_per_token = 1000, 0.1
        engine.script.prefill_seconds = 1000.0 if where == "prefill" else 0.0
        others = []
        if where == "queue":
            for _ in range(engine.facts.parallel):
                others.append(await call(asker, provider))
                await others[-1].send(request())
        caller = await call(asker, provider)
        await caller.send(request())
        await caller.until(lambda m: isinstance(m, StatusUpdate) and ({"queue": "queued"}.get(where, where) == m.stage))
        before = engine.canceled
        await caller.send(TaskRequest(operation="cancel"))
        last = await caller.until()
        assert isinstance(last, TaskResponse)
        assert last.state == "canceled"
        assert engine.canceled == before + (where != "queue")
        if where == "decode":
            assert verify_receipt(last.receipt).finish_reason == "cancel"
            assert verify_receipt(last.receipt).pieces == last.pieces_total > 0
        states = {t.state for t in await provider.state.tasks()}
        assert states == {"canceled"}
        assert provider.provider.open == len(others)


async def test_leaving_the_block_cancels_at_the_provider(tmp_path: Path, autojump_clock: Clock) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.seconds_per_token = 1000, 0.1
        asker.book.at_hand = [provider.announcement()]
        async with asker.dispatcher.ask(ask()) as events:
            async for event in events:
                if isinstance(event, Pieces):
                    break
        await trio.sleep(0.5)
        assert engine.canceled == 1
        assert engine.running == 0
        assert asker.host.streams_open == 0
        assert [t.state for t in await asker.state.tasks()] == ["canceled"]
        assert [t.state for t in await provider.state.tasks()] == ["canceled"]


async def test_an_asker_that_vanishes_frees_the_engine(tmp_path: Path, autojump_clock: Clock) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.seconds_per_token = 10_000, 0.1
        caller = await call(asker, provider)
        await caller.send(request(parameters={"max_tokens": 10_000}))
        await caller.until(has_pieces)
        asker.network.kill(asker.peer)
        await trio.sleep(3)
        assert engine.canceled == 1
        assert provider.provider.open == 0


async def test_a_reader_that_stalls_loses_its_task_and_nobody_else_does(tmp_path: Path, autojump_clock: Clock) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.batch = 100_000, 100
        asker.network.window_bytes = 4096
        caller = await call(asker, provider)
        await caller.send(request(parameters={"max_tokens": 100_000}))
        await trio.sleep(10)  # reads nothing
        assert engine.canceled == 1
        assert engine.emitted < 10_000  # it was held back, not buffered
        assert [(t.state, t.code) for t in await provider.state.tasks()] == [("failed", "SLOW_READER")]
        with pytest.raises(StreamReset):
            await read_all(caller.stream)
        engine.script.answer_tokens = 5
        asker.book.at_hand = [provider.announcement()]
        assert answer_of(await events_of(asker, ask())).verified


async def test_a_slow_but_moving_reader_gets_everything(tmp_path: Path, autojump_clock: Clock) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.batch = 2000, 10
        asker.network.window_bytes = 2048
        asker.book.at_hand = [provider.announcement()]
        text, last = "", None
        async with asker.dispatcher.ask(ask(max_tokens=2000)) as events:
            async for event in events:
                last = event
                if isinstance(event, Pieces):
                    text += event.text
                await trio.sleep(0.7)
        assert last is not None
        assert answer_of([last]).verified
        assert len(text.split()) == 2000


async def test_a_consumer_that_stops_ends_its_question_with_slow_reader(tmp_path: Path, autojump_clock: Clock) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.seconds_per_token = 5000, 0.01
        asker.book.at_hand = [provider.announcement()]

        async def stop_reading() -> None:
            async with asker.dispatcher.ask(ask(max_tokens=5000)) as events:
                async for event in events:
                    if isinstance(event, Pieces):
                        await trio.sleep(30)

        with pytest.raises(OctonodeError) as caught:
            await stop_reading()
        assert caught.value.code == "SLOW_READER"
        assert engine.canceled == 1


async def read_all(stream: Stream) -> bytes:
    data = b""
    while chunk := await stream.receive():
        data += chunk
    return data


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


async def test_forged_and_stale_requests_are_refused_and_reach_no_engine(tmp_path: Path, autojump_clock: Clock) -> None:
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
        assert await refused(asker, provider, broken) == "BAD_SIGNATURE"
        assert await refused(asker, provider, sealed(key=mallory)) == "MISADDRESSED"
        assert await refused(asker, provider, sealed(to=asker)) == "MISADDRESSED"
        assert await refused(asker, provider, sealed(at_ms=-30_000, left_ms=1000)) == "EXPIRED"
        assert await refused(asker, provider, sealed(left_ms=7_200_000)) == "EXPIRED"
        assert await refused(asker, provider, sealed(at_ms=3_600_000)) == "CLOCK_SKEW"
        assert await refused(asker, provider, b"\x05junk!" * 10) in ("BAD_MESSAGE", "")
        assert await refused(asker, provider, b"\xff\xff\xff\xff\x0f") in ("TOO_LARGE", "BAD_MESSAGE", "")
        assert not engine.requests
        assert provider.provider.open == 0
        await refused(asker, provider, good)
        assert len(engine.requests) == 1


async def test_the_same_request_again_joins_its_task_and_does_not_run_twice(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        engine.script.answer_tokens, engine.script.seconds_per_token = 30, 0.1
        first = await call(asker, provider)
        await first.send(request())
        await first.until(has_pieces)
        payload = first.exchange.request_payload
        second = await call(asker, provider)
        await second.stream.send(second.exchange.send_again(payload, now_ms()))
        await second.until(has_pieces)
        await first.stream.reset()
        await second.until()
        third = await call(asker, provider)  # it has ended: the stored answer
        await third.stream.send(third.exchange.send_again(payload, now_ms()))
        await third.until()
        assert len(engine.requests) == 1
        assert second.text == third.text != ""
        assert second.messages[-1] == third.messages[-1]
        assert isinstance(third.messages[-1], TaskResponse)


async def test_a_request_whose_answer_is_forgotten_is_refused_as_a_replay(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        first = await call(asker, provider)
        await first.send(request())
        await first.until()
        for _ in range(70):
            other = await call(asker, provider)
            await other.send(request())
            await other.until()
        again = await call(asker, provider)
        await again.stream.send(again.exchange.send_again(first.exchange.request_payload, now_ms()))
        assert (await again.error()).code == "REPLAY"
        assert len(engine.requests) == 71


async def test_a_model_that_is_not_here_and_a_skill_and_a_privacy_that_are_not(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        for change, code in (
            ({"model": "bafyother"}, "MODEL_NOT_FOUND"),
            ({"skill": "paint"}, "UNSUPPORTED"),
            ({"privacy": "private"}, "PRIVACY_UNAVAILABLE"),
            ({"parameters": {"max_tokens": -1}}, "BAD_REQUEST"),
            ({"input": {"messages": "hello"}}, "BAD_REQUEST"),
        ):
            caller = await call(asker, provider)
            await caller.send(request(**change))
            assert (await caller.error()).code == code
        assert not engine.requests
        states = {t.state for t in await provider.state.tasks()}
        assert states == {"rejected", "failed"}


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


async def test_a_cold_model_is_loaded_with_progress_to_the_asker(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        provider.source.fetch_seconds, provider.engines.load_seconds = 10.0, 10.0
        provider.residency.add(ROOT)
        await trio.sleep(0.5)
        asker.book.at_hand = [provider.announcement()]
        events = await events_of(asker, ask())
        assert answer_of(events).verified
        progress = [event for event in events if isinstance(event, Progress) and event.stage != "prefill"]
        assert [p.stage for p in progress] == sorted((p.stage for p in progress), key=["fetching", "loading"].index)
        fetched = [p.done for p in progress if p.stage == "fetching"]
        assert fetched == sorted(fetched)
        assert progress[0].total == 1000


async def test_a_model_that_cannot_be_loaded_is_unavailable_with_a_time(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        provider.engines.failures = [OctonodeError("no memory", code="ENGINE_FAILED")] * 20
        provider.source.here.add(ROOT)
        provider.residency.add(ROOT)
        await trio.sleep(0.5)
        caller = await call(asker, provider)
        await caller.send(request())
        error = await caller.error()
        assert error.code == "MODEL_UNAVAILABLE"
        assert "no memory" in error.message
        assert error.retry_after_ms >= 1000


async def test_the_conversation_of_one_asker_shares_no_cache_with_another(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with nodes(tmp_path, 3) as (asker, provider, other):
        engine = await provider.serve()
        await other.host.connect(provider.host.addresses[0])
        for node, conversation in ((asker, b"c" * 16), (other, b"c" * 16), (asker, b"d" * 16), (asker, b"")):
            node.book.at_hand = [provider.announcement()]
            assert text_of(await events_of(node, ask(conversation=conversation)))
        scopes = [r.cache_scope for r in engine.requests]
        assert len(set(scopes)) == 4
        assert all(scopes)
