"""ONNX to INT8 (dynamic) and INT4 (MatMulNBits). Imports onnxruntime; runs in the quantizing child alone."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Final

from octonode.engines.quantizing import comparing
from octonode.engines.quantizing.job import Job, Made, Quality, Tell
from octonode.engines.quantizing.onnx_perplexity import perplexity
from octonode.errors import OctonodeError

INT4_BLOCK: Final = 32
INT4_ACCURACY_LEVEL: Final = 4
"""Activations of 8 bits in the product: what processors are fast at."""
INT8_OPERATORS: Final = ("MatMul", "Gather", "Attention", "LSTM")
"""With weights of 8 bits. Convolutions stay as they are: ONNX Runtime has no kernel for signed ones on a CPU."""
INT4_MARKS: Final = frozenset({"MatMulNBits", "GatherBlockQuantized", "MatMulBnb4"})
INT8_MARKS: Final = frozenset(
    {"MatMulInteger", "DynamicQuantizeLinear", "DequantizeLinear", "QAttention", "DynamicQuantizeLSTM"}
)
INLINE_BYTES_MAX: Final = 1_500_000_000
"""A graph is one protobuf of less than 2 GiB; larger weights go into a file beside it."""


def quantize(job: Job, tell: Tell) -> Made:
    """The model's files with smaller weights. Raises UNSUPPORTED for what has no matrix to make smaller, ENGINE_FAILED
    where ONNX Runtime cannot open what came out."""
    source, target = Path(job.source), Path(job.target)
    graph = _only_graph(source, job.files)
    folder = source if source.is_dir() else source.parent
    made = target / graph.relative_to(folder)
    made.parent.mkdir(parents=True, exist_ok=True)
    weights, external, parent_bytes = _look(graph)
    _refuse_quantized(graph)
    tell("weights", 0, 3)
    {"INT8": _int8, "INT4": _int4}[job.kind](graph, made, large=parent_bytes > INLINE_BYTES_MAX)
    tell("weights", 1, 3)
    for name in job.files:
        if folder / name != graph and folder / name not in external:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)
    tell("quality", 2, 3)
    _session(made)
    quality = _quality(job, graph, made) if job.measure else Quality(reason="not asked for")
    tell("quality", 3, 3)
    path = target if source.is_dir() else made
    return Made(str(path), parent_bytes, _look(made)[2], weights, quality)


def _only_graph(source: Path, files: tuple[str, ...]) -> Path:
    if not files:
        return source
    graphs = [name for name in files if name.endswith(".onnx")]
    if len(graphs) != 1:
        text = f"the model has {len(graphs)} ONNX graphs; models of one are made smaller"
        raise OctonodeError(text, code="UNSUPPORTED")
    return source / graphs[0]


def _look(graph: Path) -> tuple[int, set[Path], int]:
    """(number of weights, files that hold some of them, bytes of all)."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    model = onnx.load(graph, load_external_data=False)
    tensors = list(model.graph.initializer)
    external = {graph.parent / ExternalDataInfo(each).location for each in tensors if uses_external_data(each)}
    size_bytes = graph.stat().st_size + sum(each.stat().st_size for each in external)
    return sum(math.prod(each.dims) for each in tensors), external, size_bytes


def _int8(graph: Path, made: Path, *, large: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        onnx.load(graph),  # of a path it writes a copy with shapes beside the parent, which is not ours to write to
        made,
        op_types_to_quantize=list(INT8_OPERATORS),
        weight_type=QuantType.QInt8,
        use_external_data_format=large,
    )
    _require(made, INT8_MARKS, "INT8")


def _int4(graph: Path, made: Path, *, large: bool) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(graph), block_size=INT4_BLOCK, is_symmetric=True, accuracy_level=INT4_ACCURACY_LEVEL
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(made), use_external_data_format=large)
    _require(made, INT4_MARKS, "INT4")


def _operators(graph: Path) -> set[str]:
    import onnx

    return {each.op_type for each in onnx.load(graph, load_external_data=False).graph.node}


def _refuse_quantized(graph: Path) -> None:
    """Raises UNSUPPORTED: what is lost twice is lost more than it is worth."""
    found = _operators(graph)
    already = "INT4" if found & INT4_MARKS else "INT8" if found & INT8_MARKS else ""
    if already:
        text = f"the model is quantized already ({already}); take the one that it was made from"
        raise OctonodeError(text, code="UNSUPPORTED")


def _require(made: Path, operators: frozenset[str], kind: str) -> None:
    """Raises UNSUPPORTED where nothing became smaller."""
    if not _operators(made) & operators:
        text = f"nothing in this model can be made {kind}: it has no product with a matrix of weights in full numbers"
        raise OctonodeError(text, code="UNSUPPORTED")


def _session(graph: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        text = f"what was made cannot be opened by ONNX Runtime: {error}"
        raise OctonodeError(text[:500], code="ENGINE_FAILED") from None


def _quality(job: Job, parent: Path, made: Path) -> Quality:
    """Of embeddings the cosine between what both say of the same sentences, of language models the perplexity."""
    if job.category not in ("embeddings", "llm"):
        return Quality(reason=f"nothing is measured for ONNX models of category {job.category}")
    tokenizer = Path(job.source) / "tokenizer.json"
    if not tokenizer.is_file():
        return Quality(reason="the model brings no tokenizer.json")
    if job.category == "llm":
        try:
            before, after = (perplexity(_session(graph), tokenizer) for graph in (parent, made))
        except OctonodeError as error:
            return Quality(reason=error.message)
        return Quality("perplexity", before, after)
    pooling = comparing.pooling_of(Path(job.source))
    return comparing.cosines(_embeddings(parent, tokenizer, pooling), _embeddings(made, tokenizer, pooling))


def _embeddings(graph: Path, tokenizer_json: Path, pooling: str) -> list[Any]:
    """A vector for each sentence, float32 [dimensions]."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.no_padding()
    session = _session(graph)
    names = {each.name for each in session.get_inputs()}
    vectors = []
    for sentence in comparing.SENTENCES:
        ids = np.array([tokenizer.encode(sentence).ids], dtype=np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        first = session.run(None, {name: value for name, value in given.items() if name in names})[0]
        vectors.append(comparing.pooled(first, pooling))
    return vectors
