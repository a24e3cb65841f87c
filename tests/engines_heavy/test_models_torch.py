"""Models that `scripts.models` writes without torch, against the libraries whose formats and networks they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

BuiltModel = Callable[[str], Path]
TEXTS = [
    "A man is eating food.",
    "Ünïcödé text, with 123 numbers and a rather long tail " * 4,
    "def f(x): return x * 2",
]
PROSE = (
    "The sun rose over the hills, and the farmers walked to their fields to begin the harvest. By noon the heat was "
    "so great that they rested under the old oak, ate bread and cheese, and told stories about the winter of 1963."
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def test_the_written_bert_gives_the_embeddings_of_sentence_transformers(built_model: BuiltModel) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(built_model("minilm-safetensors")), device="cpu")
    expected = theirs.encode(TEXTS, normalize_embeddings=True)
    folder = built_model("minilm")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    rows = tokenizer.encode_batch(TEXTS)
    mask = np.array([row.attention_mask for row in rows])
    feeds = {"input_ids": np.array([row.ids for row in rows]), "attention_mask": mask, "token_type_ids": 0 * mask}
    (hidden,) = onnxruntime.InferenceSession(folder / "model.onnx").run(None, feeds)
    pooled = (hidden * mask[..., None]).sum(axis=1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    assert (pooled * expected).sum(axis=1).min() > 0.9999


def perplexity(logits: np.ndarray, tokens: list[int]) -> float:
    shifted = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)
    chances = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(np.exp(-chances[np.arange(len(tokens) - 1), tokens[1:]].mean()))


def test_three_formats_of_smollm2_are_one_model(built_model: BuiltModel, smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = built_model("smollm2-safetensors")
    tokens = AutoTokenizer.from_pretrained(folder)(PROSE).input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    written = onnx_logits(built_model("smollm2-onnx-int4"), tokens)
    own = gguf_logits(smollm2, tokens)
    assert (written.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
    assert (own.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
    assert perplexity(written, tokens) == pytest.approx(perplexity(expected, tokens), rel=0.03)
    assert perplexity(own, tokens) == pytest.approx(perplexity(expected, tokens), rel=0.03)


def onnx_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    feeds: dict[str, Any] = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    for each in session.get_inputs():
        if each.name.startswith("past"):
            feeds[each.name] = np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
    (logits,) = session.run(["logits"], feeds)
    return np.asarray(logits[0])


def gguf_logits(path: Path, tokens: list[int]) -> np.ndarray:
    from llama_cpp import Llama

    llama = Llama(str(path), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    assert llama.tokenize(PROSE.encode(), add_bos=False) == tokens
    llama.eval(tokens)
    logits = np.array(llama.scores[: len(tokens)])
    llama.close()
    return logits
