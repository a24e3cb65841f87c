"""Where in a sound somebody speaks, with Silero VAD on ONNX Runtime: probabilities of 32 ms each, made into spans.

Source of the rule from probabilities to spans: `get_speech_timestamps` of https://github.com/snakers4/silero-vad
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from octonode.engines.adapters.base import Outcome, Progress, refuse_skill
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.adapters.onnx_session import Graph
from octonode.engines.adapters.sounds import Samples, read_wav, write_wav
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import Span, VoiceActivity, VoiceActivityRequest
from octonode.protocol.work.skills import WorkRequest

ENGINE: Final = "silero-vad"
RATE_HZ: Final = 16_000
WINDOW: Final = 512
"""Samples of one probability."""
CONTEXT: Final = 64
"""Samples before each window that the network sees too."""
STATE: Final = 128
HYSTERESIS: Final = 0.15
"""Speech ends below the threshold less this, so that a span does not flicker."""
SPEECH_SECONDS_LEAST: Final = 0.25
"""Shorter ones are coughs and clicks."""
PAD_SECONDS: Final = 0.03
"""Kept on both sides of a span, since consonants begin softly."""
SPANS_MAX: Final = 16_384
_PROGRESS_WINDOWS: Final = 313
"""About ten seconds of sound."""


class SileroVadMaker:
    """Sounds of about the same length run together, each with a state of its own."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        return await run_stoppable(partial(self._load, request))

    def _load(self, request: LoadRequest, stop: Stop) -> EngineFacts:
        folder = ModelFolder(request.model_path, ENGINE)
        self._graph = Graph(folder.graph("model.onnx", "silero_vad.onnx"), request)
        if set(self._graph.inputs) != {"input", "state", "sr"} or len(self._graph.outputs) != 2:
            raise OctonodeError(
                f"the graph asks for {', '.join(self._graph.inputs)}; Silero VAD 5 and 6 ask for input, state and sr",
                code="FORMAT_REFUSED",
            )
        self._probabilities([np.zeros(WINDOW, np.float32)], _unheard, stop)
        return self._graph.facts(request, ENGINE, "audio", ("voice_activity",))

    def sample(self) -> WorkRequest | None:
        return VoiceActivityRequest(write_wav(np.zeros(RATE_HZ, np.float32), RATE_HZ))

    def key(self, request: WorkRequest) -> Hashable:
        """By the order of magnitude of the sound, so that a short one does not wait for an hour of another."""
        if not isinstance(request, VoiceActivityRequest):
            raise refuse_skill(request, "voice_activity")
        return len(request.audio).bit_length()

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        return await run_stoppable(partial(self._make, requests, progress))

    def close(self) -> None:
        pass

    def _make(self, requests: Sequence[WorkRequest], progress: Progress, stop: Stop) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(requests)
        sounds: dict[int, Samples] = {}
        for index, request in enumerate(requests):
            stop.check()
            assert isinstance(request, VoiceActivityRequest)
            try:
                sounds[index] = read_wav(request.audio, RATE_HZ)
            except OctonodeError as error:
                outcomes[index] = error
        for index, heard in zip(sounds, self._probabilities(list(sounds.values()), progress, stop), strict=True):
            request = requests[index]
            assert isinstance(request, VoiceActivityRequest)
            seconds = len(sounds[index]) / RATE_HZ
            found = spans(heard, request.threshold, request.silence_seconds_least, seconds)
            outcomes[index] = VoiceActivity(tuple(found[:SPANS_MAX]), seconds)
        return [outcome for outcome in outcomes if outcome is not None]

    def _probabilities(self, sounds: Sequence[Samples], progress: Progress, stop: Stop) -> list[list[float]]:
        """Of each window of each sound. Raises Stopped, OctonodeError ENGINE_FAILED."""
        counts = [-(-len(sound) // WINDOW) for sound in sounds]
        total = max(counts, default=0)
        heard: list[list[float]] = [[] for _ in sounds]
        padded = np.zeros((len(sounds), CONTEXT + total * WINDOW), np.float32)
        for row, sound in enumerate(sounds):
            padded[row, CONTEXT : CONTEXT + len(sound)] = sound
        state = np.zeros((2, len(sounds), STATE), np.float32)
        rate = np.array(RATE_HZ, np.int64)
        for number in range(total):
            window = padded[:, number * WINDOW : number * WINDOW + CONTEXT + WINDOW]
            values, state = self._graph.run({"input": window, "state": state, "sr": rate}, stop)
            for row, count in enumerate(counts):
                if number < count:
                    heard[row].append(float(values[row, 0]))
            if number % _PROGRESS_WINDOWS == 0 or number == total - 1:
                seconds = [each * WINDOW // RATE_HZ for each in (number + 1, total)]
                progress(seconds[0], max(1, seconds[1]))
        return heard


def spans(heard: Sequence[float], threshold: float, silence_seconds_least: float, seconds: float) -> list[Span]:
    """Where the windows' probabilities say speech: begun over the threshold, ended by a long enough pause. Pure."""
    window_seconds = WINDOW / RATE_HZ
    raw: list[tuple[float, float]] = []
    begun: float | None = None
    pause: float | None = None
    for number, probability in enumerate(heard):
        now = number * window_seconds
        if probability >= threshold:
            begun, pause = now if begun is None else begun, None
        elif begun is not None and probability < max(threshold - HYSTERESIS, 0.01):
            pause = now if pause is None else pause
            if now + window_seconds - pause >= silence_seconds_least:
                raw.append((begun, pause))
                begun = pause = None
    if begun is not None:
        raw.append((begun, seconds if pause is None else pause))
    found: list[Span] = []
    for start, end in raw:
        if end - start < SPEECH_SECONDS_LEAST:
            continue
        # two paddings that would overlap share the pause between them
        before = found[-1].end_seconds if found else 0.0
        found.append(Span(max(start - PAD_SECONDS, before), min(end + PAD_SECONDS, seconds)))
    return found


def _unheard(done: int, total: int) -> None:
    pass
