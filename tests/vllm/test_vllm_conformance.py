"""The suite that every engine passes, over a vLLM that runs; tests that are about its start are in another file."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import GenerateRequest, LoadRequest, Logprobs, Pieces
from octonode.engines.servers.openai_http import Address, OpenAiServer
from octonode.engines.servers.prometheus import read_values
from octonode.engines.supervisor import Supervisor
from octonode.errors import OctonodeError
from tests.engines.test_engine_conformance import (  # noqa: F401 - collected here, over the engine of this file
    test_a_stop_string_ends_the_answer_and_is_not_in_it,
    test_an_answer_goes_on_from_what_the_assistant_already_said,
    test_cancelling_the_reader_cancels_a_waiting_request,
    test_leaving_early_cancels_decoding,
    test_max_tokens_ends_the_answer,
    test_pieces_join_to_whole_characters,
    test_requests_run_at_the_same_time,
    test_sampling_repeats_with_its_seed_and_not_without,
)

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.timeout(600)]
ROOT = "bafy-test-root"
SENTENCE = "The lighthouse keeper counted the ships that passed the bay in the long night of winter. "


@pytest.fixture
def any_engine(lasting_server: str):  # type: ignore[no-untyped-def]
    def make(**_: object) -> LoadRequest:
        return LoadRequest("openai-server", None, ROOT, 512, 4, 1, {"url": lasting_server})

    return make


@pytest.fixture
def supervise(tmp_path):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def run(load: LoadRequest):  # type: ignore[no-untyped-def]
        supervisor = Supervisor(EnginesConfig(), directory=tmp_path / "workers")
        with trio.fail_after(180):
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.run)
                supervisor.set_desired({load.model_root: load})
                yield supervisor
                nursery.cancel_scope.cancel()

    return run


async def running_in(url: str) -> float:
    """Requests that vLLM itself says it works on or has waiting."""
    server = OpenAiServer(Address(socket_path=url.removeprefix("unix:")))
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    return sum(read_values(await server.get_text("/metrics"), names).values())


async def test_a_greedy_answer_is_the_same_twice_and_has_its_facts(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        first, second = await generate(engine, ask()), await generate(engine, ask())
        assert first.text
        assert first.pieces == second.pieces
        assert first.finished == second.finished
        assert first.prefills[-1].done_tokens == first.prefills[-1].total_tokens == first.finished.tokens_in
        assert engine.facts.context_tokens == 512
        assert engine.facts.build.startswith("vllm 0.")


async def test_more_requests_than_it_decodes_together_all_end(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        answers: list[object] = []

        async def one(number: int) -> None:
            answers.append(await generate(engine, ask(f"Count from {number}.", max_tokens=12)))

        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(one, number)
        # in these numbers the model says of some that it is done, which those of the suite's other engines do not
        assert len(answers) == 9
        assert all(0 < answer.finished.tokens_out <= 12 for answer in answers)
        assert len({answer.text for answer in answers}) > 1
        assert engine.running == 0


@pytest.mark.parametrize("content", ["Tell a very long story.", SENTENCE * 20])
async def test_leaving_early_frees_the_engine(any_engine, supervise, ask, lasting_server, content):
    """At the first piece, or while the prompt is read."""
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        async with engine.generate(ask(content, max_tokens=450)) as events:
            if "long" in content:
                async for event in events:
                    if isinstance(event, Pieces):
                        break
            while await running_in(lasting_server) == 0:
                await trio.sleep(0.01)
        with trio.fail_after(30):
            while await running_in(lasting_server):
                await trio.sleep(0.01)


async def test_a_prompt_over_the_context_is_refused_and_costs_nothing(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        with pytest.raises(OctonodeError) as caught:
            await generate(engine, ask("word " * 600))
        assert caught.value.code == "CONTEXT_EXCEEDED"
        assert "512" in caught.value.message
        assert engine.running == 0
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3


@pytest.mark.parametrize("max_tokens", [10_000, 500])
async def test_an_answer_ends_where_the_context_does(any_engine, supervise, ask, generate, max_tokens):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        question = ask(SENTENCE * 22, max_tokens=max_tokens)
        answer = await generate(engine, question)
        assert answer.finished.tokens_in > 400
        assert answer.finished.tokens_in + answer.finished.tokens_out <= 512
        assert answer.finished.reason in ("length", "stop")


async def test_a_prompt_cache_is_reused_within_its_scope_alone(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)

        async def cached(scope: str) -> int:
            answer = await generate(engine, ask(SENTENCE * 15, max_tokens=2, cache_scope=scope))
            return int(answer.finished.tokens_cached)

        assert await cached("asker-a/talk-1") == 0
        assert await cached("asker-a/talk-1") > 0
        assert await cached("asker-b/talk-1") == 0
        assert await cached("asker-a/talk-1") > 0
        assert await cached("") == 0
        assert await cached("") == 0, "no scope, no reuse"


async def test_a_schema_is_kept_in_chats_and_bare_prompts(any_engine, supervise):
    schema = {"type": "object", "properties": {"n": {"enum": [41]}}, "required": ["n"], "additionalProperties": False}
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        for request in (
            GenerateRequest(({"role": "user", "content": "Say hello."},), 64, 0.0, schema=json.dumps(schema)),
            GenerateRequest((), 64, 0.0, prompt="Hello!", schema=json.dumps(schema)),
        ):
            async with engine.generate(request) as events:
                text = "".join([piece async for event in events if isinstance(event, Pieces) for piece in event.pieces])
            assert json.loads(text) == {"n": 41}


async def test_a_schema_that_is_none_is_refused(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        with pytest.raises(OctonodeError) as caught:
            await generate(engine, ask(schema='{"type": "objekt"}'))
        assert caught.value.code == "BAD_REQUEST"


@pytest.mark.parametrize("bare", [False, True])
async def test_logprobs_are_told_for_each_token(any_engine, supervise, bare):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        messages = () if bare else ({"role": "user", "content": "Tell me about the sea."},)
        request = GenerateRequest(messages, 4, 0.0, prompt="The sea" if bare else "", logprobs=3)
        pieces, tokens = [], []
        async with engine.generate(request) as events:
            async for event in events:
                if isinstance(event, Pieces):
                    pieces += event.pieces
                elif isinstance(event, Logprobs):
                    tokens += event.tokens
        assert "".join(token.text for token in tokens) == "".join(pieces)
        assert all(len(token.top) == 3 and token.logprob <= 0 for token in tokens)
        assert all(token.top[0][0] == token.text for token in tokens), "a greedy choice is the likeliest"
