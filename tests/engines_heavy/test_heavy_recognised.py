"""The models of this ring as `models add` sees them, and the engine that `auto` takes for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from octonode.engines.select import engine_for
from octonode.models.inspecting import inspect_paths


@pytest.mark.parametrize(
    ("folder", "described", "engine"),
    [
        ("tiny-sd", ("safetensors", "diffusion", "StableDiffusionPipeline"), "diffusers"),
        ("tiny-audioldm", ("safetensors", "audio", "AudioLDMPipeline"), "audioldm"),
        ("whisper-tiny-en", ("ctranslate2", "audio", "Whisper"), "faster-whisper"),
        (
            "whisper-tiny-en-hf",
            ("safetensors", "audio", "WhisperForConditionalGeneration"),
            "transformers-whisper",
        ),
        ("minilm-safetensors", ("safetensors", "embeddings", "BertModel"), "sentence-transformers"),
        ("smollm2-safetensors", ("safetensors", "llm", "LlamaForCausalLM"), "transformers"),
    ],
)
def test_each_is_known_and_has_its_engine(
    model_folder: Callable[[str], Path], folder: str, described: tuple[str, str, str], engine: str
) -> None:
    root = model_folder(folder)
    paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    info = inspect_paths([(path.relative_to(root).as_posix(), path) for path in paths])
    assert (info.format, info.category, info.architecture) == described
    assert info.shape.parameters > 100_000
    row = engine_for(info.format, category=info.category, architecture=info.architecture)
    assert row.name == engine
