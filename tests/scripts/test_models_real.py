"""The models of ring 1 as they stand in build/models: `models add` takes them, and each does what it is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer

from octonode.models.adding import describe
from scripts import get_models

pytestmark = pytest.mark.model

BuiltModel = Callable[[str], Path]
KINDS = {
    "minilm": ("onnx", "embeddings"),
    "minilm-int8": ("onnx", "embeddings"),
    "ocr": ("onnx", "vision"),
    "text-direction": ("onnx", "vision"),
    "silero-vad": ("onnx", "audio"),
    "piper-joe": ("onnx", "audio"),
    "colours-synthetic": ("onnx", "vision"),
    "squares-synthetic": ("onnx", "vision"),
    "smollm2-onnx-int4": ("onnx", "llm"),
}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def test_every_model_of_ring_1_is_taken_for_what_it_is(built_model: BuiltModel) -> None:
    found = {each.name: describe(built_model(each.name)).info for each in get_models.chosen(["ring1"])}
    assert {name: (info.format, info.category) for name, info in found.items()} == KINDS


def embedded(folder: Path, texts: list[str]) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    rows = tokenizer.encode_batch(texts)
    vectors = []
    for row in rows:
        feeds = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
        (hidden,) = session(folder / "model.onnx").run(None, {key: np.array([each]) for key, each in feeds.items()})
        vector = hidden[0].mean(axis=0)
        vectors.append(vector / np.linalg.norm(vector))
    return np.stack(vectors)


def test_the_embeddings_know_what_is_alike_and_int8_stays_near(built_model: BuiltModel) -> None:
    texts = ["A man is eating food.", "Someone eats a meal in a restaurant.", "The stock market fell sharply today."]
    wide, narrow = (embedded(built_model(name), texts) for name in ("minilm", "minilm-int8"))
    like, unlike = wide[0] @ wide[1], wide[0] @ wide[2]
    assert like > 0.5
    assert abs(unlike) < 0.2
    assert (wide * narrow).sum(axis=1).min() > 0.97


def test_the_direction_of_text_is_seen(built_model: BuiltModel) -> None:
    page = Image.new("RGB", (300, 60), "white")
    ImageDraw.Draw(page).text((10, 5), "Hello octonode", fill="black", font=ImageFont.load_default(36))
    direction = session(built_model("text-direction") / "model.onnx")
    for turned, label in ((0, 0), (180, 1)):
        pixels = np.asarray(page.rotate(turned).resize((192, 48)), np.float32) / 127.5 - 1
        (logits,) = direction.run(["logits"], {"x": pixels.transpose(2, 0, 1)[None]})
        assert math.exp(logits[0, label]) > 0.9


def test_the_keys_of_ocr_are_one_less_two_than_the_classes(built_model: BuiltModel) -> None:
    folder = built_model("ocr")
    keys = (folder / "keys.txt").read_text(encoding="utf-8").split("\n")
    (output,) = session(folder / "recognition.onnx").get_outputs()
    assert len(keys) + 2 == output.shape[2]  # the blank and the space


def test_the_onnx_model_speaks_and_its_tokenizer_is_the_one_of_the_gguf(built_model: BuiltModel) -> None:
    """The answer is what llama.cpp gives to the same prompt; values rounded anew answered otherwise."""
    import onnxruntime_genai as genai

    folder = built_model("smollm2-onnx-int4")
    model: Any = genai.Model(str(folder))
    tokenizer = genai.Tokenizer(model)
    talk = [("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")]
    talk.append(("user", "Write one sentence about the sea."))
    prompt = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in talk) + "<|im_start|>assistant\n"
    tokens = tokenizer.encode(prompt)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert list(tokens) == own.encode(prompt).ids
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(tokens) + 8, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(tokens)
    while not generator.is_done():
        generator.generate_next_token()
    assert tokenizer.decode(generator.get_sequence(0)[len(tokens) :]) == "The sea is a vast and mysterious realm"
