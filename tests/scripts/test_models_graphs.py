"""What `scripts.models` writes itself: graphs and weights against arithmetic done another way, on small numbers."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import gguf
import numpy as np
import onnxruntime
import pytest

from octonode.models.adding import describe
from scripts.models import llama_onnx, minilm, smollm2, synthetic, whisper
from scripts.models.recipes import NoModel

RANDOM = np.random.default_rng(5)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def nibbles(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def test_q4_1_keeps_its_values_to_the_last_bit() -> None:
    raw = gguf.quantize(RANDOM.normal(0.2, 1, (6, 128)).astype(np.float32), gguf.GGMLQuantizationType.Q4_1)
    ours = llama_onnx.from_q4_1(raw)
    zeros = nibbles(ours.zero_points)[..., None]
    values = (nibbles(ours.values) - zeros.astype(np.float32)) * ours.scales[..., None] + ours.rests[..., None]
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType.Q4_1)
    np.testing.assert_allclose(values.reshape(6, 128), theirs, atol=1e-6)
    assert np.abs(ours.rests).max() > 0.01  # without them it would not


def test_q8_0_keeps_its_values() -> None:
    raw = gguf.quantize(RANDOM.normal(size=(3, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    values, scales = llama_onnx.from_q8_0(raw)
    wide = (values.reshape(3, 2, 32).astype(np.float32) - 128) * scales[..., None]
    np.testing.assert_allclose(wide.reshape(3, 64), gguf.dequantize(raw, gguf.GGMLQuantizationType.Q8_0))


def test_rotary_pairs_move_from_neighbours_to_halves() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert smollm2.halved(rows, 4).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


BERT = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "layer_norm_eps": 1e-5}
"""As `config.json` sizes the graph; 16 words, 12 places."""


def bert_weights() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (16, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.position_embeddings.weight": (12, 8),
    }
    linear = {"attention.self.query": (8, 8), "attention.self.key": (8, 8), "attention.self.value": (8, 8),
              "attention.output.dense": (8, 8), "intermediate.dense": (20, 8), "output.dense": (8, 20)}  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for number in range(BERT["num_hidden_layers"]):
        name = f"encoder.layer.{number}"
        shapes |= {f"{name}.{part}.weight": shape for part, shape in linear.items()}
        shapes |= {f"{name}.{part}.bias": shape[:1] for part, shape in linear.items()}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    shapes |= {f"{name}.{part}": (8,) for name in norms for part in ("weight", "bias")}
    return {name: RANDOM.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


class PlainBert:
    """One sequence through BERT, token by token and head by head, in float64: slow and plain."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = {name: values.astype(np.float64) for name, values in weights.items()}

    def linear(self, rows: np.ndarray, name: str) -> np.ndarray:
        return rows @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, rows: np.ndarray, name: str) -> np.ndarray:
        away = rows - rows.mean(axis=1, keepdims=True)
        scaled = away / np.sqrt((away**2).mean(axis=1, keepdims=True) + BERT["layer_norm_eps"])
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, rows: np.ndarray, name: str) -> np.ndarray:
        query, key, value = (self.linear(rows, f"{name}.{part}") for part in ("query", "key", "value"))
        mixed = np.zeros_like(rows)
        for head in (slice(0, 4), slice(4, 8)):
            weights = np.exp(query[:, head] @ key[:, head].T / 2)
            mixed[:, head] = weights / weights.sum(axis=1, keepdims=True) @ value[:, head]
        return mixed

    def run(self, tokens: list[int]) -> np.ndarray:
        from math import erf

        parts = ("word_embeddings", "token_type_embeddings", "position_embeddings")
        words, kinds, places = (self.weights[f"embeddings.{part}.weight"] for part in parts)
        rows = self.norm(words[tokens] + kinds[0] + places[: len(tokens)], "embeddings.LayerNorm")
        for number in range(BERT["num_hidden_layers"]):
            name = f"encoder.layer.{number}"
            attended = self.linear(self.attention(rows, f"{name}.attention.self"), f"{name}.attention.output.dense")
            rows = self.norm(attended + rows, f"{name}.attention.output.LayerNorm")
            inner = self.linear(rows, f"{name}.intermediate.dense")
            inner = inner * 0.5 * (1 + np.vectorize(erf)(inner / np.sqrt(2)))
            rows = self.norm(self.linear(inner, f"{name}.output.dense") + rows, f"{name}.output.LayerNorm")
        return rows


def test_the_graph_of_bert_is_bert_and_padding_changes_nothing(tmp_path: Path) -> None:
    weights = bert_weights()
    minilm.write_bert(tmp_path / "model.onnx", BERT, weights)
    texts = [[3, 7, 1, 15, 2], [4, 4]]
    ids, mask = np.zeros((2, 5), np.int64), np.zeros((2, 5), np.int64)
    for row, tokens in enumerate(texts):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (hidden,) = session(tmp_path / "model.onnx").run(["last_hidden_state"], feeds)
    for row, tokens in enumerate(texts):
        np.testing.assert_allclose(hidden[row, : len(tokens)], PlainBert(weights).run(tokens), atol=1e-4)


def test_the_synthetic_classifier_names_the_brightest_channel(tmp_path: Path) -> None:
    synthetic.make_colours(tmp_path, tmp_path)
    pictures = np.full((2, 3, 5, 7), -1, np.float32)
    pictures[0, 1], pictures[1, 2] = 1, 0.6
    (logits,) = session(tmp_path / "model.onnx").run(None, {"pixel_values": pictures})
    np.testing.assert_allclose(logits, [[-5, 5, -5], [-5, -5, 3]], atol=1e-5)


def test_the_synthetic_detector_boxes_each_colour_and_says_it_thrice(tmp_path: Path) -> None:
    synthetic.make_squares(tmp_path, tmp_path)
    picture = np.full((2, 3, 160, 160), 0.447, np.float32)  # the grey that letterboxes are filled with
    picture[0, :, 20:60, 30:90] = np.reshape([1, 0, 0], (3, 1, 1))
    picture[0, :, 159:, 0:1] = np.reshape([0, 0, 1], (3, 1, 1))
    (output,) = session(tmp_path / "model.onnx").run(["output0"], {"images": picture})
    assert output.shape == (2, 7, 9)
    boxes = output[0].T
    np.testing.assert_allclose(boxes[0], [60, 40, 60, 40, 0.95, 0, 0], atol=1e-4)
    np.testing.assert_allclose(boxes[1:3, :5], [[62, 42, 60, 40, 0.8], [60, 40, 72, 48, 0.7]], atol=1e-4)
    np.testing.assert_allclose(boxes[6], [0.5, 159.5, 1, 1, 0, 0, 0.95], atol=1e-4)
    assert not output[0, 4:, 3:6].any()
    assert not output[1, 4:].any()


def variable(name: str, values: np.ndarray, kind: int) -> bytes:
    said = struct.pack("<H", len(name) + 1) + name.encode() + b"\0" + struct.pack("<B", values.ndim)
    said += b"".join(struct.pack("<I", size) for size in values.shape)
    return said + struct.pack("<BI", kind, values.nbytes) + values.tobytes()


def test_variables_of_ctranslate2_are_taken_apart() -> None:
    joined = RANDOM.normal(size=(3 * whisper.WIDTH, whisper.WIDTH)).astype(np.float16)
    biases = np.arange(2 * whisper.WIDTH, dtype=np.float16)
    parts = [
        variable("decoder/num_heads", np.array(6, np.int16), 2),
        variable("encoder/layer_1/self_attention/linear_0/weight", joined, whisper.FLOAT16),
        variable("decoder/layer_2/attention/linear_1/bias", biases, whisper.FLOAT16),
        variable("decoder/layer_norm/gamma", biases[:3], whisper.FLOAT16),
    ]
    head = struct.pack("<I", whisper.FILE_VERSION) + struct.pack("<H", 12) + b"WhisperSpec\0"
    found = whisper.read_variables(io.BytesIO(head + struct.pack("<II", 3, len(parts)) + b"".join(parts)))
    tensors = whisper.transformers_tensors(found)
    start = "model.encoder.layers.1.self_attn"
    assert set(tensors) == {
        *(f"{start}.{part}_proj.weight" for part in "qkv"),
        "model.decoder.layers.2.encoder_attn.v_proj.bias",
        "model.decoder.layer_norm.weight",
    }
    np.testing.assert_array_equal(tensors[f"{start}.k_proj.weight"], joined[whisper.WIDTH : 2 * whisper.WIDTH])
    np.testing.assert_array_equal(tensors["model.decoder.layers.2.encoder_attn.v_proj.bias"], biases[whisper.WIDTH :])
    with pytest.raises(NoModel, match="WhisperSpec"):
        whisper.read_variables(io.BytesIO(struct.pack("<IH", 3, 4) + b"Bert"))


@pytest.mark.parametrize("make", [synthetic.make_colours, synthetic.make_squares])
def test_what_nobody_trained_says_so_and_can_be_added(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path, tmp_path)
    assert '"synthetic": true' in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert "Synthetic" in (tmp_path / "README.md").read_text(encoding="utf-8")
    info = describe(tmp_path).info
    assert (info.format, info.category) == ("onnx", "vision")
