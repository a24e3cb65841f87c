"""A provider at work: frames, cancels, slow readers, requests that come again, cold models."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.errors import OctonodeError
from octonode.network.host import StreamReset
from octonode.protocol.messages import StatusUpdate, TaskRequest, TaskResponse
from octonode.protocol.receipt import verify_receipt
from octonode.tasks.dispatcher import Pieces, Progress
from tests.tasks.callers import call, has_pieces, pair, read_all, request
from tests.tasks.nodes import ROOT, answer_of, ask, events_of, nodes, now_ms, text_of


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
