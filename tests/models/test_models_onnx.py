"""ONNX: weights only from inside the model, operators only of engines that are here, counts under limits."""

from __future__ import annotations

import pytest

from octonode.models.formats import FormatRefused
from octonode.models.headers import onnx as reader
from tests.models.samples import chunk, inspect, number, onnx, onnx_node, onnx_tensor, varint


def _refused(contents: dict[str, bytes], why: str) -> None:
    with pytest.raises(FormatRefused, match=why):
        inspect(contents)


def test_a_model_with_weights_inside() -> None:
    info = inspect({"m.onnx": onnx(tensors=[onnx_tensor(2, 3, raw=bytes(24)), onnx_tensor(5, kind=7, raw=bytes(40))])})
    assert (info.format, info.category, info.opens) == ("onnx", "other", "m.onnx")
    assert (info.shape.parameters, info.weights_bytes, info.made_with) == (11, 64, "ai.onnx 17")


def _external(location: str, offset: str = "0", length: str = "24") -> bytes:
    said = {"location": location, "offset": offset, "length": length}
    return onnx(tensors=[onnx_tensor(2, 3, external={key: value for key, value in said.items() if value})])


def test_weights_in_another_file_of_the_model() -> None:
    info = inspect(
        {"onnx/m.onnx": _external("m.onnx_data"), "onnx/m.onnx_data": bytes(range(24)), "config.json": b"{}"}
    )
    assert info.files == {"onnx/m.onnx": "onnx", "onnx/m.onnx_data": "onnx", "config.json": "other"}
    assert info.weights_bytes == 24
    assert inspect({"m.onnx": _external("w/d.bin", length=""), "w/d.bin": bytes(24)}).format == "onnx"


@pytest.mark.parametrize(
    "location",
    ["", "../m.data", "/etc/shadow", "a/../../m.data", "./m.data", "m//d", "c:\\m.data", "..\\m.data", "a\x00b"],
)
def test_weights_outside_of_the_model_are_refused(location: str) -> None:
    _refused({"m.onnx": _external(location), "m.data": bytes(24)}, "outside of the model")


def test_weights_in_memory_or_in_no_file_are_refused() -> None:
    _refused({"m.onnx": _external("*/_ORT_MEM_ADDR_/*"), "m.data": bytes(24)}, "not in the model")
    _refused({"sub/m.onnx": _external("m.data"), "m.data": bytes(24)}, "not in the model")


@pytest.mark.parametrize(
    ("offset", "length", "why"),
    [
        ("1", "24", "behind the end"),
        ("0", "25", "behind the end"),
        ("25", "", "behind the end"),
        ("-1", "24", "no offset"),
        ("0x0", "24", "no offset"),
        ("99999999999999999999", "1", "no offset"),
        ("²", "1", "no offset"),
    ],
)
def test_weights_behind_the_end_of_their_file_are_refused(offset: str, length: str, why: str) -> None:
    _refused({"m.onnx": _external("m.data", offset, length), "m.data": bytes(24)}, why)


def test_a_location_twice_is_refused() -> None:
    twice = onnx_tensor(2) + chunk(13, chunk(1, "location") + chunk(2, "a")) * 2
    _refused({"m.onnx": onnx(tensors=[twice]), "a": bytes(8)}, "twice")


def test_a_pickle_as_weights_is_refused() -> None:
    _refused({"m.onnx": _external("m.data", length="8"), "m.data": b"cos\nsystem\n(S'ls'\ntR." + bytes(20)}, "pickle")


def test_operators_of_other_domains_are_refused_wherever_they_hide() -> None:
    custom = onnx_node("Evil", "my.ops")
    branch = chunk(5, chunk(1, "then") + chunk(6, chunk(1, custom)) + number(20, 5))
    branches = chunk(5, chunk(1, "b") + chunk(11, chunk(1, custom)) + number(20, 10))
    function = chunk(1, "F") + chunk(10, "local") + chunk(7, custom)
    training = onnx() + chunk(20, chunk(1, chunk(1, custom)))
    for data in (
        onnx([custom], opsets={"": 17, "my.ops": 1}),
        onnx([onnx_node("If", more=branch)]),
        onnx([onnx_node("If", more=branches)]),
        onnx([onnx_node("F", "local")], functions=[function]),
        onnx([onnx_node("Add", "com.microsoft.evil")]),
        onnx([onnx_node("Add", "ai.onnx.contrib")]),
        training,
    ):
        _refused({"m.onnx": data}, "library of its own")


def test_known_domains_and_functions_of_the_model_are_taken() -> None:
    function = chunk(1, "F") + chunk(10, "pkg.torch") + chunk(7, onnx_node("Mul"))
    nodes = [onnx_node("F", "pkg.torch"), onnx_node("Attention", "com.microsoft"), onnx_node("Scaler", "ai.onnx.ml")]
    info = inspect({"m.onnx": onnx(nodes, functions=[function], opsets={"": 17, "com.microsoft": 1, "pkg.torch": 1})})
    assert info.made_with == "ai.onnx 17, com.microsoft 1, pkg.torch 1"
    extra = reader.STANDARD_DOMAINS | {"my.ops"}
    assert inspect({"m.onnx": onnx([onnx_node("X", "my.ops")])}, domains=extra).format == "onnx"


def test_a_function_that_stands_in_for_a_standard_operator_is_refused() -> None:
    _refused({"m.onnx": onnx(functions=[chunk(1, "Add") + chunk(7, onnx_node("Mul"))])}, "standard operator")


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (onnx_tensor(2**62), "absurd"),
        (onnx_tensor(2**32, 2**32), "absurd"),
        (onnx_tensor(*[1] * 33), "absurd"),
        (onnx_tensor(2, 3, raw=bytes(23)), "23 bytes of data"),
        (chunk(1, varint(1) * 40), "more than 32"),
    ],
)
def test_tensors_that_cannot_be_are_refused(tensor: bytes, why: str) -> None:
    _refused({"m.onnx": onnx(tensors=[tensor])}, why)


def test_opsets() -> None:
    _refused({"m.onnx": onnx(opsets={"": 0})}, "version 0")
    _refused({"m.onnx": onnx() + chunk(8, number(2, 17))}, "imported twice")
    _refused({"m.onnx": onnx(opsets={f"d{n}": 1 for n in range(80)})}, "too many")


def test_graphs_in_graphs_and_many_nodes_are_bounded() -> None:
    graph = chunk(1, onnx_node())
    for _ in range(40):
        graph = chunk(1, onnx_node("If", more=chunk(5, chunk(6, graph))))
    _refused({"m.onnx": number(1, 9) + chunk(7, graph) + chunk(8, number(2, 17))}, "nested deeper than 16")
    many = number(1, 9) + chunk(7, b"\x0a\x00" * (reader.NODES_MAX + 1)) + chunk(8, number(2, 17))
    _refused({"m.onnx": many}, "200000 nodes")
    fields = number(1, 9) + chunk(7, b"\x10\x00" * (reader.FIELDS_MAX + 1)) + chunk(8, number(2, 17))
    _refused({"m.onnx": fields}, "too many fields")
