"""An asker and its providers on the in-memory network: answers, and the ways to the next candidate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.config import TasksConfig
from octonode.engines.contract import GenerateRequest
from octonode.errors import OctonodeError
from octonode.ids import AGENT_PROTOCOL
from octonode.network.host import Stream
from octonode.protocol.receipt import verify_receipt
from octonode.tasks.dispatcher import AskEvent, Attempt, Pieces, Progress, ProviderLost
from octonode.testing.engine import TwinEngine
from tests.tasks.nodes import QUESTION, ROOT, answer_of, ask, events_of, nodes, providers_of, text_of


def expected(engine: TwinEngine, max_tokens: int = 512) -> str:
    return "".join(engine.answer(GenerateRequest(QUESTION, max_tokens, temperature=0.0)))


async def test_an_answer_is_streamed_and_its_receipt_verified(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        engine.script.answer_tokens = 200
        engine.script.seconds_per_token = 0.01
        asker.book.at_hand = [provider.announcement()]
        events = await events_of(asker, ask())
        answered = answer_of(events)
        assert text_of(events) == expected(engine)
        assert answered.verified, answered.reason
        assert (answered.provider, answered.local, answered.finish_reason) == (provider.peer, False, "stop")
        assert (answered.tokens_in, answered.tokens_out, answered.pieces_total) == (5, 200, 200)
        assert len([event for event in events if isinstance(event, Pieces)]) > 3
        assert isinstance(events[0], Attempt)
        receipt = verify_receipt(answered.receipt or b"")
        assert (receipt.model_root, receipt.manifest, receipt.tokens_out) == (ROOT, "bafymanifest", 200)
        assert (receipt.asker, receipt.provider) == (asker.peer, provider.peer)
        ours, theirs = await asker.state.receipt(answered.task), await provider.state.receipt(answered.task)
        assert ours is not None
        assert theirs is not None
        assert (ours.role, theirs.role) == ("asker", "provider")
        assert ours.receipt == theirs.receipt == answered.receipt
        assert ours.request_header == theirs.request_header == answered.request_header
        assert [t.state for t in await provider.state.tasks()] == ["completed"]
        assert provider.provider.open == 0
        assert provider.provider.measured(ROOT).tokens_per_second == pytest.approx(100, rel=0.2)


async def test_the_local_engine_is_asked_first_and_signs_a_receipt_too(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine, other = await asker.serve(), await provider.serve()
        asker.book.at_hand = [provider.announcement(tokens_per_second=9999)]
        events = await events_of(asker, ask())
        answered = answer_of(events)
        assert text_of(events) == expected(engine)
        assert answered.local
        assert answered.verified
        assert verify_receipt(answered.receipt or b"").provider == asker.peer
        assert not other.requests
        assert asker.host.streams_open == 0


async def test_a_forced_peer_is_asked_though_the_local_engine_is_ready(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        await asker.serve()
        await provider.serve()
        events = await events_of(asker, ask(peer=provider.peer))
        assert providers_of(events) == [provider.peer]


async def test_a_refusal_moves_on_to_the_next(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 3) as (asker, first, second):
        engine = await second.serve()  # the first does not have the model, whatever was announced
        asker.book.at_hand = [first.announcement(tokens_per_second=100), second.announcement(tokens_per_second=1)]
        events = await events_of(asker, ask())
        assert providers_of(events) == [first.peer, second.peer]
        attempts = [event for event in events if isinstance(event, Attempt)]
        assert attempts[1].moved_on.startswith("MODEL_NOT_FOUND")
        assert text_of(events) == expected(engine)
        # It is remembered: the next question goes to the good one at once.
        assert providers_of(await events_of(asker, ask())) == [second.peer]


async def test_a_reset_before_the_first_token_moves_on(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 3) as (asker, first, second):
        await second.serve()
        asker.book.at_hand = [first.announcement(tokens_per_second=100), second.announcement()]

        async def reset_at_once(stream: Stream) -> None:
            await stream.receive()
            await stream.reset()

        first.host.handle(AGENT_PROTOCOL, reset_at_once)
        events = await events_of(asker, ask())
        assert providers_of(events) == [first.peer, second.peer]
        assert answer_of(events).verified


async def test_silence_before_the_first_token_moves_on_after_three_seconds(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with nodes(tmp_path, 3) as (asker, first, second):
        await second.serve()
        asker.book.at_hand = [first.announcement(tokens_per_second=100), second.announcement()]
        heard: list[bytes] = []

        async def say_nothing(stream: Stream) -> None:
            while data := await stream.receive():
                heard.append(data)

        first.host.handle(AGENT_PROTOCOL, say_nothing)
        started = trio.current_time()
        events = await events_of(asker, ask())
        assert providers_of(events) == [first.peer, second.peer]
        assert answer_of(events).first_token_seconds == pytest.approx(3.0, abs=0.2)
        assert trio.current_time() - started < 3.5
        await trio.sleep(3)
        assert len(heard) == 2  # the request, and the cancel that moving on sends


async def test_a_peer_that_does_not_even_open_a_stream_is_left_after_the_same_time(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with nodes(tmp_path, 3) as (asker, first, second):
        await second.serve()
        asker.book.at_hand = [first.announcement(tokens_per_second=100), second.announcement()]
        asker.network.silence(first.peer)
        events = await events_of(asker, ask())
        assert providers_of(events) == [first.peer, second.peer]


async def test_heartbeats_keep_a_slow_provider_alive_until_the_first_token_is_overdue(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    settings = TasksConfig(first_token_timeout_seconds=30)
    async with nodes(tmp_path, 2, settings) as (asker, provider):
        engine = await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        engine.script.prefill_seconds = 25.0
        events = await events_of(asker, ask())
        assert answer_of(events).verified
        prefill = [e for e in events if isinstance(e, Progress) and e.stage == "prefill"]
        assert [e.done for e in prefill] == sorted(e.done for e in prefill)
        assert prefill[-1].total == 5
        engine.script.prefill_seconds = 60.0
        with pytest.raises(OctonodeError) as caught:
            await events_of(asker, ask())
        assert caught.value.code == "DEADLINE"


async def test_a_loss_after_the_first_token_is_an_error_with_what_was_received(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with nodes(tmp_path, 3) as (asker, first, second):
        engine = await first.serve()
        await second.serve()
        engine.script.answer_tokens, engine.script.seconds_per_token = 200, 0.05
        asker.book.at_hand = [first.announcement(tokens_per_second=100), second.announcement()]
        received: list[str] = []

        def kill_in_the_middle(event: AskEvent) -> None:
            if isinstance(event, Pieces):
                received.extend(event.pieces)
            if len(received) > 80:
                asker.network.kill(first.peer)

        with pytest.raises(ProviderLost) as caught:
            await events_of(asker, ask(), kill_in_the_middle)
        assert caught.value.code == "PROVIDER_LOST"
        assert caught.value.provider == first.peer
        assert caught.value.received == tuple(received)
        assert 0 < caught.value.attested <= len(received)
        assert [(t.state, t.code) for t in await asker.state.tasks()] == [("failed", "PROVIDER_LOST")]


async def test_silence_in_the_middle_of_an_answer_is_a_loss(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        engine.script.answer_tokens, engine.script.seconds_per_token = 200, 0.05
        asker.book.at_hand = [provider.announcement()]

        def pull_the_cable(event: AskEvent) -> None:
            if isinstance(event, Pieces):
                asker.network.silence(provider.peer)

        with pytest.raises(ProviderLost, match="silent"):
            await events_of(asker, ask(), pull_the_cable)


async def test_an_engine_that_crashes_before_the_first_token_moves_on(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 3) as (asker, first, second):
        (await first.serve()).script.crash_at = 0
        await second.serve()
        asker.book.at_hand = [first.announcement(tokens_per_second=100), second.announcement()]
        events = await events_of(asker, ask())
        attempts = [event for event in events if isinstance(event, Attempt)]
        assert [a.provider for a in attempts] == [first.peer, second.peer]
        assert attempts[1].moved_on.startswith("ENGINE_CRASHED")


async def test_an_engine_that_crashes_in_the_middle_tells_so_and_the_provider_lives(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        engine.script.crash_at = 3
        asker.book.at_hand = [provider.announcement()]
        with pytest.raises(ProviderLost, match="died of signal 9") as caught:
            await events_of(asker, ask())
        assert len(caught.value.received) == 3
        assert [(t.state, t.code) for t in await provider.state.tasks()] == [("failed", "ENGINE_CRASHED")]
        engine.script.crash_at = None
        assert answer_of(await events_of(asker, ask())).verified


async def test_further_providers_are_looked_for_when_the_known_ones_fail(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 3) as (asker, first, second):
        await second.serve()
        asker.book.at_hand = [first.announcement()]
        asker.book.in_network = [second.announcement()]
        assert providers_of(await events_of(asker, ask())) == [first.peer, second.peer]
        assert asker.book.finds == 1


async def test_nobody_serves_it(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        with pytest.raises(OctonodeError) as caught:
            await events_of(asker, ask())
        assert caught.value.code == "MODEL_NOT_FOUND"
        asker.book.at_hand = [provider.announcement()]
        with pytest.raises(OctonodeError) as caught:
            await events_of(asker, ask())
        assert caught.value.code == "MODEL_NOT_FOUND"
        assert caught.value.detail["candidates"][0]["peer"] == provider.peer


async def test_privacy_that_cannot_be_kept_is_refused_before_anybody_is_asked(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        await asker.serve()
        asker.book.at_hand = [provider.announcement()]
        for level in ("private", "confidential", "shared"):
            with pytest.raises(OctonodeError) as caught:
                await events_of(asker, ask(privacy=level))
            assert caught.value.code == "PRIVACY_UNAVAILABLE"
        assert not engine.requests


async def test_a_bad_parameter_is_our_own_fault_and_nobody_is_asked(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        for wrong in ({"max_tokens": 0}, {"temperature": -1.0}, {"messages": ()}, {"stop": ("",)}):
            with pytest.raises(OctonodeError) as caught:
                await events_of(asker, ask(**wrong))
            assert caught.value.code == "BAD_REQUEST"
        assert not engine.requests


async def test_a_prompt_over_the_context_is_refused_with_the_engines_figures(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        with pytest.raises(OctonodeError, match="3000 tokens") as caught:
            await events_of(asker, ask(messages=({"role": "user", "content": "w " * 3000},)))
        assert caught.value.code == "CONTEXT_EXCEEDED"


async def test_explain_gives_everybody_with_a_reason(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 4) as (asker, good, leaving, small):
        await asker.serve()
        asker.book.in_network = [
            good.announcement(tokens_per_second=10),
            small.announcement(tokens_per_second=20),
        ]
        asker.book.at_hand = [replace(leaving.announcement(), state="leaving")]
        candidates = await asker.dispatcher.explain(ask())
        assert [(c.peer, c.accepted) for c in candidates] == [
            (asker.peer, True),
            (small.peer, True),
            (good.peer, True),
            (leaving.peer, False),
        ]
        assert candidates[0].local
        assert "leaving" in candidates[-1].reason
        assert all(c.reason for c in candidates)


async def test_a_token_is_shown_and_without_it_the_door_is_shut(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        await provider.serve()
        provider.door.token = "open sesame"
        asker.book.at_hand = [provider.announcement()]
        with pytest.raises(OctonodeError) as caught:
            await events_of(asker, ask())
        assert caught.value.code == "UNAUTHORIZED"
        asker.shows = "open sesame"
        assert answer_of(await events_of(asker, ask())).verified


async def test_a_long_prompt_travels_as_an_artifact(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        content = "x" * 3_000_000
        asker.book.at_hand = [provider.announcement(context_tokens=0)]  # it does not say
        answered = answer_of(await events_of(asker, ask(messages=({"role": "user", "content": content},))))
        assert answered.verified, answered.reason
        assert engine.requests[0].messages[0]["content"] == content


async def test_a_prompt_too_long_for_all_is_not_worth_asking_again(tmp_path: Path, autojump_clock: Clock) -> None:
    """Whoever is told to come back would come back for ever: a client, and a job for a day."""
    async with nodes(tmp_path, 2) as (asker, provider):
        await provider.serve()
        asker.book.at_hand = [provider.announcement(context_tokens=2048)]
        with pytest.raises(OctonodeError, match="2048; shorten it") as caught:
            await events_of(asker, ask(messages=({"role": "user", "content": "word " * 20_000},)))
        assert (caught.value.code, caught.value.retry_after_seconds) == ("CONTEXT_EXCEEDED", None)


async def test_questions_wait_for_the_local_model_that_still_loads(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 1) as (asker,):
        asker.source.fetch_seconds, asker.engines.load_seconds = 10.0, 20.0
        asker.residency.add(ROOT)
        await trio.sleep(1)
        events = await events_of(asker, ask())
        assert answer_of(events).local
        stages = [event.stage for event in events if isinstance(event, Progress)]
        assert stages
