"""sentence-transformers on torch against ONNX Runtime: one real model, two engines, the same vectors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from octonode.errors import OctonodeError
from octonode.protocol.work.text import Embeddings, EmbedRequest
from tests.engines.makers import cosines
from tests.engines_heavy.working import ROOT, load, made

pytestmark = pytest.mark.process

TEXTS = (
    "A man is eating food.",
    "A man eats a piece of bread.",
    "The rocket reached its orbit.",
    "Ünïcödé, 123 numbers, and a rather long tail " * 4,
    "far more words than the model takes " * 60,
)


async def test_they_are_those_of_onnx_runtime(supervise, model_folder):
    found: list[Embeddings] = []
    for engine, folder in (("sentence-transformers", "minilm-safetensors"), ("onnx-embeddings", "minilm")):
        async with supervise(load(engine, model_folder(folder), "embeddings")) as supervisor:
            loaded = await supervisor.wait_ready(ROOT)
            assert (loaded.facts.skills, loaded.facts.context_tokens) == (("embed",), 256)
            found.append((await made(loaded, EmbedRequest(TEXTS))).result)
    torch, onnx = found
    assert cosines(torch, onnx).min() > 0.999
    assert (torch.dimensions, torch.tokens_in, torch.texts_cut) == (onnx.dimensions, onnx.tokens_in, onnx.texts_cut)
    rows = np.frombuffer(torch.vectors, "<f4").reshape(len(TEXTS), torch.dimensions)
    assert np.allclose((rows * rows).sum(axis=1), 1, atol=1e-5), "normalised, as the model says"
    assert rows[0] @ rows[1] > 0.6, "about the same"
    assert rows[0] @ rows[2] < 0.2, "about something else"


async def test_only_parts_of_the_library_are_loaded(supervise, model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder("minilm-safetensors"), folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "antigravity.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    async with supervise(load("sentence-transformers", folder, "embeddings")) as supervisor:
        with pytest.raises(OctonodeError, match="antigravity") as caught:
            await supervisor.wait_ready(ROOT)
    assert caught.value.code == "FORMAT_REFUSED"
