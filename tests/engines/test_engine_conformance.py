"""What every engine owes the house, with real workers: the same tests run over each adapter."""

from __future__ import annotations

import pytest
import trio

from octonode.engines.contract import Finished, GenerateRequest, Pieces, Prefill
from octonode.errors import OctonodeError

pytestmark = pytest.mark.process
ROOT = "bafy-test-root"
LONG_PROMPT = "red green blue white " * 100


async def test_a_greedy_answer_is_the_same_twice_and_has_its_facts(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        first, second = await generate(engine, ask()), await generate(engine, ask())
        assert first.text
        assert first.pieces == second.pieces
        assert first.finished == second.finished
        assert first.prefills[-1].done_tokens == first.prefills[-1].total_tokens == first.finished.tokens_in
        assert engine.facts.context_tokens == 512
        assert engine.facts.parallel == 2
        assert engine.facts.build
        assert engine.running == 0


async def test_sampling_repeats_with_its_seed_and_not_without(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)

        async def sample(seed: int | None) -> str:
            answer = await generate(engine, ask(max_tokens=24, temperature=1.0, seed=seed))
            return str(answer.text)

        seven = await sample(7)
        assert await sample(7) == seven
        assert len({seven, await sample(8), await sample(9)}) == 3
        assert len({await sample(None), await sample(None), await sample(None)}) == 3
        assert await sample(-(2**63)) == await sample(-(2**63))


async def test_a_stop_string_ends_the_answer_and_is_not_in_it(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        whole = await generate(engine, ask(max_tokens=24))
        # across the border of two pieces in the middle, where it first occurs
        left, right = whole.pieces[9], whole.pieces[10]
        stop = left[-1] + right[:2]
        cut = await generate(engine, ask(max_tokens=24, stop=("never in there", stop)))
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finished.reason == "stop"
        unmatched = await generate(engine, ask(max_tokens=24, stop=(stop + "\x00",)))
        assert unmatched.text == whole.text


@pytest.mark.parametrize("count", [1, 7])
async def test_max_tokens_ends_the_answer(any_engine, supervise, ask, generate, count):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        answer = await generate(engine, ask(max_tokens=count))
        assert answer.finished.reason == "length"
        assert answer.finished.tokens_out == count
        assert 1 <= len(answer.pieces) <= count


async def test_pieces_join_to_whole_characters(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        answer = await generate(engine, ask("Say hello with an emoji 🎉 and é.", max_tokens=24))
        assert not answer.text.isascii(), "the prompt was chosen for an answer beyond ASCII"
        assert "\ufffd" not in answer.text
        assert all(answer.pieces)


async def test_an_answer_goes_on_from_what_the_assistant_already_said(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        question = {"role": "user", "content": "Tell me about the sea."}
        whole = await generate(engine, GenerateRequest((question,), 16, 0.0))
        said = "".join(whole.pieces[:6])
        rest = await generate(engine, GenerateRequest((question, {"role": "assistant", "content": said}), 10, 0.0))
        assert said + rest.text == whole.text


async def test_more_requests_than_slots_all_end(any_engine, supervise, ask, generate):
    async with supervise(any_engine(parallel=3, tokens_per_second=200)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        answers: list[object] = []

        async def one(number: int) -> None:
            answers.append(await generate(engine, ask(f"Count from {number}.", max_tokens=12)))

        async with trio.open_nursery() as nursery:
            for number in range(7):
                nursery.start_soon(one, number)
        assert [answer.finished.tokens_out for answer in answers] == [12] * 7
        assert len({answer.text for answer in answers}) > 1
        assert engine.running == 0


async def test_requests_run_at_the_same_time(any_engine, supervise, ask):
    """The second begins to answer while the first is not read at all: neither waits for the other's end or reader."""
    async with supervise(any_engine(tokens_per_second=50)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        long = ask("First: tell a long story.", max_tokens=60)
        async with engine.generate(long) as first, engine.generate(ask(max_tokens=4)) as second:
            assert engine.running == 2
            assert isinstance([event async for event in second][-1], Finished)
            assert engine.running == 1, "the first is still in the engine"
            events = [event async for event in first]
        assert isinstance(events[-1], Finished)
        assert events[-1].tokens_out == 60


async def test_leaving_early_cancels_decoding(any_engine, supervise, ask, generate, settle):
    async with supervise(any_engine(tokens_per_second=100, answer_tokens=10_000)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        async with engine.generate(ask("Tell a very long story.", max_tokens=450)) as events:
            async for event in events:
                if isinstance(event, Pieces):
                    break
        await settle(lambda: engine.running == 0)
        answer = await generate(engine, ask(max_tokens=4))
        assert answer.finished.tokens_out == 4


async def test_leaving_early_cancels_prefill_and_the_next_is_served(any_engine, supervise, ask, generate, settle):
    load = any_engine(parallel=1, prefill_tokens_per_second=50, prefill_chunk_tokens=8)
    async with supervise(load) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        async with engine.generate(ask(LONG_PROMPT)) as events:
            async for event in events:
                assert isinstance(event, Prefill)
                assert event.done_tokens < event.total_tokens, "it was to be left in the middle of the prompt"
                if event.done_tokens:
                    break
        answer = await generate(engine, ask("hi", max_tokens=2))
        assert answer.finished.tokens_out == 2
        await settle(lambda: engine.running == 0)


async def test_cancelling_the_reader_cancels_a_waiting_request(any_engine, supervise, ask, generate, settle):
    load = any_engine(parallel=1, tokens_per_second=50, answer_tokens=10_000)
    async with supervise(load) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        async with engine.generate(ask("A long story.", max_tokens=400)):
            with trio.move_on_after(0.05):
                await generate(engine, ask("never served, since the slot is taken"))
        await settle(lambda: engine.running == 0)
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3


async def test_a_prompt_over_the_context_is_refused_and_costs_nothing(any_engine, supervise, ask, generate):
    async with supervise(any_engine(context_tokens=256)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        with pytest.raises(OctonodeError) as caught:
            await generate(engine, ask(LONG_PROMPT))
        assert caught.value.code == "CONTEXT_EXCEEDED"
        assert "256" in caught.value.message
        assert engine.running == 0
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3


async def test_an_answer_ends_where_the_context_does(any_engine, supervise, ask, generate):
    async with supervise(any_engine(context_tokens=256, answer_tokens=10_000)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        answer = await generate(engine, ask("Tell a very long story about a king.", max_tokens=10_000))
        assert answer.finished.reason == "length"
        assert answer.finished.tokens_in + answer.finished.tokens_out in (255, 256, 257)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": ()},
        {"messages": ({"role": "user"},)},
        {"messages": ({"role": "user", "content": "half a pair: \ud83d"},)},
        {"max_tokens": 0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"seed": 2**64},
        {"stop": ("",)},
        {"stop": ("x",) * 99},
    ],
)
async def test_what_no_engine_can_run_is_refused(scripted, supervise, ask, generate, change):
    async with supervise(scripted()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        fields = {"messages": ({"role": "user", "content": "hi"},), "max_tokens": 4, **change}
        with pytest.raises(OctonodeError) as caught:
            await generate(engine, GenerateRequest(**fields))
        assert caught.value.code == "BAD_REQUEST"
        assert engine.running == 0
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3


async def test_too_many_requests_are_refused_and_not_queued_without_end(scripted, supervise, ask):
    async with supervise(scripted(parallel=1, tokens_per_second=1)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        opened = [engine.generate(ask()) for _ in range(65)]
        for call in opened:
            await call.__aenter__()
        with pytest.raises(OctonodeError) as caught:
            await engine.generate(ask()).__aenter__()
        assert caught.value.code == "OVERLOADED"
        assert caught.value.retry_after_seconds
        for call in opened:
            await call.__aexit__(None, None, None)


async def test_a_prompt_cache_is_reused_within_a_scope_and_never_across(any_engine, supervise, ask, generate):
    """One slot, one prompt: only the scope decides whether what lies in the slot may be looked at."""
    async with supervise(any_engine(parallel=1)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)

        async def cached(scope: str) -> int:
            answer = await generate(engine, ask("one two three four five six seven", max_tokens=2, cache_scope=scope))
            return int(answer.finished.tokens_cached)

        assert await cached("asker-a/talk-1") == 0
        assert await cached("asker-a/talk-1") > 0
        assert await cached("asker-b/talk-1") == 0
        assert await cached("asker-a/talk-1") == 0, "b's prompt lies in the slot now"
        assert await cached("") == 0
        assert await cached("") == 0, "no scope, no reuse"
        assert await cached("asker-a/talk-1") == 0


async def test_a_scope_finds_its_own_slot_again(any_engine, supervise, ask, generate):
    async with supervise(any_engine(parallel=2)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        request = ask("one two three four five six seven", max_tokens=2, cache_scope="a")
        assert (await generate(engine, request)).finished.tokens_cached == 0
        assert (await generate(engine, ask(max_tokens=2, cache_scope="b"))).finished.tokens_cached == 0
        assert (await generate(engine, request)).finished.tokens_cached > 0
