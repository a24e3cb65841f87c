"""GGUF models made smaller by llama.cpp in their child process, and how well they foresee a text."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from octonode.engines.quantizing import child
from octonode.engines.quantizing.english import ENGLISH
from octonode.engines.quantizing.job import Job, Made
from octonode.engines.quantizing.perplexity import perplexity
from octonode.engines.quantizing.said import Progress
from octonode.errors import OctonodeError

pytestmark = [pytest.mark.process, pytest.mark.model]
WEIGHTS = 134_515_008
BITS = {"F16": 16, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_K_M": 5.5}


@pytest.fixture
def quantize(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs the child on a model, which gives `Made`."""

    async def run(source: Path, kind: str, tell: Callable[[Progress], None] = lambda progress: None) -> Made:
        target = tmp_path / f"made-{kind}"
        target.mkdir()
        job = Job("gguf", kind, str(source), str(target), measure=False)
        return await child.make(
            job, python="", directory=tmp_path / f"child-{kind}", threads=1, memory_bytes_max=4 << 30, tell=tell
        )

    return run


@pytest.mark.parametrize("kind", list(BITS))
async def test_a_model_is_made_smaller_or_unpacked_and_opens(smollm2, quantize, kind):
    steps: list[Progress] = []
    made = await quantize(smollm2, kind, steps.append)
    path = Path(made.path)
    assert path.name == f"SmolLM2-135M-Instruct.{kind}.gguf"
    assert made.bytes == path.stat().st_size
    assert made.parent_bytes == smollm2.stat().st_size
    assert made.weights == WEIGHTS
    # a small model keeps much in more bits: embeddings, and rows that do not divide into blocks of 256
    assert 0.95 < made.bytes / (WEIGHTS * BITS[kind] / 8) < 1.5
    weights = [step for step in steps if step.stage == "weights"]
    assert weights[-1].done == weights[-1].total == 272


async def test_perplexity_tells_how_much_is_lost(smollm2, quantize):
    """Over two windows only: half a minute is saved, and the order of the three is the same."""
    text, steps = ENGLISH[:2400], []

    async def measured(path: Path) -> float:
        def run() -> float:
            return perplexity(path, text, tell=lambda *step: steps.append(step), window=256)

        return await trio.to_thread.run_sync(run)

    parent = await measured(smollm2)
    eight = await measured(Path((await quantize(smollm2, "Q8_0")).path))
    four = await measured(Path((await quantize(smollm2, "Q4_0")).path))
    assert 1 < parent < 50, "English is foreseen, and not known by heart"
    assert abs(eight / parent - 1) < 0.03, "8 bits hold what 4 bits held"
    assert 0.98 < four / parent < 1.5
    assert steps[-1] == ("quality", 2, 2)


async def test_a_pickle_named_gguf_is_refused(tmp_path, quantize):
    path = tmp_path / "model.gguf"
    path.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(OctonodeError) as caught:
        await quantize(path, "Q8_0")
    assert caught.value.code == "FORMAT_REFUSED"


async def test_a_truncated_model_is_told_in_the_library_s_words(smollm2, tmp_path, quantize):
    cut = tmp_path / "cut.gguf"
    with smollm2.open("rb") as file:
        cut.write_bytes(file.read(20_000_000))
    with pytest.raises(OctonodeError) as caught:
        await quantize(cut, "Q8_0")
    assert caught.value.code == "ENGINE_FAILED"
    assert "llama.cpp could not make Q8_0" in caught.value.message


async def test_cancelling_ends_the_child(smollm2, tmp_path, quantize):
    with trio.CancelScope() as scope:

        def at_the_first_weights(progress: Progress) -> None:
            if progress.stage == "weights":
                scope.cancel()

        await quantize(smollm2, "F16", at_the_first_weights)
    assert scope.cancelled_caught
    assert not (tmp_path / "child-F16").exists(), "it is gone, and its directory with it"
