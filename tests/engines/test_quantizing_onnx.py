"""The quantizing child with real models of ring 1: MiniLM in INT8 and INT4, what it costs, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import trio
from onnx import TensorProto, helper, numpy_helper

from octonode.engines.quantizing import child
from octonode.engines.quantizing.job import Job, Made, ratios
from octonode.engines.quantizing.said import Progress
from octonode.errors import OctonodeError
from octonode.models.adding import collect
from octonode.models.inspecting import inspect_paths

pytestmark = pytest.mark.process
MIB = 1024 * 1024
BuiltModel = Callable[[str], Path]


def job_for(folder: Path, target: Path, kind: str, category: str = "embeddings") -> Job:
    target.mkdir()
    files = tuple(name for name, _ in collect(folder))
    return Job(
        "onnx", kind, str(folder), str(target), category, files=files, file_bytes_max=256 * MIB, parent=os.getpid()
    )


def run(job: Job, told: list[Progress]) -> Made:
    async def make() -> Made:
        with trio.fail_after(175):
            return await child.make(
                job, python="", directory=Path(job.target).with_name("work"), threads=1, memory_bytes_max=0,
                tell=told.append,
            )  # fmt: skip

    return trio.run(make)


@pytest.mark.parametrize(
    ("kind", "fp32_least", "fp32_most", "operator"),
    [("INT8", 0.25, 0.27, "MatMulInteger"), ("INT4", 0.13, 0.61, "MatMulNBits")],
)
def test_minilm_becomes_smaller_and_says_nearly_the_same(
    built_model: BuiltModel, tmp_path: Path, kind: str, fp32_least: float, fp32_most: float, operator: str
) -> None:
    """Half of MiniLM is its table of words, which INT4 leaves as it is."""
    folder, target, told = built_model("minilm"), tmp_path / "made", list[Progress]()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    made = run(job_for(folder, target, kind), told)
    assert made.path == str(target)
    assert made.parent_bytes == (folder / "model.onnx").stat().st_size
    assert made.bytes == (target / "model.onnx").stat().st_size
    assert fp32_least < ratios(made.bytes, made.weights)[0] < fp32_most
    assert made.quality.measure == "cosine"
    assert 0.9 < made.quality.value <= made.quality.mean < 0.9999
    assert [each.stage for each in told] == ["start", "weights", "weights", "quality", "quality"]
    graph = onnx.load(target / "model.onnx")
    assert any(node.op_type == operator for node in graph.graph.node)
    info = inspect_paths(collect(target))
    assert (info.format, info.category) == ("onnx", "embeddings")
    assert {name for name, _ in collect(target)} == {name for name, _ in collect(folder)}
    for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "the parent stays as it was"
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("minilm-int8", "INT8", "quantized already (INT8)"),
        ("smollm2-onnx-int4", "INT8", "quantized already (INT4)"),
        ("colours-synthetic", "INT4", "nothing in this model can be made INT4"),
        ("silero-vad", "INT8", "nothing in this model can be made INT8"),
        ("ocr", "INT8", "3 ONNX graphs"),
    ],
)
def test_what_cannot_become_smaller_is_refused(
    built_model: BuiltModel, tmp_path: Path, model: str, kind: str, words: str
) -> None:
    with pytest.raises(OctonodeError) as caught:
        run(job_for(built_model(model), tmp_path / "made", kind, "other"), [])
    assert caught.value.code == "UNSUPPORTED"
    assert words in caught.value.message


def product(folder: Path) -> Path:
    """A folder with the smallest model that can become smaller: one product with a matrix of 256 x 256."""
    folder.mkdir()
    numbers = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 256])],
        [numpy_helper.from_array(numbers, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "m.onnx")
    (folder / "notes.txt").write_text("notes")
    return folder


def test_of_a_language_model_the_perplexity_is_measured(built_model: BuiltModel, tmp_path: Path) -> None:
    """A synthetic one, whose next word depends on the last alone; a cache is asked for as real ones do."""
    folder, dice = tmp_path / "m", np.random.default_rng(1)
    folder.mkdir()
    words = 30_522
    shutil.copyfile(built_model("minilm") / "tokenizer.json", folder / "tokenizer.json")
    table, head = (dice.standard_normal(shape).astype(np.float32) / 8 for shape in ((words, 64), (64, words)))
    whole, cache = TensorProto.INT64, (1, 2, None, 4)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["inside"]),
            helper.make_node("MatMul", ["inside", "head"], ["logits"]),
            helper.make_node("Identity", ["past_key_values.0.key"], ["present.0.key"]),
        ],
        "words",
        [
            helper.make_tensor_value_info("input_ids", whole, [None, None]),
            helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, cache),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None, words]),
            helper.make_tensor_value_info("present.0.key", TensorProto.FLOAT, cache),
        ],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(head, "head")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "m.onnx")
    made = run(job_for(folder, tmp_path / "made", "INT8", "llm"), [])
    assert made.quality.measure == "perplexity", made.quality.reason
    assert 20_000 < made.quality.parent < 40_000, "it foresees nothing: one of all words"
    assert made.quality.value == pytest.approx(made.quality.parent, rel=0.05)
    assert made.quality.value != made.quality.parent


def test_a_model_that_nothing_is_measured_of_says_so(tmp_path: Path) -> None:
    made = run(job_for(product(tmp_path / "m"), tmp_path / "made", "INT4", "other"), [])
    assert (made.weights, made.quality.measure) == (256 * 256, "none")
    assert "category other" in made.quality.reason
    assert made.bytes < made.parent_bytes / 5


def test_one_file_alone_is_made_one_file(tmp_path: Path) -> None:
    file = product(tmp_path / "m") / "m.onnx"
    job = replace(job_for(file, tmp_path / "made", "INT8", "other"), files=())
    assert run(job, []).path == str(tmp_path / "made" / "m.onnx")
    assert [each.name for each in (tmp_path / "made").iterdir()] == ["m.onnx"], "not what lies beside it"


def test_a_format_that_has_no_such_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OctonodeError, match="onnx models are not made into Q4_K_M") as caught:
        run(job_for(product(tmp_path / "m"), tmp_path / "made", "Q4_K_M"), [])
    assert caught.value.code == "UNSUPPORTED"


def test_a_file_that_grows_too_large_is_a_full_disk(tmp_path: Path) -> None:
    job = replace(job_for(product(tmp_path / "m"), tmp_path / "made", "INT4"), file_bytes_max=1000)
    with pytest.raises(OctonodeError) as caught:
        run(job, [])
    assert caught.value.code == "DISK_FULL"


def test_the_child_sees_its_model_and_no_other_file(tmp_path: Path) -> None:
    """A file of the model leads to a key: the sandbox keeps it from being copied into the new one."""
    secret = tmp_path / "secret.txt"
    secret.write_text("a key")
    folder = product(tmp_path / "m")
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to(secret)
    job = job_for(folder, tmp_path / "made", "INT4", "other")
    with pytest.raises(OctonodeError, match="Permission denied") as caught:
        run(job, [])
    assert caught.value.code == "ENGINE_FAILED"
    run(replace(job, sandbox=False), [])
    assert (tmp_path / "made" / "notes.txt").read_text() == "a key", "so it was the sandbox"
