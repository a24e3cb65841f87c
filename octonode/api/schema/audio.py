"""OpenAI's audio: speech to text and back. Pure. Source: https://platform.openai.com/docs/api-reference/audio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from octonode.api.schema.failures import bad_request
from octonode.api.schema.fields import Served, Terms, body_of, choice_of, number_of, terms_of, text_of
from octonode.protocol.work.audio import (
    AUDIO_BYTES_MAX,
    Segment,
    SpeakRequest,
    TranscribeRequest,
    Transcription,
    Word,
)

Form = Literal["json", "text", "srt", "verbose_json", "vtt"]
FORMS: Final = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES: Final = ("segment", "word")
VOICES_ANY: Final = frozenset(
    {"", "default", "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage"}
    | {"shimmer", "verse"}
)
"""OpenAI's own voices are no model's here, and its clients must name one: they mean the model's first."""
TEXT_CHARACTERS_MAX: Final = 4096
PROMPT_CHARACTERS_MAX: Final = 4096

TRANSCRIPTION: Final = Served(
    read=frozenset(
        {
            *("model", "language", "prompt", "response_format", "temperature", "timestamp_granularities"),
            *("privacy_level", "octonode"),
        }
    ),
    neutral={
        "stream": lambda value: value in (False, "false"),
        "chunking_strategy": lambda value: value == "auto",
        "include": lambda value: value == [],
        "keywords": lambda value: value == [],
        "languages": lambda value: value == [],
        "known_speaker_names": lambda value: value == [],
        "known_speaker_references": lambda value: value == [],
    },
)
SPEECH: Final = Served(
    read=frozenset({"model", "input", "voice", "speed", "response_format", "privacy_level", "octonode"}),
    neutral={"instructions": lambda value: value == "", "stream_format": lambda value: value == "audio"},
)


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    terms: Terms
    work: TranscribeRequest
    form: Form
    granularities: tuple[str, ...] = ("segment",)


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    terms: Terms
    work: SpeakRequest
    form: Literal["wav", "pcm"]


def parse_transcription(fields: Mapping[str, Any], audio: bytes, header: str | None = None) -> TranscriptionRequest:
    """The request in the fields of a form, numbers read from their texts, beside the sound.

    Raises BAD_REQUEST, UNSUPPORTED or PRIVACY_UNAVAILABLE, with `param`.
    """
    TRANSCRIPTION.check(fields)
    if len(audio) > AUDIO_BYTES_MAX:
        message = f"file has {len(audio)} bytes; at most {AUDIO_BYTES_MAX} are taken: compress it, or send it in parts"
        raise bad_request(message, "file", code="TOO_LARGE")
    form = cast(Form, choice_of(fields, "response_format", FORMS))
    granularities = _granularities(fields.get("timestamp_granularities"), form)
    work = TranscribeRequest(
        audio=audio,
        language=text_of(fields, "language", characters_max=16),
        prompt=text_of(fields, "prompt", characters_max=PROMPT_CHARACTERS_MAX),
        temperature=number_of(fields, "temperature", 0, 1, default=0.0),
        words="word" in granularities,
    )
    return TranscriptionRequest(terms_of(fields, header), work, form, granularities)


def _granularities(value: Any, form: Form) -> tuple[str, ...]:
    if value is None:
        return ("segment",)
    if form != "verbose_json":
        message = "timestamp_granularities needs response_format verbose_json"
        raise bad_request(message, "timestamp_granularities")
    if not isinstance(value, list) or not value or not set(value) <= set(GRANULARITIES):
        raise bad_request("timestamp_granularities takes segment and word", "timestamp_granularities")
    return tuple(value)


def parse_speech(body: Any, privacy_header: str | None = None) -> SpeechRequest:
    """The request in a decoded JSON body. Raises BAD_REQUEST, UNSUPPORTED or PRIVACY_UNAVAILABLE, with `param`."""
    body = body_of(body)
    SPEECH.check(body)
    form = body.get("response_format")
    if form not in (None, "wav", "pcm"):
        message = "response_format must be wav or pcm: this node has no encoder for others, so turn the WAV into one"
        known = form in ("mp3", "opus", "aac", "flac")
        raise bad_request(message, "response_format", code="UNSUPPORTED" if known else "BAD_REQUEST")
    said = text_of(body, "input", characters_max=TEXT_CHARACTERS_MAX)
    if not said.strip():
        raise bad_request("input must be the text to speak", "input")
    voice = text_of(body, "voice", characters_max=64)
    work = SpeakRequest(
        said,
        voice="" if voice in VOICES_ANY else voice,
        speed=number_of(body, "speed", 0.25, 4),
    )
    return SpeechRequest(terms_of(body, privacy_header), work, "pcm" if form == "pcm" else "wav")


# --- Transcripts as they are asked for ------------------------------------------------------------------------------


def transcription_json(request: TranscriptionRequest, found: Transcription, facts: Mapping[str, Any]) -> dict[str, Any]:
    """`json` and `verbose_json`. What the engine does not say (probabilities of a segment) is left out."""
    used = {"type": "duration", "seconds": found.seconds}
    if request.form == "json":
        return {"text": found.text, "usage": used, "octonode": dict(facts)}
    value: dict[str, Any] = {
        "task": "transcribe",
        "language": found.language,
        "duration": found.seconds,
        "text": found.text,
    }
    if "segment" in request.granularities:
        value["segments"] = [
            {"id": index, "start": each.start_seconds, "end": each.end_seconds, "text": each.text}
            for index, each in enumerate(found.segments)
        ]
    if "word" in request.granularities:
        value["words"] = [
            {"word": each.text.strip(), "start": each.start_seconds, "end": each.end_seconds}
            for each in words_of(found.segments)
        ]
    return {**value, "usage": used, "octonode": dict(facts)}


def words_of(segments: Sequence[Segment]) -> Iterator[Word]:
    for segment in segments:
        yield from segment.words


def transcription_text(form: Form, found: Transcription) -> str:
    """`text`, `srt` and `vtt`."""
    if form == "text":
        return found.text + "\n"
    if form == "vtt":
        cues = [f"{_span(each, '.')}\n{_cue(each)}\n" for each in found.segments]
        return "WEBVTT\n\n" + "\n".join(cues)
    return "\n".join(f"{number}\n{_span(each, ',')}\n{_cue(each)}\n" for number, each in enumerate(found.segments, 1))


def _cue(segment: Segment) -> str:
    """One line, and none that a reader of subtitles takes for times."""
    return " ".join(segment.text.replace("-->", "->").split())


def _span(segment: Segment, mark: str) -> str:
    return f"{clock(segment.start_seconds, mark)} --> {clock(segment.end_seconds, mark)}"


def clock(seconds: float, mark: str = ".") -> str:
    """`01:02:03.456`."""
    whole_ms = round(seconds * 1000)
    minutes, left_ms = divmod(whole_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{left_ms // 1000:02d}{mark}{left_ms % 1000:03d}"
