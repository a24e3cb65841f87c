"""Speech and sound, both ways. Times are seconds from the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from octonode.protocol.work.records import Bound

AUDIO_BYTES_MAX = 15 << 20
"""Within one artifact of the wire (16 MiB): about eight minutes of 16 kHz WAV, hours of Opus."""
AUDIO_SECONDS_MAX = 3600.0

Audio = Annotated[bytes, Bound(1, AUDIO_BYTES_MAX)]
"""A sound file; which kinds are read is the engine's: WAV always, others where it has a decoder."""
Seconds = Annotated[float, Bound(0, 1e6)]
Speed = Annotated[float, Bound(0.25, 4)]


@dataclass(frozen=True, slots=True)
class TranscribeRequest:
    audio: Audio
    language: Annotated[str, Bound(0, 16)] = ""
    """ISO-639-1, such as `en`; empty: the engine finds out."""
    prompt: Annotated[str, Bound(0, 4096)] = ""
    """Names and style to expect."""
    temperature: Annotated[float, Bound(0, 1)] = 0.0
    words: bool = False
    """Times for each word as well."""


@dataclass(frozen=True, slots=True)
class Word:
    text: Annotated[str, Bound(0, 256)]
    start_seconds: Seconds
    end_seconds: Seconds


@dataclass(frozen=True, slots=True)
class Segment:
    text: Annotated[str, Bound(0, 8192)]
    start_seconds: Seconds
    end_seconds: Seconds
    words: Annotated[tuple[Word, ...], Bound(0, 4096)] = ()


@dataclass(frozen=True, slots=True)
class Transcription:
    text: Annotated[str, Bound(0, 4 << 20)]
    language: Annotated[str, Bound(0, 16)]
    seconds: Seconds
    """Of the sound."""
    segments: Annotated[tuple[Segment, ...], Bound(0, 16_384)] = ()


@dataclass(frozen=True, slots=True)
class VoiceActivityRequest:
    audio: Audio
    threshold: Annotated[float, Bound(0, 1)] = 0.5
    silence_seconds_least: Annotated[float, Bound(0, 60)] = 0.1
    """Shorter pauses do not part two spans."""


@dataclass(frozen=True, slots=True)
class Span:
    start_seconds: Seconds
    end_seconds: Seconds


@dataclass(frozen=True, slots=True)
class VoiceActivity:
    spans: Annotated[tuple[Span, ...], Bound(0, 16_384)]
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class SpeakRequest:
    text: Annotated[str, Bound(1, 4096)]
    voice: Annotated[str, Bound(0, 64)] = ""
    """Empty: the model's first."""
    speed: Speed = 1.0


@dataclass(frozen=True, slots=True)
class SoundRequest:
    """Sound from a description (AudioLDM)."""

    prompt: Annotated[str, Bound(1, 4096)]
    negative_prompt: Annotated[str, Bound(0, 4096)] = ""
    seconds: Annotated[float, Bound(0.1, 60)] = 5.0
    steps: Annotated[int, Bound(1, 500)] = 50
    guidance: Annotated[float, Bound(0, 50)] = 2.5
    seed: Annotated[int, Bound(-(2**63), 2**63 - 1)] | None = None


@dataclass(frozen=True, slots=True)
class Sound:
    """A WAV file (PCM, 16 bits, one channel)."""

    audio: Annotated[bytes, Bound(0, AUDIO_BYTES_MAX)]
    sample_rate_hz: Annotated[int, Bound(1, 384_000)]
    seconds: Seconds
    media_type: Literal["audio/wav"] = "audio/wav"
    seed: Annotated[int, Bound(-(2**63), 2**63 - 1)] | None = None
