"""What a machine has free and what models need, from readings of drivers and headers of models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from octonode.config import Config, EnginesConfig
from octonode.config_engines import VllmConfig
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.engines.placement import RAM, Model, Seat, Shortage, Space, World, plan
from octonode.engines.supervisor import WorkerStatus
from octonode.hardware.facts import Gpu, GpuPartition
from octonode.hardware.live import Reading
from octonode.models.formats import CacheGroup, FormatInfo, Shape
from octonode.models.requirements import GPU_PROCESS_BYTES, PROCESS_BYTES, SERVER_BYTES
from octonode.node import seating
from octonode.node.seating import MachineMemory, server_devices, server_machines
from octonode.tasks.resident import ResolvedModel

GB = 10**9
SHAPE = Shape(parameters=8 * GB, layers=32, vocab=128_000, embedding=4096, caches=(CacheGroup(32, 1024, 1024),))
INFO = FormatInfo("gguf", weights_bytes=5 * GB, shape=SHAPE, context_tokens=8192, quantization="Q4_K_M")
MODEL = ResolvedModel("m", "gguf", size_bytes=5 * GB)
LOAD = LoadRequest("llama", None, "m", context_tokens=2048, parallel=2)
FACTS = EngineFacts("llama", "1", "cpu", "", 2048, 2, "Q4_K_M")
GPU = Gpu("nvidia", 0, "L40S", memory_bytes=48 * GB, memory_used_bytes=30 * GB)


def worker(root: str, **rest: object) -> WorkerStatus:
    status = WorkerStatus(
        model_root=root, engine="llama", state="ready", reason="", pid=0, running=0, crashes=0, resident_bytes=0,
        gpu_bytes=0, devices=(), sandbox=(), isolation="full", facts=None,
    )  # fmt: skip
    return replace(status, **rest)  # type: ignore[arg-type]


class Surroundings:
    """Gate, workers and drivers, with what a test puts in."""

    def __init__(self, *gpus: Gpu) -> None:
        self.reading = Reading(gpus, {7: 1})
        self.workers: list[WorkerStatus] = []
        self.noted: list[Mapping[int, int]] = []
        self.found = INFO

    async def info(self, root: str) -> FormatInfo:
        return self.found

    async def read(self) -> Reading:
        return self.reading

    def note_gpu_memory(self, by_process: Mapping[int, int]) -> None:
        self.noted.append(by_process)

    def status(self) -> list[WorkerStatus]:
        return self.workers

    def memory(self, settings: EnginesConfig = EnginesConfig(), **devices: int) -> MachineMemory:  # noqa: B008
        return MachineMemory(gate=self, workers=self, gpus=self, settings=settings, server_devices=devices)


def sits(space: str, size_bytes: int) -> Seat:
    return Seat(((space, size_bytes),))


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


async def test_what_our_own_processes_hold_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    around = Surroundings(GPU)
    around.workers = [worker("a", gpu_bytes=12 * GB), worker("gone", gpu_bytes=3 * GB)]
    gpu, _ = await around.memory().spaces({"a": sits("cuda:0", 10 * GB)})
    assert gpu == Space("cuda:0", 48 * GB, 18 * GB, "cuda"), "what has no seat any more counts as others'"
    assert around.noted == [{7: 1}]


async def test_in_a_container_the_seat_stands_for_what_no_driver_tells() -> None:
    around = Surroundings(GPU)
    around.workers = [worker("a"), worker("b", state="starting")]
    gpu, _ = await around.memory().spaces({"a": sits("cuda:0", 10 * GB), "b": sits("cuda:0", 5 * GB)})
    assert gpu.others_bytes == 20 * GB, "one that is being loaded may hold nothing yet"


async def test_a_process_on_two_gpus_is_shared_out_as_it_sits() -> None:
    around = Surroundings(GPU, replace(GPU, index=1))
    around.workers = [worker("a", gpu_bytes=40 * GB)]
    first, second, _ = await around.memory().spaces({"a": Seat((("cuda:0", 10 * GB), ("cuda:1", 30 * GB)))})
    assert (first.others_bytes, second.others_bytes) == (20 * GB, 0)


async def test_mig_instances_are_spaces_that_stand_alone() -> None:
    parts = (GpuPartition("MIG-1", "3g", 40 * GB, 1 * GB),)
    around = Surroundings(replace(GPU, partitioned=True, partitions=parts))
    assert (await around.memory().spaces({}))[0] == Space("cuda:MIG-1", 40 * GB, 1 * GB, "cuda", alone=True)


async def test_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seating, "memory", lambda: (64 * GB, 50 * GB))
    around = Surroundings()
    own = psutil.Process(os.getpid()).memory_info()
    (ram,) = await around.memory().spaces({})
    assert ram == Space(RAM, 64 * GB, 14 * GB)
    around.workers = [worker("a", pid=os.getpid()), worker("b", pid=2**22 + 1)]
    (ram,) = await around.memory().spaces({"a": sits(RAM, GB), "b": sits(RAM, GB), "c": sits(RAM, GB)})
    assert own.rss - own.shared > 0
    assert 14 * GB - 2 * own.rss < ram.others_bytes < 14 * GB, "our own process was counted out"


async def test_a_model_needs_weights_cache_and_what_its_engine_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seating, "gpu_kinds", lambda engine, *, elsewhere: ("cuda",))
    cache = 2 * 32 * 2048 * 2048 * 2
    token = 4 * (128_000 + 4096)
    need = await Surroundings().memory().need(MODEL, LOAD)
    assert need == Model(
        "m",
        gpu_bytes=5 * GB + cache + 512 * token + GPU_PROCESS_BYTES,
        ram_bytes=5 * GB + cache + 64 * token + PROCESS_BYTES,
        kinds=("cuda",),
        device_bytes=GPU_PROCESS_BYTES,
    )


async def test_an_engine_built_for_the_cpu_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seating, "gpu_kinds", lambda engine, *, elsewhere: ())
    need = await Surroundings(GPU).memory().need(MODEL, LOAD)
    assert (need.gpu_bytes, need.kinds) == (None, ())
    assert need.ram_bytes is not None


async def test_what_an_engine_really_used_counts_more_than_its_package() -> None:
    around = Surroundings(GPU)
    memory = around.memory()
    around.workers = [worker("x", facts=replace(FACTS, backend="cuda0,cpu"))]
    await memory.spaces({})
    assert (await memory.need(MODEL, LOAD)).kinds == ("cuda",)
    around.workers = [worker("x", facts=FACTS)]
    await memory.spaces({})
    assert (await memory.need(MODEL, LOAD)).kinds == ()


async def test_a_server_takes_gpus_whole_as_many_as_it_is_configured_for() -> None:
    around = Surroundings(GPU)
    around.found = replace(INFO, format="safetensors")
    load = replace(LOAD, engine="vllm")
    need = await around.memory(EnginesConfig(pythons=("vllm=/somewhere/python",)), vllm=4).need(MODEL, load)
    assert (need.exclusive, need.devices_min, need.devices_max) == (True, 4, 4)
    assert "cuda" in need.kinds
    assert need.gpu_bytes is not None
    assert need.gpu_bytes > 5 * GB + SERVER_BYTES


async def test_of_a_model_over_two_machines_this_one_must_hold_its_half_alone(tmp_path: Path) -> None:
    """docs/vllm-ray.md: 120 GB of weights, and two GPUs of 48 GB at each end."""
    around = Surroundings(replace(GPU, memory_used_bytes=0), replace(GPU, index=1, memory_used_bytes=0))
    around.found = replace(INFO, format="safetensors", weights_bytes=120 * GB)
    load = replace(LOAD, engine="vllm", context_tokens=8192, parallel=64)
    ray = VllmConfig(tensor_parallel_size=2, pipeline_parallel_size=2, distributed_executor_backend="ray")
    config = Config(tmp_path, vllm=ray)
    memory = MachineMemory(
        gate=around, workers=around, gpus=around, settings=EnginesConfig(pythons=("vllm=/somewhere/python",)),
        server_devices=server_devices(config), server_machines=server_machines(config),
    )  # fmt: skip
    need = await memory.need(MODEL, load)
    assert need.gpu_bytes is not None
    assert 60 * GB + SERVER_BYTES < need.gpu_bytes < 65 * GB, "the cache of one context, not of 64"
    seat = plan(World(await memory.spaces({}), (replace(need, asked=True),))).seats["m"]
    assert seat.devices == ("cuda:0", "cuda:1")


def test_the_gpus_of_a_server_are_those_of_this_machine(tmp_path: Path) -> None:
    alone = Config(tmp_path, vllm=VllmConfig(tensor_parallel_size=2, pipeline_parallel_size=3))
    assert server_devices(alone) == {"vllm": 6, "tensorrt-llm": 1}
    ray = replace(alone, vllm=replace(alone.vllm, distributed_executor_backend="ray"))
    assert server_devices(ray)["vllm"] == 2


async def test_a_server_that_is_not_ours_takes_nothing() -> None:
    assert await Surroundings(GPU).memory().need(MODEL, replace(LOAD, engine="openai-server")) == Model(
        "m", ram_bytes=0
    )


async def test_the_scripted_engine_reads_nothing() -> None:
    need = await Surroundings().memory().need(replace(MODEL, size_bytes=10**15), replace(LOAD, engine="scripted"))
    assert need == Model("m", ram_bytes=PROCESS_BYTES)


async def test_what_would_fit_instead_is_judged_by_what_is_free() -> None:
    memory = Surroundings().memory()
    info = replace(INFO, weights_bytes=16 * GB, quantization="F16")
    around = Surroundings()
    around.found = info
    fit = await around.memory().fit(MODEL, LOAD, Shortage("too_large", "ram", 18 * GB, 10 * GB))
    assert fit.smaller[0] == "Q8_0"
    fit = await memory.fit(MODEL, LOAD, Shortage("held", "gpu", 7 * GB, 6 * GB))
    assert 0 < fit.largest_context_tokens < LOAD.context_tokens
