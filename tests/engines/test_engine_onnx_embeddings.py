"""Embeddings of the real MiniLM on ONNX Runtime: what near and far means, what is cut, and what no file may ask for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from octonode.engines.adapters.onnx_embeddings import OnnxEmbeddingsMaker, pooled, recipe_of
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.contract import LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.text import Embeddings, EmbedRequest
from octonode.protocol.work.vision import ClassifyRequest
from tests.engines.makers import NOTHING, ROOT, cosines, unheard

pytestmark = pytest.mark.model
PAIRS = (
    ("A man is eating food.", "Someone eats a meal."),
    ("The sky is blue today.", "There is not a cloud above us."),
)
GOLDEN = 0.7614
"""Cosine of the first pair; sentence-transformers gives the same on torch (ring 2 compares vectors)."""


def request_for(folder: Path, context_tokens: int = 2048) -> LoadRequest:
    return LoadRequest("onnx-embeddings", folder, ROOT, context_tokens, 2, 1, category="embeddings")


async def embed(maker: OnnxEmbeddingsMaker, *texts: str, truncate: bool = True) -> Embeddings:
    [outcome] = await maker.make([EmbedRequest(texts, truncate)], unheard)
    if isinstance(outcome, OctonodeError):
        raise outcome
    assert isinstance(outcome, Embeddings)
    return outcome


def rows(found: Embeddings) -> np.ndarray:
    return np.frombuffer(found.vectors, "<f4").reshape(-1, found.dimensions)


async def test_near_texts_are_near_and_vectors_have_length_one(loaded):
    maker = loaded(OnnxEmbeddingsMaker, "minilm")
    found = await embed(maker, *(text for pair in PAIRS for text in pair))
    vectors = rows(found)
    assert (len(vectors), found.dimensions, found.texts_cut) == (4, 384, 0)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] == pytest.approx(GOLDEN, abs=2e-3)
    assert likeness[0, 1] > 0.5 > max(likeness[0, 2], likeness[1, 3])
    assert likeness[2, 3] > max(likeness[2, 0], likeness[2, 1])
    assert found.tokens_in == 8 + 7 + 8 + 10


async def test_eight_bits_are_near_to_thirty_two(loaded):
    texts = [text for pair in PAIRS for text in pair]
    whole = await embed(loaded(OnnxEmbeddingsMaker, "minilm"), *texts)
    quantized = await embed(loaded(OnnxEmbeddingsMaker, "minilm-int8"), *texts)
    assert cosines(whole, quantized).min() > 0.95
    assert not np.array_equal(rows(whole), rows(quantized)), "it is another model"


async def test_padding_and_order_change_nothing(loaded):
    maker = loaded(OnnxEmbeddingsMaker, "minilm")
    texts = ["short", "a text of middling length about boats", "long " * 90, "", "two words"]
    together = rows(await embed(maker, *texts))
    for text, vector in zip(texts, together, strict=True):
        assert rows(await embed(maker, text))[0] == pytest.approx(vector, abs=1e-5)


async def test_what_is_too_long_is_cut_and_told_or_refused(loaded):
    maker = loaded(OnnxEmbeddingsMaker, "minilm")
    long = "word " * 400
    cut = await embed(maker, long, "short")
    assert (cut.tokens_in, cut.texts_cut) == (256 + 3, 1)
    assert rows(await embed(maker, "word " * 254))[0] == pytest.approx(rows(cut)[0], abs=1e-5)
    with pytest.raises(OctonodeError) as caught:
        await embed(maker, "short", long, truncate=False)
    assert caught.value.code == "CONTEXT_EXCEEDED"
    assert "text 1" in caught.value.message
    assert "256" in caught.value.message
    good, bad = await maker.make([EmbedRequest(("short",)), EmbedRequest((long,), False)], unheard)
    assert isinstance(good, Embeddings)
    assert isinstance(bad, OctonodeError)


async def test_an_answer_that_would_not_fit_is_refused_before_it_is_made(loaded):
    maker = loaded(OnnxEmbeddingsMaker, "minilm")
    assert maker.key(EmbedRequest(("a",) * 2048)) == maker.key(EmbedRequest(("b",)))
    maker._dimensions = 4096  # as larger models have
    try:
        with pytest.raises(OctonodeError) as caught:
            maker.key(EmbedRequest(("a",) * 2048))
    finally:
        maker._dimensions = 384
    assert caught.value.code == "TOO_LARGE"
    assert "1024 at a time" in caught.value.message
    with pytest.raises(OctonodeError) as caught:
        maker.key(ClassifyRequest(NOTHING))
    assert caught.value.code == "UNSUPPORTED"
    assert "embed" in caught.value.message


def test_pooling_is_what_its_name_says():
    values = np.array([[[1.0, 10.0], [3.0, 30.0], [99.0, 99.0]]], np.float32)
    mask = np.array([[1.0, 1.0, 0.0]], np.float32)
    assert pooled(values, mask, "mean").tolist() == [[2, 20]]
    assert pooled(values, mask, "cls").tolist() == [[1, 10]]
    assert pooled(values, mask, "max").tolist() == [[3, 30]]
    assert pooled(values, mask, "lasttoken").tolist() == [[3, 30]]
    assert pooled(values, mask, "mean_sqrt_len")[0] == pytest.approx(np.array([4, 40]) / 2**0.5)
    assert pooled(values, mask, "weightedmean")[0] == pytest.approx([(1 + 6) / 3, (10 + 60) / 3])


def test_the_files_of_the_model_decide(tmp_path, model_folder):
    folder = tmp_path / "model"
    folder.mkdir()

    def write(name: str, value: object) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value), "utf-8")

    def recipe(context_tokens: int = 0):
        return recipe_of(ModelFolder(folder, "onnx-embeddings"), context_tokens)

    assert (recipe().pooling, recipe().normalise, recipe().tokens_max) == ("mean", False, 512)
    write("config.json", {"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1})
    write("tokenizer_config.json", {"model_max_length": 10**30})
    assert (recipe().tokens_max, recipe().pad_id) == (512, 1)
    write("sentence_bert_config.json", {"max_seq_length": 9000, "do_lower_case": True})
    assert (recipe().tokens_max, recipe().lower_case) == (512, True), "no more than it has positions"
    assert recipe(100).tokens_max == 100, "no more than the node allows"
    kinds = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in ("Transformer", "Pooling")]
    write("modules.json", kinds)
    write("Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    assert (recipe().pooling, recipe().normalise) == ("cls", False)
    write("Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True})
    with pytest.raises(OctonodeError, match="cls and max"):
        recipe()
    write("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "Dense"}])
    with pytest.raises(OctonodeError) as caught:
        recipe()
    assert caught.value.code == "FORMAT_REFUSED"
    assert "Dense" in caught.value.message
    write("modules.json", [{"type": "x.Pooling", "path": "../../../etc"}])
    assert recipe().pooling == "mean", "nothing outside of the model is read"


@pytest.mark.parametrize(
    ("damage", "code"), [("tokenizer", "FORMAT_REFUSED"), ("graph", "FORMAT_REFUSED"), ("missing", "FORMAT_REFUSED")]
)
async def test_a_folder_that_is_not_whole_is_refused_with_words(tmp_path, model_folder, damage, code):
    folder = tmp_path / "model"
    shutil.copytree(model_folder("minilm-int8"), folder)
    if damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}", "utf-8")
    elif damage == "graph":
        (folder / "model.onnx").write_bytes(b"\x08\x07not a graph")
    else:
        (folder / "tokenizer.json").unlink()
    with pytest.raises(OctonodeError) as caught:
        await OnnxEmbeddingsMaker().load(request_for(folder), tmp_path)
    assert caught.value.code == code
    assert ("model.onnx" if damage == "graph" else "tokenizer.json") in caught.value.message


async def test_values_that_are_no_numbers_are_an_error_and_no_answer(tmp_path, model_folder):
    """The real model with one weight broken, as a damaged disk or a bad conversion leaves it."""
    import onnx
    from onnx import numpy_helper

    folder = tmp_path / "model"
    shutil.copytree(model_folder("minilm"), folder)
    graph = onnx.load(str(folder / "model.onnx"))
    broken = next(each for each in graph.graph.initializer if len(each.dims) == 1 and each.dims[0] == 384)
    values = numpy_helper.to_array(broken).copy()
    values[7] = np.nan
    broken.CopyFrom(numpy_helper.from_array(values, broken.name))
    onnx.save(graph, str(folder / "model.onnx"))
    with pytest.raises(OctonodeError) as caught:
        await OnnxEmbeddingsMaker().load(request_for(folder), tmp_path)
    assert caught.value.code == "ENGINE_FAILED"
    assert "no numbers" in caught.value.message
