"""A llama out of its GGUF as an ONNX graph for onnxruntime-genai, with the very values of the GGUF: nothing is rounded.

MatMulNBits is quick with zero points of 4 bits, where the minima of Q4_1 have 16. What that leaves of a minimum is the
same for all of a block, so that a small product with the sums of the input's blocks puts it right; without it the
perplexity of SmolLM2 grows by a third.

Operators by https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md; blocks by ggml's `block_q4_1`
and `block_q8_0`. Rotary pairs stay as GGUF has them, neighbours, which the operator calls interleaved.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scripts.get_model import NoModel
from scripts.models.graphs import Graph

BLOCK: Final = 32
OPSET: Final = 17
MICROSOFT: Final = "com.microsoft"
INT8_ACTIVATIONS: Final = 4
"""`accuracy_level`: products are summed in 8 bits, as llama.cpp does."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LlamaSizes:
    """As the header of the GGUF says them."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    context_tokens: int
    rope_base: float
    epsilon: float


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix as MatMulNBits has it: [rows, blocks, bytes], [rows, blocks], and of 4 bits two zero points a byte."""

    values: Bytes
    scales: Floats
    zero_points: Bytes
    rests: Floats
    """[rows, blocks]: what is to be added to each value of a block."""


def from_q4_1(raw: Bytes) -> Quantized:
    """[rows, bytes] of blocks: scale, minimum (FP16 each), then 16 bytes, low halves the first 16 values.

    `minimum + scale x q` becomes `scale x (q - zero point) + rest`, the zero point a whole number.
    """
    blocks = raw.reshape(raw.shape[0], -1, 4 + BLOCK // 2)
    scales = _halves(blocks[:, :, 0:2])
    minima = _halves(blocks[:, :, 2:4])
    packed = blocks[:, :, 4:]
    values = np.concatenate([packed & 15, packed >> 4], axis=2)
    steps = np.divide(-minima, scales, out=np.zeros_like(scales), where=scales != 0)
    zeros = np.clip(np.rint(steps), 0, 15)
    return Quantized(_nibbles(values), scales, _nibbles(zeros.astype(np.uint8)), minima + scales * zeros)


def from_q8_0(raw: Bytes) -> tuple[Bytes, Floats]:
    """[rows, bytes] of blocks, scale (FP16) then 32 signed values -> unsigned around 128 [rows, columns], scales."""
    blocks = raw.reshape(raw.shape[0], -1, 2 + BLOCK)
    values: Bytes = blocks[:, :, 2:] ^ np.uint8(128)
    return values.reshape(raw.shape[0], -1), _halves(blocks[:, :, 0:2])


def _halves(two_bytes: Bytes) -> Floats:
    return np.ascontiguousarray(two_bytes).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(values: Bytes) -> Bytes:
    """Two values a byte along the last axis, the first of them in the lower half."""
    packed: Bytes = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed


class LlamaGraph:
    """The parts of the network, each the name of its result; tensors by their names in the GGUF."""

    def __init__(self, sizes: LlamaSizes, tensors: dict[str, Any]) -> None:
        self.sizes, self.tensors, self.graph = sizes, tensors, Graph()
        self._sums: dict[str, str] = {}

    def write(self, path: Path) -> None:
        """input_ids, attention_mask and the cache so far -> logits of every position and the cache."""
        sizes, graph = self.sizes, self.graph
        lengths, total = self._lengths("attention_mask")
        rotary = self._rotary()
        table = self._embedding_table()
        skip = graph.node("GatherBlockQuantized", table[0], "input_ids", table[1], domain=MICROSOFT,
                          block_size=BLOCK, gather_axis=0, quantize_axis=1, bits=8)  # fmt: skip
        hidden = graph.node(
            "SimplifiedLayerNormalization", skip, self._norm("blk.0.attn_norm"), axis=-1, epsilon=sizes.epsilon
        )
        for number in range(sizes.layers):
            attended = self._attention(hidden, number, (lengths, total, *rotary))
            hidden, skip = self._add_and_norm(attended, skip, f"blk.{number}.ffn_norm")
            after = f"blk.{number + 1}.attn_norm" if number + 1 < sizes.layers else "output_norm"
            hidden, skip = self._add_and_norm(self._feed_forward(hidden, number), skip, after)
        self._logits(hidden, table)
        texts = ("int64", ("batch", "sequence"))
        inputs = {"input_ids": texts, "attention_mask": ("int64", ("batch", "total"))}
        outputs = {"logits": ("float", ("batch", "sequence", sizes.vocabulary))}
        self._save(path, inputs, outputs)

    def _save(self, path: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        for number in range(self.sizes.layers):
            for part in ("key", "value"):
                shape = ("batch", self.sizes.kv_heads, "past", self.sizes.head_width)
                inputs[f"past_key_values.{number}.{part}"] = ("float", shape)
                grown = ("batch", self.sizes.kv_heads, "total", self.sizes.head_width)
                outputs[f"present.{number}.{part}"] = ("float", grown)
        self.graph.save(path, inputs, outputs, opset=OPSET, microsoft=True)

    def _raw(self, name: str, kind: str) -> Bytes:
        tensor = self.tensors[f"{name}.weight"]
        if tensor.tensor_type.name != kind:
            raise NoModel(f"{name} is {tensor.tensor_type.name} in the GGUF, and {kind} is expected")
        return np.asarray(tensor.data)

    def _norm(self, name: str) -> str:
        return self.graph.weight(name, np.asarray(self.tensors[f"{name}.weight"].data, np.float32))

    def _add_and_norm(self, value: str, skip: str, name: str) -> tuple[str, str]:
        """(normalized sum, the sum)."""
        outputs = [f"{name}.out", "", "", f"{name}.sum"]
        self.graph.node("SkipSimplifiedLayerNormalization", skip, value, self._norm(name), domain=MICROSOFT,
                        outputs=outputs, epsilon=self.sizes.epsilon)  # fmt: skip
        return outputs[0], outputs[3]

    def _linear(self, value: str, name: str) -> str:
        matrix = from_q4_1(self._raw(name, "Q4_1"))
        rows, blocks, _ = matrix.values.shape
        parts: dict[str, NDArray[Any]] = {
            "values": matrix.values,
            "scales": matrix.scales,
            "zero_points": matrix.zero_points,
        }
        weights = [self.graph.weight(f"{name}.{part}", values) for part, values in parts.items()]
        product = self.graph.node("MatMulNBits", value, *weights, domain=MICROSOFT, K=blocks * BLOCK, N=rows,
                                  bits=4, block_size=BLOCK, accuracy_level=INT8_ACTIVATIONS)  # fmt: skip
        rests = self.graph.weight(f"{name}.rests", matrix.rests.T)
        return self.graph.node("Add", product, self.graph.node("MatMul", self._block_sums(value, blocks), rests))

    def _block_sums(self, value: str, blocks: int) -> str:
        """[batch, sequence, blocks]: sums of the blocks of a value that several matrices may take."""
        if value not in self._sums:
            apart = self.graph.node("Reshape", value, self.graph.constant([0, 0, blocks, BLOCK]))
            self._sums[value] = self.graph.node("ReduceSum", apart, self.graph.constant([3]), keepdims=0)
        return self._sums[value]

    def _embedding_table(self) -> tuple[str, str]:
        """Values [tokens, width] and scales, kept once for both ends of the network, as the model ties them."""
        values, scales = from_q8_0(self._raw("token_embd", "Q8_0"))
        return self.graph.weight("tokens.values", values), self.graph.weight("tokens.scales", scales)

    def _logits(self, hidden: str, table: tuple[str, str]) -> None:
        sizes, graph = self.sizes, self.graph
        blocks = sizes.width // BLOCK
        values = graph.node("Reshape", table[0], graph.constant([sizes.vocabulary, blocks, BLOCK]))
        graph.node("MatMulNBits", hidden, values, table[1], domain=MICROSOFT, outputs=["logits"], K=sizes.width,
                   N=sizes.vocabulary, bits=8, block_size=BLOCK, accuracy_level=INT8_ACTIVATIONS)  # fmt: skip

    def _lengths(self, mask: str) -> tuple[str, str]:
        """Tokens of each sequence less one, and the length of the longest; INT32 both."""
        graph, int32 = self.graph, 6
        summed = graph.node("ReduceSum", mask, graph.constant([1]), keepdims=0)
        lengths = graph.node("Cast", graph.node("Sub", summed, graph.constant(1)), to=int32)
        total = graph.node("Gather", graph.node("Shape", mask), graph.constant(1))
        return lengths, graph.node("Cast", total, to=int32)

    def _rotary(self) -> tuple[str, str]:
        pairs = np.arange(0, self.sizes.head_width, 2) / self.sizes.head_width
        angles = np.outer(np.arange(self.sizes.context_tokens), self.sizes.rope_base**-pairs)
        cosines = self.graph.weight("cosines", np.cos(angles).astype(np.float32))
        return cosines, self.graph.weight("sines", np.sin(angles).astype(np.float32))

    def _attention(self, hidden: str, number: int, shared: tuple[str, ...]) -> str:
        sizes, graph, name = self.sizes, self.graph, f"blk.{number}"
        query, key, value = (self._linear(hidden, f"{name}.attn_{part}") for part in "qkv")
        past = [f"past_key_values.{number}.{part}" for part in ("key", "value")]
        present = [f"present.{number}.{part}" for part in ("key", "value")]
        mixed = graph.node("GroupQueryAttention", query, key, value, *past, *shared, domain=MICROSOFT,
                           outputs=[f"{name}.mixed", *present], num_heads=sizes.heads, kv_num_heads=sizes.kv_heads,
                           do_rotary=1, rotary_interleaved=1, scale=sizes.head_width**-0.5)  # fmt: skip
        return self._linear(mixed, f"{name}.attn_output")

    def _feed_forward(self, hidden: str, number: int) -> str:
        graph, name = self.graph, f"blk.{number}"
        gate = self._linear(hidden, f"{name}.ffn_gate")
        gated = graph.node("Mul", gate, graph.node("Sigmoid", gate))
        return self._linear(graph.node("Mul", gated, self._linear(hidden, f"{name}.ffn_up")), f"{name}.ffn_down")
