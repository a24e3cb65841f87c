"""Speech from text with a voice of Piper (VITS) on ONNX Runtime, a sentence at a time.

The voice's own json beside the graph says how letters become numbers. Its source, and the meaning of the three scales:
https://github.com/OHF-Voice/piper1-gpl/blob/main/docs/TRAINING.md
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from octonode.engines.adapters.base import Outcome, Progress, each_alone, refuse_skill
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.adapters.onnx_session import Array, Graph
from octonode.engines.adapters.phonemes import Phonemizer, phonemizer_for
from octonode.engines.adapters.sounds import Samples, write_wav
from octonode.engines.adapters.spoken_english import SENTENCE_CHARACTERS_MAX
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import AUDIO_BYTES_MAX, Sound, SpeakRequest
from octonode.protocol.work.skills import WorkRequest

ENGINE: Final = "piper"
BEGIN, END, PAD = "^", "$", "_"
"""Of a sentence; the last stands between all others."""
SILENCE_SECONDS: Final = 0.2
"""Between two sentences."""
PEAK: Final = 0.95
"""Loudness of the loudest sample, whatever the voice was recorded with."""
NOISE_SCALE, LENGTH_SCALE, NOISE_WIDTH = 0.667, 1.0, 0.8
"""Piper's own, for a voice that does not say how lively, slow and uneven it is."""
RATE_HZ_MOST: Final = 192_000
_FIRST_WORDS: Final = "Hello."


class PiperMaker:
    """One voice, or the speakers of one. What it says differs a little each time: a voice without chance is flat."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        return await run_stoppable(partial(self._load, request))

    def _load(self, request: LoadRequest, stop: Stop) -> EngineFacts:
        folder = ModelFolder(request.model_path, ENGINE)
        path = folder.graph("model.onnx")
        self._voice = voice_of(folder.map(f"{path.name}.json") or folder.map("config.json"))
        self._phonemizer: Phonemizer = Letters() if self._voice.letters else phonemizer_for(self._voice.language)
        self._graph = Graph(path, request)
        if not {"input", "input_lengths", "scales"} <= set(self._graph.inputs):
            text = f"the graph asks for {', '.join(self._graph.inputs)[:200]}, which no voice of Piper does"
            raise OctonodeError(text, code="FORMAT_REFUSED")
        self._say(SpeakRequest(_FIRST_WORDS), _unheard, stop)
        return self._graph.facts(
            request, ENGINE, "audio", ("speak",),
            flags={
                "voices": ",".join(self._voice.speakers)[:1024],
                "language": self._voice.language,
                "phonemes": self._phonemizer.name,
                "deterministic": False,
            },
        )  # fmt: skip

    def sample(self) -> WorkRequest | None:
        """None: sentences differ in length, and each is run alone."""
        return None

    def key(self, request: WorkRequest) -> Hashable:
        if not isinstance(request, SpeakRequest):
            raise refuse_skill(request, "speak")
        self._speaker(request.voice)
        return "speak"

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        return await run_stoppable(partial(self._make, requests, progress))

    def close(self) -> None:
        pass

    def _make(self, requests: Sequence[WorkRequest], progress: Progress, stop: Stop) -> list[Outcome]:
        return each_alone(requests, SpeakRequest, lambda each: self._say(each, progress, stop))

    def _say(self, request: SpeakRequest, progress: Progress, stop: Stop) -> Sound:
        """Raises Stopped; OctonodeError BAD_REQUEST for a text without a sound in it, TOO_LARGE, ENGINE_FAILED."""
        voice = self._voice
        sentences = list(self._phonemizer.phonemes(request.text))
        if not sentences:
            text = f"the text has no words that a voice of {voice.language} can say; write it in that language, or ask "
            text += "a model that speaks yours"
            raise OctonodeError(text, code="BAD_REQUEST")
        silence = np.zeros(int(voice.rate_hz * SILENCE_SECONDS), np.float32)
        parts: list[Samples] = []
        for number, sentence in enumerate(sentences):
            parts += [silence] if parts else []
            parts.append(self._run(voice.numbers(sentence), request, stop))
            if sum(map(len, parts)) * 2 > AUDIO_BYTES_MAX:
                raise OctonodeError(
                    f"the speech is more than {AUDIO_BYTES_MAX >> 20} MiB; send the text in parts", code="TOO_LARGE"
                )
            progress(number + 1, len(sentences))
        samples = np.concatenate(parts)
        samples = samples * (PEAK / max(float(np.abs(samples).max()), 0.01))
        return Sound(write_wav(samples, voice.rate_hz), voice.rate_hz, len(samples) / voice.rate_hz)

    def _run(self, numbers: Sequence[int], request: SpeakRequest, stop: Stop) -> Samples:
        scales = [self._voice.noise_scale, self._voice.length_scale / request.speed, self._voice.noise_width]
        feeds: dict[str, Array] = {
            "input": np.array([numbers], np.int64),
            "input_lengths": np.array([len(numbers)], np.int64),
            "scales": np.array(scales, np.float32),
        }
        if "sid" in self._graph.inputs:
            feeds["sid"] = np.array([self._speaker(request.voice)], np.int64)
        values = self._graph.run(feeds, stop)
        return values[0].reshape(-1).astype(np.float32, copy=False)

    def _speaker(self, name: str) -> int:
        """Raises OctonodeError BAD_REQUEST, which names the voices there are."""
        speakers = self._voice.speakers
        if name and name not in speakers:
            known = ", ".join(list(speakers)[:16])
            raise OctonodeError(f"the model has no voice {name!r}; it has {known}", code="BAD_REQUEST")
        return speakers[name] if name else next(iter(speakers.values()))


class Letters:
    """For voices that were trained on letters (`phoneme_type` is `text`)."""

    name = "letters"

    def phonemes(self, text: str) -> Iterator[str]:
        for line in text.lower().splitlines():
            for first in range(0, len(line), SENTENCE_CHARACTERS_MAX):
                if any(each.isalnum() for each in line[first : first + SENTENCE_CHARACTERS_MAX]):
                    yield line[first : first + SENTENCE_CHARACTERS_MAX]


@dataclass(frozen=True, slots=True)
class Voice:
    """What the json of a voice says."""

    rate_hz: int
    language: str
    """As eSpeak names it."""
    ids: Mapping[str, tuple[int, ...]]
    speakers: Mapping[str, int]
    letters: bool = False
    noise_scale: float = NOISE_SCALE
    length_scale: float = LENGTH_SCALE
    noise_width: float = NOISE_WIDTH

    def numbers(self, sentence: str) -> list[int]:
        """What the network is fed; sounds that the voice never learned are left out."""
        found = [*self.ids[BEGIN], *self.ids[PAD]]
        for each in sentence:
            if each in self.ids:
                found += [*self.ids[each], *self.ids[PAD]]
        return [*found, *self.ids[END]]


def voice_of(config: Mapping[str, Any]) -> Voice:
    """Raises OctonodeError FORMAT_REFUSED for what is no voice of Piper."""
    try:
        kind = config.get("phoneme_type", "espeak")
        if kind not in ("espeak", "text"):
            raise ValueError(f"it speaks in {kind!r}")
        scales = config.get("inference", {})
        rate_hz = int(config["audio"]["sample_rate"])
        ids = {str(key): tuple(int(each) for each in value) for key, value in config["phoneme_id_map"].items()}
        if not 1000 <= rate_hz <= RATE_HZ_MOST or not {BEGIN, END, PAD} <= set(ids):
            raise ValueError("its rate or its phonemes")
        speakers = {str(key): int(value) for key, value in (config.get("speaker_id_map") or {}).items()}
        return Voice(
            rate_hz,
            str(config.get("espeak", {}).get("voice", "en-us")),
            ids,
            speakers or {str(config.get("dataset") or "default"): 0},
            kind == "text",
            float(scales.get("noise_scale", NOISE_SCALE)),
            float(scales.get("length_scale", LENGTH_SCALE)),
            float(scales.get("noise_w", NOISE_WIDTH)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        text = f"the json of the voice is not one of Piper's ({error}); it lies beside the graph as model.onnx.json"
        raise OctonodeError(text, code="FORMAT_REFUSED") from None


def _unheard(done: int, total: int) -> None:
    pass
