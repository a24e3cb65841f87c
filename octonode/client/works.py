"""A verb a skill, for both clients: bytes or texts in, the typed record of `protocol.work` out.

Options of each verb are the other fields of the skill's request, and: `peer` (ask this one alone), `mode` (`realtime`,
`batch`), `privacy_level`, `on_progress` (called with the progress of long work).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from octonode.api.schema import Call
from octonode.api.schema.work import Made, Making, work_call
from octonode.client.wire import OnProgress
from octonode.protocol.work.audio import Sound, Transcription, VoiceActivity
from octonode.protocol.work.image import Images
from octonode.protocol.work.text import Embeddings
from octonode.protocol.work.vision import Classification, Detection, ReadText

T = TypeVar("T")


class Works(Protocol):
    """Of the client that blocks."""

    def make(self, call: Call[Making[T]], on_progress: OnProgress | None = None) -> Made[T]: ...

    def embed(
        self, model: str, texts: Sequence[str], *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Embeddings]:
        """Options: truncate."""
        return self.make(work_call(model, "embed", {"texts": list(texts), **options}), on_progress)

    def classify(
        self, model: str, image: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Classification]:
        """Options: top."""
        return self.make(work_call(model, "classify", {"image": image, **options}), on_progress)

    def detect(
        self, model: str, image: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Detection]:
        """Options: score_least, overlap_most, most."""
        return self.make(work_call(model, "detect", {"image": image, **options}), on_progress)

    def read(
        self, model: str, image: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[ReadText]:
        """Options: score_least."""
        return self.make(work_call(model, "read", {"image": image, **options}), on_progress)

    def transcribe(
        self, model: str, audio: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Transcription]:
        """Options: language, prompt, temperature, words."""
        return self.make(work_call(model, "transcribe", {"audio": audio, **options}), on_progress)

    def voice_activity(
        self, model: str, audio: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[VoiceActivity]:
        """Options: threshold, silence_seconds_least."""
        return self.make(work_call(model, "voice_activity", {"audio": audio, **options}), on_progress)

    def speak(self, model: str, text: str, *, on_progress: OnProgress | None = None, **options: Any) -> Made[Sound]:
        """Options: voice, speed."""
        return self.make(work_call(model, "speak", {"text": text, **options}), on_progress)

    def sound(self, model: str, prompt: str, *, on_progress: OnProgress | None = None, **options: Any) -> Made[Sound]:
        """Options: negative_prompt, seconds, steps, guidance, seed."""
        return self.make(work_call(model, "sound", {"prompt": prompt, **options}), on_progress)

    def image(self, model: str, prompt: str, *, on_progress: OnProgress | None = None, **options: Any) -> Made[Images]:
        """Options: negative_prompt, image, strength, width_pixels, height_pixels, steps, guidance, seed, count."""
        return self.make(work_call(model, "image", {"prompt": prompt, **options}), on_progress)


class AsyncWorks(Protocol):
    """Of the client for trio."""

    async def make(self, call: Call[Making[T]], on_progress: OnProgress | None = None) -> Made[T]: ...

    async def embed(
        self, model: str, texts: Sequence[str], *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Embeddings]:
        """Options: truncate."""
        return await self.make(work_call(model, "embed", {"texts": list(texts), **options}), on_progress)

    async def classify(
        self, model: str, image: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Classification]:
        """Options: top."""
        return await self.make(work_call(model, "classify", {"image": image, **options}), on_progress)

    async def detect(
        self, model: str, image: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Detection]:
        """Options: score_least, overlap_most, most."""
        return await self.make(work_call(model, "detect", {"image": image, **options}), on_progress)

    async def read(
        self, model: str, image: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[ReadText]:
        """Options: score_least."""
        return await self.make(work_call(model, "read", {"image": image, **options}), on_progress)

    async def transcribe(
        self, model: str, audio: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Transcription]:
        """Options: language, prompt, temperature, words."""
        return await self.make(work_call(model, "transcribe", {"audio": audio, **options}), on_progress)

    async def voice_activity(
        self, model: str, audio: bytes, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[VoiceActivity]:
        """Options: threshold, silence_seconds_least."""
        return await self.make(work_call(model, "voice_activity", {"audio": audio, **options}), on_progress)

    async def speak(
        self, model: str, text: str, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Sound]:
        """Options: voice, speed."""
        return await self.make(work_call(model, "speak", {"text": text, **options}), on_progress)

    async def sound(
        self, model: str, prompt: str, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Sound]:
        """Options: negative_prompt, seconds, steps, guidance, seed."""
        return await self.make(work_call(model, "sound", {"prompt": prompt, **options}), on_progress)

    async def image(
        self, model: str, prompt: str, *, on_progress: OnProgress | None = None, **options: Any
    ) -> Made[Images]:
        """Options: negative_prompt, image, strength, width_pixels, height_pixels, steps, guidance, seed, count."""
        return await self.make(work_call(model, "image", {"prompt": prompt, **options}), on_progress)
