"""What every engine on torch shares: settings of the libraries, the device and its number format, faults in words."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octonode.engines.contract import LoadRequest
from octonode.engines.select import BY_NAME
from octonode.errors import ConfigError, OctonodeError

CONFIG_BYTES_MAX: Final = 4 << 20
DTYPES: Final = ("float32", "float16", "bfloat16")
_LASTING: Final = (ValueError, KeyError, TypeError, AttributeError, ImportError)
_QUIET: Final = {
    "TORCHDYNAMO_DISABLE": "1",  # a compiler would start programs, which a worker may not
    "TORCH_COMPILE_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DIFFUSERS_VERBOSITY": "error",  # warnings of theirs quote prompts
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "USE_TF": "0",
    "USE_FLAX": "0",
}


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    """As torch calls it: `cuda` (AMD's too), `mps`, `cpu`."""
    backend: str
    """As we call it: `cuda`, `rocm`, `mps`, `cpu`."""
    dtype: str
    """One of DTYPES."""
    title: str
    """The GPU's name, or the processor's kind."""
    instruction_set: str


def open_torch(request: LoadRequest) -> tuple[Any, Device]:
    """(torch, where it shall compute). Raises ConfigError when it is not installed or cannot be imported."""
    os.environ.update(_QUIET, TORCHINDUCTOR_CACHE_DIR=os.getcwd())  # the only place that a worker may write to
    torch = imported(request.engine, lambda: __import__("torch"))
    torch.set_num_threads(request.threads)
    torch.set_num_interop_threads(1)
    return torch, device_of(torch, request.options)


def imported(engine: str, load: Callable[[], Any]) -> Any:
    """What `load` imports. Raises ConfigError that says what to install."""
    try:
        return load()
    except ImportError as error:
        extra = BY_NAME[engine].extra
        raise ConfigError(f"the engine {engine} cannot be imported ({error}); run: pip install '{extra}'") from error


def device_of(torch: Any, options: Mapping[str, object]) -> Device:
    """The fastest device that there is. The option `dtype` sets another number format. Raises ConfigError."""
    asked = str(options.get("dtype", "auto"))
    if asked not in ("auto", *DTYPES):
        raise ConfigError(f"dtype = {asked!r} is none of auto, {', '.join(DTYPES)}")
    if torch.cuda.is_available():
        backend = "rocm" if getattr(torch.version, "hip", None) else "cuda"
        dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        name, title, instructions = "cuda", torch.cuda.get_device_name(0), _compute_capability(torch)
    elif torch.backends.mps.is_available():
        name, backend, dtype, title, instructions = "mps", "mps", "float16", platform.machine(), ""
    else:
        name, backend, dtype, title = "cpu", "cpu", "float32", platform.machine()
        instructions = torch.backends.cpu.get_cpu_capability()
    return Device(name, backend, dtype if asked == "auto" else asked, title, instructions)


def _compute_capability(torch: Any) -> str:
    major, minor = torch.cuda.get_device_capability(0)
    return f"{major}.{minor}"


def model_folder(request: LoadRequest, engine: str, *needed: str) -> Path:
    """The directory of the model with `needed` in it. Raises ConfigError or OctonodeError FORMAT_REFUSED."""
    folder = request.model_path
    if folder is None:
        raise ConfigError(f"the engine {engine} needs the directory of a model")
    for name in needed:
        if not (folder / name).is_file():
            raise OctonodeError(
                f"the engine {engine} opens a directory with {name} in it, which is not there; add the whole directory",
                code="FORMAT_REFUSED",
            )
    return folder


def read_json(path: Path) -> Any:
    """The document beside the weights; None where there is none. Raises OctonodeError FORMAT_REFUSED."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return json.loads(file.read(CONFIG_BYTES_MAX))
    except (OSError, ValueError, RecursionError) as error:
        text = f"{path.name} cannot be read ({type(error).__name__}); fetch the model again"
        raise OctonodeError(text, code="FORMAT_REFUSED") from None


def read_config(path: Path) -> dict[str, Any]:
    """The same for an object, empty where there is none."""
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise OctonodeError(f"{path.name} is no JSON object; fetch the model again", code="FORMAT_REFUSED")
    return value or {}


def load_failed(error: Exception) -> OctonodeError:
    """What went wrong while a library read the files of a model: FORMAT_REFUSED for what another try would not mend."""
    if isinstance(error, OctonodeError):
        return error
    if out_of_memory(error):
        text = "the model does not fit into the memory of its device; take a smaller or a quantized one"
        return OctonodeError(text, code="ENGINE_FAILED")
    text = f"the model cannot be loaded ({type(error).__name__}: {str(error)[:300]}); try: octonode models verify"
    lasting = isinstance(error, _LASTING) or type(error).__name__ == "SafetensorError"
    if isinstance(error, OSError):
        lasting = error.errno is None  # a library's own word for files that are not there
    return OctonodeError(text, code="FORMAT_REFUSED" if lasting else "ENGINE_FAILED")


def run_failed(error: Exception, way_out: str) -> Exception:
    """A fault of a run: out of memory in words, with what to ask for instead; others as they are."""
    if not out_of_memory(error):
        return error
    return OctonodeError(f"the device ran out of memory; {way_out}", code="ENGINE_FAILED")


def out_of_memory(error: Exception) -> bool:
    """Whether torch says so, of a GPU or of the machine."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in ("OutOfMemoryError", "AcceleratorOutOfMemoryError")
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def not_numbers() -> OctonodeError:
    """Raised for NaN or infinity where the model should have given numbers."""
    text = "the model computed values that are no numbers; its weights or its number format (dtype) do not fit"
    return OctonodeError(text, code="ENGINE_FAILED")
