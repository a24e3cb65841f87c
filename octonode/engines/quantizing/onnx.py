"""ONNX to INT8 (dynamic) and INT4 (MatMulNBits). Imports onnxruntime; runs in the quantizing child alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from octonode.engines.quantizing.job import Job, Made, Quality, Tell
from octonode.engines.quantizing.sentences import SENTENCES
from octonode.errors import OctonodeError

INT4_BLOCK = 32
INT4_ACCURACY_LEVEL = 4
"""Activations of 8 bits in the product: what processors are fast at."""


def quantize(job: Job, tell: Tell) -> Made:
    """The model's folder with smaller weights. Raises UNSUPPORTED for what has no matrix to make smaller."""
    source, target = Path(job.source), Path(job.target)
    source, folder = (source, source.parent) if source.is_file() else (_only_graph(source), source)
    tell("weights", 0, 3)
    made = target / source.name
    {"INT8": _int8, "INT4": _int4}[job.kind](source, made)
    tell("weights", 1, 3)
    for beside in folder.rglob("*") if folder != source else ():
        place = target / beside.relative_to(folder)
        if beside.is_file() and beside.suffix not in (".onnx", ".data") and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(beside, place)
    weights = _weights(source)
    tell("quality", 2, 3)
    quality = _quality(job, folder, target) if job.measure else Quality(reason="not asked for")
    tell("quality", 3, 3)
    return Made(str(target), _size(folder), _size(target), weights, quality)


def _only_graph(folder: Path) -> Path:
    graphs = sorted(folder.glob("*.onnx"))
    if len(graphs) != 1:
        raise OctonodeError(
            f"the model has {len(graphs)} ONNX files; one is made smaller at a time", code="UNSUPPORTED"
        )
    return graphs[0]


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.suffix in (".onnx", ".data"))


def _int8(source: Path, made: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, made, weight_type=QuantType.QInt8)


def _int4(source: Path, made: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(source)
    quantizer = MatMulNBitsQuantizer(
        model, block_size=INT4_BLOCK, is_symmetric=True, accuracy_level=INT4_ACCURACY_LEVEL
    )
    quantizer.process()
    if not any(node.op_type == "MatMulNBits" for node in quantizer.model.model.graph.node):
        raise OctonodeError("nothing in this model can be made INT4: it has no product with a matrix of weights",
                            code="UNSUPPORTED")  # fmt: skip
    quantizer.model.save_model_to_file(str(made), use_external_data_format=False)


def _weights(source: Path) -> int:
    import onnx

    model = onnx.load(source, load_external_data=False)
    total = 0
    for tensor in model.graph.initializer:
        count = 1
        for side in tensor.dims:
            count *= side
        total += count
    return total


def _quality(job: Job, parent: Path, made: Path) -> Quality:
    """Of embeddings the cosine between what both say of the same sentences."""
    if job.category != "embeddings":
        return Quality(reason=f"nothing is measured for models of category {job.category}")
    before, after = _embeddings(parent), _embeddings(made)
    cosines = (before * after).sum(axis=1)
    return Quality("cosine", 1.0, float(cosines.min()), float(cosines.mean()))


def _embeddings(folder: Path) -> Any:
    """Normalised means over the tokens of each sentence, float32 [sentences, dimensions]."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(_only_graph(folder)), options, providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}
    vectors = []
    for sentence in SENTENCES:
        encoded = tokenizer.encode(sentence)
        mask = np.array([encoded.attention_mask], dtype=np.int64)
        feeds = {
            "input_ids": np.array([encoded.ids], dtype=np.int64),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        hidden = session.run(None, {name: value for name, value in feeds.items() if name in names})[0]
        mean = (hidden * mask[..., None]).sum(axis=1)[0] / mask.sum()
        vectors.append(mean / np.linalg.norm(mean))
    return np.stack(vectors)
