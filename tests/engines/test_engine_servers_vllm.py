"""How vLLM is started: its command line, its environment, and the settings that it would die of. It is not run here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from octonode.config_engines import VllmConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.servers.vllm import VllmServer
from octonode.errors import ConfigError

PYTHON = sys.executable
"""Stands for one that has vLLM; it is not started."""


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


@pytest.mark.parametrize(("threads", "reserved"), [(1, "7"), (6, "2"), (8, "0"), (64, "0")])
def test_vllm_on_a_cpu_leaves_the_cores_free_that_the_settings_do_not_give_it(tmp_path, monkeypatch, threads, reserved):
    monkeypatch.setattr("octonode.engines.servers.vllm.physical_cores", lambda: 8)
    load_request = LoadRequest("vllm", tmp_path, "r", threads=threads)
    launch = trio.run(VllmServer(VllmConfig(), PYTHON).launch, load_request, tmp_path)
    assert launch.environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] == reserved


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
