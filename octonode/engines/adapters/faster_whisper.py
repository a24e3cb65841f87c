"""Speech to text with faster-whisper: Whisper models in CTranslate2's format, on a processor with whole numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Final

from octonode.engines.adapters import torch_device
from octonode.engines.adapters.base import Outcome, Progress, refuse_skill
from octonode.engines.adapters.pulse import each_pulsing
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import ConfigError, OctonodeError
from octonode.protocol.work.audio import Segment, TranscribeRequest, Transcription, Word
from octonode.protocol.work.skills import WorkRequest

RATE_HZ: Final = 16_000
SEGMENTS_MAX: Final = 16_384
WORDS_MAX: Final = 4096
"""Of one segment."""
_FALLBACKS: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried in turn where the text repeats itself or is unlikely, when temperature 0 is asked for: as OpenAI's does. What
is drawn by chance is another each time: the library's seed holds for threads that are yet to start."""
_COMPUTE_TYPES: Final = {"cpu": "int8", "cuda": "float16"}


class FasterWhisperMaker:
    """One Whisper model. Requests run one after the other: a batch of sounds gains nothing on a processor."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        folder = torch_device.model_folder(request, "faster-whisper", "model.bin", "tokenizer.json")
        return await run_stoppable(lambda _: self._load(request, folder))

    def _load(self, request: LoadRequest, folder: Path) -> EngineFacts:
        whisper = torch_device.imported("faster-whisper", lambda: __import__("faster_whisper"))
        library = torch_device.imported("faster-whisper", lambda: __import__("ctranslate2"))
        device = "cuda" if library.get_cuda_device_count() else "cpu"
        compute_type = str(request.options.get("compute_type", _COMPUTE_TYPES[device]))
        if compute_type not in library.get_supported_compute_types(device):
            known = ", ".join(sorted(library.get_supported_compute_types(device)))
            raise ConfigError(f"compute_type = {compute_type!r} is not computed on this {device}; it does {known}")
        try:
            self._model = whisper.WhisperModel(
                str(folder),
                device=device,
                compute_type=compute_type,
                cpu_threads=request.threads,
                num_workers=1,
                local_files_only=True,
            )
        except Exception as error:
            raise torch_device.load_failed(error) from None
        self._languages = frozenset(self._model.supported_languages)
        return EngineFacts(
            engine="faster-whisper",
            build=f"faster-whisper {whisper.__version__}, ctranslate2 {library.__version__}",
            backend=device,
            instruction_set="",
            context_tokens=0,
            parallel=1,
            quantization=self._model.model.compute_type,
            flags={"threads": request.threads, "multilingual": bool(self._model.model.is_multilingual)},
            category="audio",
            skills=("transcribe",),
        )

    def sample(self) -> WorkRequest | None:
        return None

    def key(self, request: WorkRequest) -> Hashable:
        if not isinstance(request, TranscribeRequest):
            raise refuse_skill(request, "transcribe")
        check_language(request.language, self._languages)
        return "transcribe"

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        return await each_pulsing(requests, TranscribeRequest, self._transcribed, progress)

    def close(self) -> None:
        pass

    def _transcribed(self, request: TranscribeRequest, progress: Progress, stop: Stop) -> Transcription:
        from octonode.engines.adapters.compressed_sounds import read_sound

        samples = read_sound(request.audio, RATE_HZ, stop.check)
        seconds = len(samples) / RATE_HZ
        stop.check()
        found, info = self._model.transcribe(
            samples,
            language=request.language or None,
            initial_prompt=request.prompt or None,
            temperature=request.temperature or list(_FALLBACKS),
            word_timestamps=request.words,
        )
        segments: list[Segment] = []
        for segment in found:  # each is computed when it is asked for
            stop.check()
            segments.append(_segment(segment, seconds))
            progress(math.floor(segments[-1].end_seconds), math.ceil(seconds))
            if len(segments) == SEGMENTS_MAX:
                break
        progress(math.ceil(seconds), math.ceil(seconds))
        text = "".join(segment.text for segment in segments).strip()
        return Transcription(text, str(info.language), seconds, tuple(segments))


def check_language(language: str, known: frozenset[str]) -> None:
    """Raises OctonodeError: UNSUPPORTED for a language that this model does not write."""
    if language and language not in known:
        some = ", ".join(sorted(known)[:8]) + (", ..." if len(known) > 8 else "")
        raise OctonodeError(f"this model does not know the language {language!r}; it knows {some}", code="UNSUPPORTED")


def _segment(segment: Any, seconds: float) -> Segment:
    words = tuple(
        Word(word.word[:256], within(word.start, seconds), within(word.end, seconds))
        for word in (segment.words or ())[:WORDS_MAX]
    )
    return Segment(segment.text[:8192], within(segment.start, seconds), within(segment.end, seconds), words)


def within(value: float, seconds: float) -> float:
    """Within the sound: Whisper's windows reach past its end."""
    return round(min(max(float(value), 0.0), seconds), 3)
