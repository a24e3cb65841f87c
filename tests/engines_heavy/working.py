"""What the tests of ring 2 share: one request to its result, and real speech made by a real voice."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octonode.engines.contract import Engine, EngineEvent, Finished, LoadRequest, Made, Step
from octonode.protocol.work.skills import WorkRequest

ROOT = "bafy-test-root"
SENTENCE = "ðə kwˈɪk bɹˈaʊn fˈɑːks dʒˈʌmps ˌoʊvɚ ðə lˈeɪzi dˈɑːɡ."
"""As espeak writes `The quick brown fox jumps over the lazy dog.` for a voice of Piper."""
RATE_HZ = 22_050
"""Of that voice."""
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog")


def load(engine: str, folder: Path, category: str, **options: str | float | bool) -> LoadRequest:
    return LoadRequest(engine, folder, ROOT, 512, 2, 1, dict(options), category)


@dataclass
class Work:
    """What one request gave."""

    result: Any = None
    steps: list[Step] = field(default_factory=list)


async def made(
    engine: Engine, request: WorkRequest, on_event: Callable[[EngineEvent], object] = lambda event: None
) -> Work:
    """Runs a request to its end; raises what the engine does."""
    work = Work()
    async with engine.make(request) as events:
        async for event in events:
            on_event(event)
            if isinstance(event, Step):
                work.steps.append(event)
            elif isinstance(event, Made):
                work.result = event.result
    assert isinstance(event, Finished)
    assert work.result is not None
    return work


def spoken(voice: Path) -> bytes:
    """SENTENCE as a WAV file, by the network of a Piper voice and no noise: the same bytes each time."""
    import onnxruntime

    said = json.loads((voice / "model.onnx.json").read_text(encoding="utf-8"))
    numbers = said["phoneme_id_map"]
    ids = [*numbers["^"], *numbers["_"]]
    for phoneme in SENTENCE:
        ids += [*numbers[phoneme], *numbers["_"]]
    ids += numbers["$"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(voice / "model.onnx"), options)
    feeds = {
        "input": np.array([ids], np.int64),
        "input_lengths": np.array([len(ids)], np.int64),
        "scales": np.array([0.0, 1.0, 0.0], np.float32),
    }
    samples = session.run(None, feeds)[0].reshape(-1)
    return wav((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), said["audio"]["sample_rate"])


def frames_of(sound: bytes) -> bytes:
    """The samples of a file that `wav` wrote."""
    with wave.open(io.BytesIO(sound)) as reader:
        return reader.readframes(reader.getnframes())


def wav(frames: bytes, rate_hz: int) -> bytes:
    """Samples of 16 bits, one channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(frames)
    return file.getvalue()
