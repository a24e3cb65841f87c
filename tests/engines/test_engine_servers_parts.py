"""The parts of servers that need none: bytes, dialects, command lines, settings, and the keeper over a shell."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from octonode.config import load
from octonode.config_engines import TensorRtConfig, VllmConfig
from octonode.engines.contract import GenerateRequest, LoadRequest
from octonode.engines.http_response import BODY_BYTES_MAX, EventReader, ResponseReader
from octonode.engines.servers.attached import address_of
from octonode.engines.servers.dialects import BY_OWNER, LLAMA, PLAIN, TENSORRT_LLM, VLLM, body_of, logprobs_of
from octonode.engines.servers.openai_http import Address, OpenAiServer, ServerLost, refusal
from octonode.engines.servers.prometheus import read_values
from octonode.engines.servers.tensorrt_llm import TensorRtServer
from octonode.engines.servers.vllm import VllmServer, quantization_in
from octonode.errors import ConfigError, OctonodeError
from octonode.testing.trtllm_serve import FIELDS

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
SIZED = b"HTTP/1.1 404 Not Found\r\nContent-Length:11\r\n\r\nhello world"
OPEN = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello world"
PYTHON = sys.executable
"""Stands for one that has vLLM; it is not started."""
USER = ({"role": "user", "content": "hi"},)
SAID = (*USER, {"role": "assistant", "content": "Hel"})


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % len(data) for place in places)})
    return [data[left:right] for left, right in itertools.pairwise(edges)]


@given(st.sampled_from([(CHUNKED, 200), (SIZED, 404), (OPEN, 200)]), st.lists(st.integers(0, 200), max_size=8))
def test_a_response_is_the_same_however_its_bytes_are_cut(response, places):
    data, status = response
    reader = ResponseReader()
    body = b"".join(reader.feed(part) for part in cut(b"HTTP/1.1 100 Continue\r\n\r\n" + data, places))
    assert reader.end()
    assert (reader.status, body) == (status, b"hello world")


@pytest.mark.parametrize("data", [CHUNKED[:-5], SIZED[:-1], CHUNKED[:20]])
def test_a_response_that_is_cut_off_is_not_whole(data):
    reader = ResponseReader()
    reader.feed(data)
    assert not reader.end()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 20_000,
        b"x" * 20_000,
    ],
)
def test_what_is_no_such_response_is_refused(data):
    with pytest.raises(ValueError):
        ResponseReader().feed(data)


@given(st.lists(st.integers(0, 200), max_size=8))
def test_events_are_the_same_however_their_bytes_are_cut(places):
    data = b': hello\n\ndata: {"a": 1}\n\nevent: x\nid: 3\ndata: one\ndata: two\r\n\r\nerror: bad\n\n'
    data += b"data: [DONE]\n\ndata: cut"
    reader = EventReader()
    values = [value for part in cut(data, places) for value in reader.feed(part)]
    assert values == [b'{"a": 1}', b"one\ntwo", b"bad", b"[DONE]"]


@pytest.mark.parametrize("data", [b"x" * (BODY_BYTES_MAX + 1), b"data: " + b"y" * 1024 + b"\n"])
def test_an_event_without_an_end_is_refused(data):
    reader = EventReader()

    def feed_for_ever() -> None:
        for _ in range(BODY_BYTES_MAX // 1024 + 2):
            reader.feed(data)

    with pytest.raises(ValueError):
        feed_for_ever()


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
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (body["logprobs"], body["top_logprobs"]) == (True, 0)
    assert "max_tokens" not in body_of(GenerateRequest(USER, 512), "m", 512, dialect), "what fits, and no more"
    assert body_of(GenerateRequest(USER, 9, schema="{}"), "m", 512, dialect)["response_format"] == {
        "type": "json_object"
    }


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


def test_metrics_are_summed_over_labels():
    text = '# HELP a b\na{x="1 }",y="2"} 3.0\na{x="2"} 4 1700000000\nab 9\nb 5\nc{} nan\n'
    assert read_values(text, ("a", "b", "z")) == {"a": 7.0, "b": 5.0}
    with pytest.raises(ValueError):
        read_values("a x", ("a",))


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
    for text in ("{}", "nothing"):
        with pytest.raises(ValueError):
            server.read_metrics(text)


def launched(settings: VllmConfig, directory: Path, monkeypatch, **environment: str):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = VllmServer(settings, PYTHON)
    return trio.run(server.launch, LoadRequest("vllm", directory, "r", 4096, 8), directory)


def test_vllm_s_command_line_says_what_the_settings_say(tmp_path, monkeypatch):
    settings = VllmConfig(
        dtype="float16",
        sequences_max=32,
        tensor_parallel_size=4,
        pipeline_parallel_size=2,
        distributed_executor_backend="ray",
        ray_address="10.0.0.1:6379",
        quantization="fp8",
        speculative_ngram_tokens=4,
        enable_prefix_caching=False,
        enforce_eager=True,
        cache_directory="/var/cache/vllm",
        extra_arguments=("--seed", "3"),
    )
    given_environment = {"VLLM_API_KEY": "k", "NCCL_DEBUG": "INFO", "AWS_SECRET_ACCESS_KEY": "s"}
    launch = launched(settings, tmp_path, monkeypatch, **given_environment)
    text = " ".join(launch.command)
    for part in (
        f"--model {tmp_path} ",
        "--uds http.sock",
        "--dtype float16",
        "--max-model-len 4096",
        "--max-num-seqs 32",
        "--tensor-parallel-size 4",
        "--pipeline-parallel-size 2",
        "--distributed-executor-backend ray",
        "--quantization fp8",
        '"num_speculative_tokens": 4',
        "--no-enable-prefix-caching",
        "--enforce-eager",
    ):
        assert part in text
    assert launch.command[:4] == (PYTHON, "-P", "-m", "vllm.entrypoints.openai.api_server")
    assert launch.command[-2:] == ("--seed", "3")
    assert launch.parallel == 32
    environment = launch.environment
    assert environment["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert environment["NCCL_DEBUG"] == "INFO"
    assert environment["VLLM_CACHE_ROOT"] == "/var/cache/vllm"
    assert environment["PATH"].startswith(f"{Path(PYTHON).parent}:")
    assert not {"VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY", "GLOO_SOCKET_IFNAME"} & set(environment)


@pytest.mark.parametrize(
    ("tensor_parallel", "devices", "seen"),
    [(1, ("cuda:1",), "1"), (2, ("cuda:1",), None), (2, ("cuda:0", "cuda:1"), "0,1"), (2, ("cpu",), "")],
)
def test_vllm_sees_the_gpus_of_its_model_or_as_many_as_it_is_told_to_take(
    tmp_path, monkeypatch, tensor_parallel, devices, seen
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    server = VllmServer(VllmConfig(tensor_parallel_size=tensor_parallel), PYTHON)
    load_request = LoadRequest("vllm", tmp_path, "r", devices=devices)
    launch = trio.run(server.launch, load_request, tmp_path)
    assert launch.environment.get("CUDA_VISIBLE_DEVICES") == seen


def test_vllm_on_one_machine_stays_on_loopback(tmp_path, monkeypatch):
    launch = launched(VllmConfig(), tmp_path, monkeypatch)
    assert launch.environment["GLOO_SOCKET_IFNAME"] == launch.environment["NCCL_SOCKET_IFNAME"] == "lo"
    assert launch.environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert launch.address.socket_path == str(tmp_path / "http.sock")
    assert "--host" not in launch.command
    assert launch.parallel == 8


def test_an_interpreter_that_is_not_there_is_told(tmp_path):
    server = VllmServer(VllmConfig(), str(tmp_path / "python"))
    with pytest.raises(ConfigError) as caught:
        trio.run(server.launch, LoadRequest("vllm", tmp_path, "r"), tmp_path)
    assert "engines.pythons" in caught.value.message


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (VllmConfig(distributed_executor_backend="ray"), "vllm.ray_address"),
        (VllmConfig(tensor_parallel_size=0), "tensor_parallel_size"),
        (VllmConfig(gpu_memory_utilization=1.5), "gpu_memory_utilization"),
    ],
)
def test_settings_that_vllm_would_die_of_are_refused_first(tmp_path, monkeypatch, settings, names):
    with pytest.raises(ConfigError) as caught:
        launched(settings, tmp_path, monkeypatch)
    assert names in caught.value.message


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
    ["", "localhost:80", "ftp://127.0.0.1", "http://8.8.8.8", "http://example.org", "http://0.0.0.0:1", "http://127.1:1",
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


KEEPER = (sys.executable, "-P", "-m", "octonode.engines.servers.keeper")


def keep(directory: Path, script: str, grace: str = "0.3") -> subprocess.Popen[bytes]:
    directory.mkdir()
    command = [*KEEPER, grace, str(directory), "/bin/sh", "-c", script]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -SEGV $$", -signal.SIGSEGV)])
def test_a_keeper_ends_as_its_server_did_and_takes_the_rest_along(tmp_path, script, status):
    keeper = keep(tmp_path / "own", f"setsid sleep 1000 & echo $!; {script}")
    assert keeper.stdout is not None
    assert keeper.stdin is not None
    with keeper.stdin, keeper.stdout:
        output = keeper.stdout.read()  # until nobody holds it any more
    assert keeper.wait() == status
    assert not os.path.exists(f"/proc/{int(output)}")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("how", ["pipe", "signal", "byte"])
def test_a_keeper_that_is_told_to_end_ends_a_server_that_will_not(tmp_path, how):
    keeper = keep(
        tmp_path / "own", 'trap "" TERM; echo $$; while :; do sleep 1; done', "600" if how == "byte" else "0.3"
    )
    assert keeper.stdout is not None
    assert keeper.stdin is not None
    server = int(keeper.stdout.readline())
    if how == "signal":
        keeper.terminate()
    else:
        keeper.stdin.write(b"k" if how == "byte" else b"")
        keeper.stdin.close()
    guard = threading.Timer(30, keeper.kill)
    guard.start()
    assert keeper.wait() == -signal.SIGKILL
    guard.cancel()
    keeper.stdout.close()
    if not keeper.stdin.closed:
        keeper.stdin.close()
    assert not os.path.exists(f"/proc/{server}")
    assert not (tmp_path / "own").exists()
