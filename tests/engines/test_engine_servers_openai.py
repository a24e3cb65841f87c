"""The client of OpenAI-compatible servers against a real one: llama.cpp's own HTTP server, with SmolLM2.

The suite that every engine passes, and what is said to servers alone. `tests/vllm` runs the same against vLLM.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import GenerateRequest, LoadRequest, Logprobs, Pieces
from octonode.engines.select import load_request
from octonode.errors import ConfigError, EngineCrashed, OctonodeError
from tests.engines.test_engine_conformance import (  # noqa: F401 - collected here, over the engine of this file
    test_a_greedy_answer_is_the_same_twice_and_has_its_facts,
    test_a_long_prompt_does_not_stall_what_runs,
    test_a_pattern_that_explodes_is_held_to_or_refused_and_hangs_nothing,
    test_a_prompt_over_the_context_is_refused_and_costs_nothing,
    test_a_raw_prompt_is_gone_on_from_without_a_template,
    test_a_schema_that_is_none_is_refused_and_costs_nothing,
    test_a_stop_string_ends_the_answer_and_is_not_in_it,
    test_an_answer_by_a_schema_satisfies_it_cold_and_hot,
    test_an_answer_ends_where_the_context_does,
    test_an_answer_goes_on_from_what_the_assistant_already_said,
    test_cancelling_the_reader_cancels_a_waiting_request,
    test_each_token_comes_with_its_probability,
    test_leaving_early_cancels_decoding,
    test_leaving_early_cancels_prefill_and_the_next_is_served,
    test_max_tokens_ends_the_answer,
    test_more_requests_than_slots_all_end,
    test_pieces_join_to_whole_characters,
    test_requests_run_at_the_same_time,
    test_sampling_repeats_with_its_seed_and_not_without,
    test_too_many_requests_are_refused_and_not_queued_without_end,
    test_what_no_engine_can_run_is_refused,
)

pytestmark = [pytest.mark.process, pytest.mark.model]
ROOT = "bafy-test-root"

LLAMA_SERVER = """
import sys
import xllamacpp
model, context, parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
parameters = xllamacpp.CommonParams()
parameters.model.path = model
parameters.n_parallel, parameters.n_ctx = parallel, context * parallel
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.n_batch = parameters.n_ubatch = 32
parameters.cache_ram_mib, parameters.verbosity, parameters.ui = 0, 0, False
parameters.hostnames, parameters.port = ["127.0.0.1"], int(sys.argv[4])
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
StartServer = Callable[[int, int], str]


@pytest.fixture(scope="session")
def llama_servers(smollm2: Path, lasting_children: set[int]) -> Iterator[StartServer]:
    """URL of a llama.cpp server with this context a slot and so many slots, started at its first use."""
    running: dict[tuple[int, int], tuple[subprocess.Popen[str], str]] = {}

    def start(context: int, parallel: int) -> str:
        if (context, parallel) not in running:
            process = start_llama_server(smollm2, context, parallel)
            lasting_children.add(process.pid)
            assert process.stdout is not None
            running[context, parallel] = process, process.stdout.readline().strip()
        return running[context, parallel][1]

    yield start
    for process, _ in running.values():
        end(process)


def start_llama_server(model: Path, context: int, parallel: int, port: str = "0") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LLAMA_SERVER, str(model), str(context), str(parallel), port]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def any_engine(llama_servers: StartServer):  # type: ignore[no-untyped-def]
    def make(*, context_tokens: int = 512, parallel: int = 2, **_: object) -> LoadRequest:
        options: dict[str, str | int | float | bool] = {"url": llama_servers(context_tokens, parallel)}
        return LoadRequest("openai-server", None, ROOT, context_tokens, parallel, 1, options)

    return make


async def test_a_server_says_what_it_is(any_engine, supervise):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        assert engine.facts.engine == "openai-server"
        assert engine.facts.build.startswith("llamacpp")
        assert engine.facts.skills == ("chat",)
        status = supervisor.status()[0]
        assert status.pid == 0
        assert status.isolation == "off: a server that is not ours"


async def test_a_bare_prompt_gets_no_template(any_engine, supervise, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        request = GenerateRequest((), 6, 0.0, prompt="The capital of France is")
        answer = await generate(engine, request)
        assert "Paris" in answer.text
        assert answer.finished.tokens_in == 5


async def test_a_schema_is_kept(any_engine, supervise):
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


@pytest.mark.parametrize("schema", ["{", "[]", '{"type": "objekt"}'])
async def test_a_schema_that_is_none_is_refused(any_engine, supervise, ask, generate, schema):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        with pytest.raises(OctonodeError) as caught:
            await generate(engine, ask(schema=schema))
        assert caught.value.code == "BAD_REQUEST"
        assert engine.running == 0


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
        for token in tokens:
            assert token.logprob <= 0
            assert len(token.top) == 3
            assert token.top[0] == (token.text, pytest.approx(token.logprob)), "a greedy choice is the likeliest"


async def test_half_a_character_is_refused(any_engine, supervise, ask, generate):
    async with supervise(any_engine()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        with pytest.raises(OctonodeError) as caught:
            await generate(engine, ask("half a pair: \ud83d"))
        assert caught.value.code == "BAD_REQUEST"
        assert engine.running == 0


async def test_a_server_that_is_killed_fails_its_requests_and_is_found_again_when_it_is_back(
    smollm2, supervise, ask, generate
):
    process = start_llama_server(smollm2, 512, 2)
    assert process.stdout is not None
    url = (await trio.to_thread.run_sync(process.stdout.readline)).strip()
    load = LoadRequest("openai-server", None, ROOT, 512, 2, 1, {"url": url})
    async with supervise(load) as supervisor:
        engine = await supervisor.wait_ready(ROOT)

        def at_a_piece(event):
            if isinstance(event, Pieces):
                os.kill(process.pid, signal.SIGKILL)

        with pytest.raises(EngineCrashed) as caught:
            await generate(engine, ask("A long story.", max_tokens=400), None, at_a_piece)
        assert "does not serve any more" in caught.value.message
        end(process)
        while supervisor.status()[0].state != "starting":
            await supervisor.wait_changed(supervisor.changes)
        back = start_llama_server(smollm2, 512, 2, url.rpartition(":")[2])
        try:
            again = await supervisor.wait_ready(ROOT)
            assert (await generate(again, ask(max_tokens=3))).finished.tokens_out == 3
            assert supervisor.status()[0].crashes == 1
        finally:
            end(back)
    assert not psutil.pid_exists(process.pid)


@pytest.mark.parametrize("name", ["demo/model", "bafy-root"])
def test_a_model_of_this_node_can_be_answered_for_by_a_server(name):
    settings = EnginesConfig(servers=("other=http://127.0.0.1:1", f"{name}=http://127.0.0.1:8080/v1"))
    asked = {"model_root": "bafy-root", "model_path": None, "model_format": "gguf", "model_name": "demo/model"}
    load = load_request(settings, **asked)
    assert (load.engine, load.options["url"]) == ("openai-server", "http://127.0.0.1:8080/v1")


@pytest.mark.parametrize(
    "entry", ["bafy-root", "=http://127.0.0.1:1", "bafy-root=ftp://127.0.0.1", "bafy-root=http://8.8.8.8"]
)
def test_a_server_that_is_none_or_far_away_is_no_setting(entry):
    with pytest.raises(ConfigError):
        load_request(EnginesConfig(servers=(entry,)), model_root="bafy-root", model_path=None, model_format="gguf")
