"""The parts of servers that need none: dialects, refusals, metrics, addresses and settings."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from octonode.config import load
from octonode.config_engines import TensorRtConfig, VllmConfig
from octonode.engines.calls import Call
from octonode.engines.contract import EngineFacts, Finished, GenerateRequest
from octonode.engines.servers import requests
from octonode.engines.servers.attached import address_of
from octonode.engines.servers.dialects import BY_OWNER, LLAMA, PLAIN, TENSORRT_LLM, VLLM, body_of, logprobs_of
from octonode.engines.servers.facts import Seen
from octonode.engines.servers.openai_http import Address, OpenAiServer, ServerLost, refusal
from octonode.engines.servers.prometheus import read_values
from octonode.engines.servers.tensorrt_llm import TensorRtServer
from octonode.engines.servers.vllm import VllmServer
from octonode.engines.servers.weights import quantization_in
from octonode.errors import ConfigError, OctonodeError
from octonode.testing.trtllm_serve import FIELDS

USER = ({"role": "user", "content": "hi"},)
SAID = (*USER, {"role": "assistant", "content": "Hel"})


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (
            400,
            {"error": {"message": "This model's maximum context length is 512 tokens.", "code": 400}},
            "CONTEXT_EXCEEDED",
        ),
        (400, {"error": {"message": "too much", "param": "input_tokens"}}, "CONTEXT_EXCEEDED"),
        (400, {"error": {"message": "x", "type": "exceed_context_size_error"}}, "CONTEXT_EXCEEDED"),
        (400, {"object": "error", "message": "should not exceed max_seq_len (9)"}, "CONTEXT_EXCEEDED"),
        (400, {"object": "error", "message": "no such role"}, "BAD_REQUEST"),
        (422, {"detail": [{"msg": "Field required"}]}, "BAD_REQUEST"),
        (401, {"error": "Unauthorized"}, "ENGINE_FAILED"),
        (429, {}, "OVERLOADED"),
        (503, {"error": {"message": "Loading model"}}, "OVERLOADED"),
        (500, {"error": {"message": "EngineCore died"}}, "ENGINE_FAILED"),
        (404, {"detail": "Not Found"}, "ENGINE_FAILED"),
    ],
)
def test_what_a_server_refuses_has_a_code_of_ours(status, body, code):
    error = refusal(status, json.dumps(body).encode())
    assert error.code == code
    assert isinstance(error, ServerLost) == (status in (404, 500))
    assert len(error.message) < 300


def test_a_server_s_words_are_cut_and_printable():
    error = refusal(400, json.dumps({"error": {"message": "bad \x1b[31m" + "secret " * 100}}).encode())
    assert error.message.isprintable()
    assert len(error.message) < 300


@pytest.mark.parametrize("dialect", [VLLM, LLAMA, TENSORRT_LLM, PLAIN])
def test_a_request_is_written_for_each_kind(dialect):
    request = GenerateRequest(USER, 7, 0.5, 0.9, seed=-1, stop=("x",), schema='{"type": "object"}', logprobs=-1)
    body = body_of(request, "m", 512, dialect)
    assert body["max_tokens"] == 7
    assert 0 <= body["seed"] < 2**32
    if dialect is LLAMA:
        assert body["grammar"].startswith("root ::=")
    else:
        assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (body["logprobs"], body["top_logprobs"]) == (True, 0 if dialect is VLLM else 1)
    assert "max_tokens" not in body_of(GenerateRequest(USER, 512), "m", 512, dialect), "what fits, and no more"
    any_object = body_of(GenerateRequest(USER, 9, schema="{}"), "m", 512, dialect)
    assert "grammar" in any_object or any_object["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize("dialect", BY_OWNER.values())
def test_prompt_caches_of_two_askers_never_meet(dialect):
    scoped, other, none = (
        body_of(GenerateRequest(USER, 7, cache_scope=scope), "m", 512, dialect) for scope in ("a/@\0" * 99, "b", "")
    )
    if dialect is VLLM:
        assert len(scoped["cache_salt"]) <= 128
        assert scoped["cache_salt"].isalnum(), "vLLM takes no others"
        assert len({scoped["cache_salt"], other["cache_salt"], none["cache_salt"]}) == 3
        assert none["cache_salt"] != body_of(GenerateRequest(USER, 7), "m", 512, dialect)["cache_salt"]
    elif dialect is LLAMA:
        assert scoped["cache_prompt"] is False
    else:
        assert "cache_salt" not in scoped, "its cache is off: see the file that it is started with"


def test_nothing_goes_to_tensorrt_llm_that_it_forbids():
    request = GenerateRequest(USER, 7, seed=1, stop=("x",), cache_scope="a", schema="{}", logprobs=2)
    assert set(body_of(request, "m", 512, TENSORRT_LLM)) <= FIELDS["/v1/chat/completions"]
    bare = GenerateRequest((), 7, seed=1, stop=("x",), prompt="hi", schema="{}", logprobs=2)
    assert set(body_of(bare, "m", 512, TENSORRT_LLM)) <= FIELDS["/v1/completions"]


@pytest.mark.parametrize("dialect", [TENSORRT_LLM, PLAIN])
def test_what_a_kind_cannot_do_is_said(dialect):
    with pytest.raises(OctonodeError) as caught:
        body_of(GenerateRequest(SAID, 7), "m", 512, dialect)
    assert caught.value.code == "UNSUPPORTED"
    if dialect is PLAIN:
        with pytest.raises(OctonodeError):
            body_of(GenerateRequest((), 7, prompt="hi", schema="{}"), "m", 512, dialect)


def test_both_shapes_of_logprobs_are_read():
    top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2}]
    chat = {"logprobs": {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": top}]}}
    bare = {"logprobs": {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"b": -2, "a": -0.1}]}}
    assert logprobs_of(chat, 2) == logprobs_of(bare, 2)
    assert logprobs_of(bare, 2)[0].top == (("a", -0.1), ("b", -2.0))
    assert logprobs_of(bare, 0)[0].top == ()
    assert logprobs_of({"logprobs": None}, 2) == ()


class Telling(OpenAiServer):
    """A server that answers whatever it is asked with these events."""

    def __init__(self, *events: dict[str, Any]) -> None:
        super().__init__(Address(socket_path="/nowhere"))
        self._events = list(events)

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        yield self._events


class Deaf:
    """The line of a call that nobody reads."""

    def open_call(self, call: Call) -> None: ...

    def close_call(self, call: Call) -> None: ...


SAID_ALL = {"choices": [{"delta": {"content": "hello"}, "finish_reason": "stop"}]}


async def run_over(*events: dict[str, Any]) -> Finished:
    facts = EngineFacts("openai-server", "", "cpu", "", 512, 1, "")
    request = GenerateRequest(USER, 7)
    seen = Seen(facts, PLAIN, "m", ())
    return await requests.run(Call(Deaf(), request, facts), request, Telling(*events), seen, lambda: None)


async def test_tokens_are_counted_as_the_server_says_else_by_its_events():
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    assert await run_over(SAID_ALL, {"usage": usage}) == Finished("stop", 3, 2, 1)
    assert await run_over(SAID_ALL) == Finished("stop", 0, 1)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 3, "completion_tokens": None},
        {"prompt_tokens": math.inf},
        {"prompt_tokens": 3, "prompt_tokens_details": [1]},
        [3, 2],
    ],
)
async def test_a_count_of_another_shape_is_a_lost_server_and_no_bug_of_ours(usage):
    with pytest.raises(ServerLost):
        await run_over(SAID_ALL, {"usage": usage})


def test_metrics_are_summed_over_labels():
    text = '# HELP a b\na{x="1 }",y="2"} 3.0\na{x="2"} 4 1700000000\nab 9\nb 5\nc{} nan\n'
    assert read_values(text, ("a", "b", "z")) == {"a": 7.0, "b": 5.0}
    for text in ("a x", "a", 'a{b="c"}'):
        with pytest.raises(ValueError):
            read_values(text, ("a",))


def test_vllm_s_metrics_are_read():
    text = (
        'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:iteration_tokens_total_count{engine="0"} 12.0\n'
    )
    told = VllmServer(VllmConfig(), "").read_metrics(text)
    assert told is not None
    assert (told.running, told.waiting, told.cache_usage, told.steps) == (2, 1, 0.25, 12.0)
    with pytest.raises(ValueError):
        VllmServer(VllmConfig(), "").read_metrics("up 1")


def test_tensorrt_llm_s_metrics_are_read():
    server = TensorRtServer(TensorRtConfig(), "")
    assert server.read_metrics("[]") is None
    rows = [{"iter": 7, "numActiveRequests": 3, "kvCacheStats": {"maxNumBlocks": 8, "usedNumBlocks": 2}}]
    told = server.read_metrics(json.dumps(rows))
    assert told is not None
    assert (told.running, told.cache_usage, told.steps) == (3, 0.25, 7.0)
    for text in ("{}", "nothing", '[{"iter": null}]', '[{"kvCacheStats": [1]}]', '[{"numActiveRequests": Infinity}]'):
        with pytest.raises(ValueError):
            server.read_metrics(text)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ('{"quantization_config": {"quant_method": "awq"}, "torch_dtype": "float16"}', "awq"),
        ('{"torch_dtype": "float16"}', "float16"),
        ('{"dtype": "bfloat16"}', "bfloat16"),
        ("[]", ""),
        ("not JSON", ""),
    ],
)
def test_a_model_says_how_it_is_quantized(tmp_path, document, told):
    (tmp_path / "config.json").write_text(document, encoding="utf-8")
    assert quantization_in(tmp_path) == told


def test_sections_with_an_underscore_can_be_set_by_variables(tmp_path):
    environ = {"OCTONODE_TENSORRT_LLM_BACKEND": "x", "OCTONODE_VLLM_DTYPE": "float32"}
    config = load(home=tmp_path, environ=environ)
    assert (config.tensorrt_llm.backend, config.vllm.dtype) == ("x", "float32")


@pytest.mark.parametrize(
    ("url", "address", "key"),
    [
        ("unix:/run/llama.sock", Address(socket_path="/run/llama.sock"), ""),
        ("http://127.0.0.1:8080", Address(host="127.0.0.1", port=8080), ""),
        ("http://localhost/v1/", Address(host="localhost", port=80), ""),
        ("http://sk-1@10.1.2.3:8000/llm/v1", Address(host="10.1.2.3", port=8000, prefix="/llm"), "sk-1"),
        ("https://[fd00::1]:9", Address(host="fd00::1", port=9, tls=True), ""),
    ],
)
def test_an_address_is_read(url, address, key):
    assert address_of(url) == (address, key)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:80", "ftp://127.0.0.1", "ftp://127.0.0.1:21", "http://127.0.0.1:1/#a",
     "http://8.8.8.8", "http://example.org", "http://0.0.0.0:1", "http://127.1:1",
     "http://127.0.0.1:99999", "http://224.0.0.1:1", "http://127.0.0.1:1/?a=b"],
)  # fmt: skip
def test_an_address_that_could_lead_anywhere_is_refused(url):
    with pytest.raises(ConfigError):
        address_of(url)


async def test_nobody_there_is_a_lost_server(tmp_path):
    server = OpenAiServer(Address(socket_path=str(tmp_path / "none")))
    with pytest.raises(ServerLost):
        await server.get("/v1/models")
    assert await server.health() == "silent"


async def test_a_schema_too_deep_to_be_written_is_refused_at_whatever_depth(tmp_path):
    """Some are read whole and cannot be written again, with what goes around them."""
    server = OpenAiServer(Address(socket_path=str(tmp_path / "none")))
    codes = set()
    for depth in range(800, 1010):
        request = GenerateRequest(USER, 7, schema='{"not": ' * depth + "{}" + "}" * depth)
        try:
            body = body_of(request, "m", 512, VLLM)
            async with aclosing(server.stream("/v1/chat/completions", body)) as reads:
                [_ async for _ in reads]
        except OctonodeError as error:
            codes.add(error.code)
    assert codes == {"BAD_REQUEST", "ENGINE_FAILED"}  # the latter: it was written, and nobody is there
