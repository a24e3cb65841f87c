"""What every engine owes the house, with real workers: the same tests run over each adapter."""

from __future__ import annotations

import json
import math

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
        if engine.facts.flags.get("continues_exactly", True):
            assert said + rest.text == whole.text
        else:  # it computes a prompt a little differently than an answer: it may leave the path, not begin anew
            assert (said + rest.text)[: len(said) + 3] == whole.text[: len(said) + 3]


async def test_more_requests_than_slots_all_end(any_engine, supervise, ask, generate):
    async with supervise(any_engine(parallel=3, tokens_per_second=200)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        answers: list[object] = []

        async def one(number: int) -> None:
            answers.append(await generate(engine, ask(f"Tell me a story about {number} boats.", max_tokens=12)))

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
        {"prompt": "beside messages"},
        {"logprobs": 21},
        {"schema": " " * 100_000},
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


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "mood": {"enum": ["calm", "wild"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}


async def test_an_answer_by_a_schema_satisfies_it_cold_and_hot(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        for heat in (0.0, 1.6):
            request = ask("Describe a sailor.", max_tokens=120, temperature=heat, schema=json.dumps(PERSON), seed=5)
            answer = await generate(engine, request)
            assert answer.finished.reason == "stop"
            person = json.loads(answer.text)
            assert person.keys() == {"name", "age", "mood"}
            assert 1 <= len(person["name"]) <= 8
            assert 18 <= person["age"] <= 99
            assert person["mood"] in ("calm", "wild")
        answer = await generate(engine, ask("Give me a small JSON object.", max_tokens=60, schema="{}"))
        assert answer.text.startswith("{")
        if answer.finished.reason == "stop":
            assert isinstance(json.loads(answer.text), dict)


NO_SCHEMAS = (
    "no JSON", "[1]", '{"type": "person"}', '{"$ref": "#/nowhere"}', '{"type": "string", "pattern": "("}',
    '{"type": "string", "pattern": "a(?=b)"}',
)  # fmt: skip


async def test_a_schema_that_is_none_is_refused_and_costs_nothing(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        for schema in NO_SCHEMAS:
            with pytest.raises(OctonodeError) as caught:
                await generate(engine, ask(max_tokens=20, schema=schema))
            assert caught.value.code in ("BAD_REQUEST", "UNSUPPORTED"), schema
        assert engine.running == 0
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3


EXPLODING = ("^(a+)+$", "^((a|a)*)*$", "^(((a{1,900}){1,900}){1,900})b$", "^(x+x+)+y$")


async def test_a_pattern_that_explodes_is_held_to_or_refused_and_hangs_nothing(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        refused: list[str] = []
        for pattern in EXPLODING:
            schema = json.dumps({"type": "string", "pattern": pattern})
            answer = generate.new_answer()
            try:
                await generate(engine, ask(max_tokens=12, schema=schema), answer)
            except OctonodeError as error:
                refused.append(error.code)
            else:
                assert answer.text.startswith('"')
        assert set(refused) <= {"BAD_REQUEST", "UNSUPPORTED", "TOO_LARGE"}
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3
        assert supervisor.status()[0].crashes == 0


async def test_a_raw_prompt_is_gone_on_from_without_a_template(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        raw = GenerateRequest((), 12, 0.0, prompt="One, two, three, four,")
        first, second = await generate(engine, raw), await generate(engine, raw)
        assert first.text
        assert first.pieces == second.pieces
        asked = await generate(engine, ask("One, two, three, four,", max_tokens=12))
        assert first.finished.tokens_in <= asked.finished.tokens_in
        assert first.text != asked.text


async def test_each_token_comes_with_its_probability(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        for alternatives in (-1, 1, 4):
            answer = await generate(engine, ask(max_tokens=10, logprobs=alternatives))
            assert len(answer.logprobs) == answer.finished.tokens_out == 10
            assert "".join(told.text for told in answer.logprobs).strip() == answer.text.strip()
            for told in answer.logprobs:
                assert told.logprob <= 0
                assert len(told.top) == max(0, alternatives)
                chances = [math.exp(logprob) for _, logprob in told.top]
                assert sum(chances) <= 1.001
                assert chances == sorted(chances, reverse=True)
                if told.top:  # at temperature 0 the likeliest is taken
                    assert told.logprob == pytest.approx(told.top[0][1], abs=1e-3)
        assert (await generate(engine, ask(max_tokens=4))).logprobs == []


async def test_a_long_prompt_does_not_stall_what_runs(any_engine, supervise, ask):
    """Counted, not timed: for most chunks of the newcomer's prompt the running stream gets a token."""
    load = any_engine(
        answer_tokens=10_000, tokens_per_second=200, prefill_tokens_per_second=800, prefill_chunk_tokens=32
    )
    async with supervise(load) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        counts = {"now": 0, "during": 0}
        started, over = trio.Event(), trio.Event()

        async def run_on() -> None:
            async with engine.generate(ask("Tell a very long story.", max_tokens=300)) as events:
                async for event in events:
                    if isinstance(event, Pieces):
                        counts["now"] += len(event.pieces)
                        started.set()
                    if over.is_set():
                        return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_on)
            await started.wait()
            prefills, before = 0, counts["now"]
            async with engine.generate(ask("red green blue white " * 80, max_tokens=1)) as events:
                async for event in events:
                    prefills += isinstance(event, Prefill)
            counts["during"] = counts["now"] - before
            over.set()
        chunks = 10
        assert prefills >= 3, "the prompt came in parts"
        assert counts["during"] >= chunks // 2
