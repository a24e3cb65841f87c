"""One ONNX graph in ONNX Runtime, as our adapters use it: on the best device there is, and stopped between two nodes.

Providers and threads, measured: `protocols/decisions/0020-onnx-engines.md`. No library of custom operators is ever
registered: what needs one was refused before (`models/headers/onnx.py`), and is refused by the runtime again.
"""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from octonode.engines.adapters.stoppable import Stop, Stopped
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import ConfigError, OctonodeError

Array = npt.NDArray[Any]

BACKENDS: Final = {
    "CUDAExecutionProvider": "cuda",
    "MIGraphXExecutionProvider": "rocm",
    "ROCMExecutionProvider": "rocm",
    "CoreMLExecutionProvider": "coreml",
    "CPUExecutionProvider": "cpu",
}
"""Execution providers in the order of preference -> what we call the backend."""
TENSORRT: Final = "TensorrtExecutionProvider"
"""Before the others where the options of the load have `tensorrt`: it compiles for minutes at a graph's first run."""
_HOPELESS: Final = ("InvalidProtobuf", "InvalidGraph", "NotImplemented", "InvalidArgument")
"""Errors of ONNX Runtime at load that another try cannot mend."""
_TYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def runtime(extra: str = "onnx") -> Any:
    """The module onnxruntime. Raises ConfigError that says how to install it."""
    return library("onnxruntime", extra)


def library(name: str, extra: str) -> Any:
    """An engine's module. Raises ConfigError that names the extra of this package that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"{name} cannot be imported ({error}); run: pip install 'octonode[{extra}]'"
        raise ConfigError(text) from error


class Graph:
    """A graph that was loaded. Blocks; used from one thread at a time."""

    def __init__(self, path: Path, request: LoadRequest) -> None:
        """Raises OctonodeError: FORMAT_REFUSED for what this runtime can never run, else ENGINE_FAILED; ConfigError."""
        self._module = runtime()
        try:
            self.session = self._module.InferenceSession(
                os.fspath(path), _options(self._module, request), providers=_providers(self._module, request)
            )
        except Exception as error:  # the runtime's own classes have no common root below this
            raise _load_failure(path, error) from None
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = [each.name for each in self.session.get_outputs()]
        self.ranks = {each.name: len(each.shape) for each in self.session.get_outputs()}

    @property
    def backend(self) -> str:
        first = self.session.get_providers()[0]
        return "tensorrt" if first == TENSORRT else BACKENDS.get(first, str(first).lower())

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of an input; -1 where any extent is taken."""
        return tuple(extent if isinstance(extent, int) else -1 for extent in self.inputs[name].shape)

    def cast(self, name: str, values: Array) -> Array:
        """For an input of this graph, in the type that it wants."""
        return values.astype(_TYPES.get(self.inputs[name].type, np.float32), copy=False)

    def run(self, feeds: Mapping[str, Array], stop: Stop, outputs: Sequence[str] = ()) -> list[Array]:
        """The outputs in order, checked to be numbers. Raises Stopped, OctonodeError ENGINE_FAILED."""
        stop.check()
        options = self._module.RunOptions()
        try:
            with stop.telling(lambda: setattr(options, "terminate", True)):
                values: list[Array] = self.session.run(list(outputs) or None, dict(feeds), options)
        except Exception as error:
            if stop.asked:
                raise Stopped from None
            text = f"ONNX Runtime failed: {type(error).__name__}; the model may not fit its description"
            raise OctonodeError(text, code="ENGINE_FAILED") from None
        for value in values:
            check_finite(value)
        return values

    def facts(
        self, request: LoadRequest, engine: str, category: str, skills: tuple[str, ...], **rest: Any
    ) -> EngineFacts:
        """What every engine on this runtime says of itself. `rest`: other fields of EngineFacts."""
        flags = {"threads": request.threads, **rest.pop("flags", {})}
        return EngineFacts(
            engine=engine,
            build=f"onnxruntime {self._module.__version__}",
            backend=self.backend,
            instruction_set=platform.machine(),
            context_tokens=rest.pop("context_tokens", 0),
            parallel=request.parallel,
            quantization=rest.pop("quantization", ""),
            flags=flags,
            category=category,
            skills=skills,
            **rest,
        )


def check_finite(values: Array) -> None:
    """Raises OctonodeError ENGINE_FAILED for an answer of NaN or infinity, which is no answer."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise OctonodeError(
            "the model's answer holds values that are no numbers; its file may be damaged: octonode models verify",
            code="ENGINE_FAILED",
        )


def _options(module: Any, request: LoadRequest) -> Any:
    options = module.SessionOptions()
    options.intra_op_num_threads = max(1, request.threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Threads that wait spin for 20 ms by default, and take the processor from whoever runs beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(module: Any, request: LoadRequest) -> list[str]:
    there = module.get_available_providers()
    wanted = [*([TENSORRT] if request.options.get("tensorrt") else []), *BACKENDS]
    return [name for name in wanted if name in there]


def _load_failure(path: Path, error: Exception) -> OctonodeError:
    kind = type(error).__name__
    code = "FORMAT_REFUSED" if kind in _HOPELESS else "ENGINE_FAILED"
    reason = " ".join(str(error).split())[:200]
    return OctonodeError(f"ONNX Runtime cannot load {path.name} ({kind}: {reason})", code=code)
