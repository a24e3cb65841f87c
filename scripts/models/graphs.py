"""Writing an ONNX graph node by node: what `onnx.helper` leaves to its caller, names and lists, is kept here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

IR_VERSION: Final = 9
"""Read by every ONNX Runtime since 1.17; the library's own default is newer than some runtimes."""
KINDS: Final = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}

Shape = Sequence[int | str]
"""A name stands for an axis of any length."""


class Graph:
    """A graph that grows by its nodes; values are known by their names."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._constants: dict[tuple[str, bytes], str] = {}

    def weight(self, name: str, values: NDArray[Any]) -> str:
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def constant(self, values: Any, dtype: str = "int64") -> str:
        """A small tensor; the same values are kept once."""
        array = np.asarray(values, dtype=dtype)
        key = (f"{dtype}{array.shape}", array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def node(
        self, operator: str, *inputs: str, domain: str = "", outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """The name of the first output; outputs that are not named are one."""
        names = list(outputs) or [f"{operator}_{len(self._nodes)}"]
        self._nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def save(
        self,
        path: Path,
        inputs: Mapping[str, tuple[str, Shape]],
        outputs: Mapping[str, tuple[str, Shape]],
        *,
        opset: int,
        microsoft: bool = False,
    ) -> None:
        """Write the model: names -> (kind of KINDS, shape). `microsoft`: it uses operators of ONNX Runtime's own."""
        graph = helper.make_graph(self._nodes, path.parent.name, _values(inputs), _values(outputs), self._weights)
        imports = [helper.make_opsetid("", opset)]
        if microsoft:
            imports.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="octonode")
        onnx.save(model, str(path))


def _values(named: Mapping[str, tuple[str, Shape]]) -> list[Any]:
    return [helper.make_tensor_value_info(name, KINDS[kind], list(shape)) for name, (kind, shape) in named.items()]
