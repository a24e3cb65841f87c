"""The table of skills besides `chat`: what each takes, gives, and which category of models has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octonode.protocol.work import audio, image, text, vision
from octonode.protocol.work.records import RecordError, read, write

WorkRequest = (
    text.EmbedRequest
    | vision.ClassifyRequest
    | vision.DetectRequest
    | vision.ReadRequest
    | audio.TranscribeRequest
    | audio.VoiceActivityRequest
    | audio.SpeakRequest
    | audio.SoundRequest
    | image.ImageRequest
)
WorkResult = (
    text.Embeddings
    | vision.Classification
    | vision.Detection
    | vision.ReadText
    | audio.Transcription
    | audio.VoiceActivity
    | audio.Sound
    | image.Images
)

CHAT: Final = "chat"
"""Text from messages, or from a bare prompt: has its own stream of pieces and stands beside this table."""

INPUT_FIELDS: Final = frozenset({"texts", "image", "audio", "text", "prompt", "negative_prompt"})
"""What is told of, and never kept: the `input` of a TASK_REQUEST. All other fields are its parameters."""


@dataclass(frozen=True, slots=True)
class Skill:
    name: str
    category: str
    """Of the models that have it, `models.manifest.CATEGORIES`."""
    request: type[WorkRequest]
    result: type[WorkResult]


SKILLS: Final[dict[str, Skill]] = {
    skill.name: skill
    for skill in (
        Skill("embed", "embeddings", text.EmbedRequest, text.Embeddings),
        Skill("classify", "vision", vision.ClassifyRequest, vision.Classification),
        Skill("detect", "vision", vision.DetectRequest, vision.Detection),
        Skill("read", "vision", vision.ReadRequest, vision.ReadText),
        Skill("transcribe", "audio", audio.TranscribeRequest, audio.Transcription),
        Skill("voice_activity", "audio", audio.VoiceActivityRequest, audio.VoiceActivity),
        Skill("speak", "audio", audio.SpeakRequest, audio.Sound),
        Skill("sound", "audio", audio.SoundRequest, audio.Sound),
        Skill("image", "diffusion", image.ImageRequest, image.Images),
    )
}
_BY_REQUEST: Final = {skill.request: skill for skill in SKILLS.values()}


def skill_of(request: WorkRequest) -> Skill:
    return _BY_REQUEST[type(request)]


def read_request(skill: str, fields: Mapping[str, Any]) -> WorkRequest:
    """The request of a skill from a map of its fields. Raises RecordError; UNSUPPORTED for an unknown skill."""
    return read(_known(skill).request, fields, skill)


def read_result(skill: str, fields: Mapping[str, Any]) -> WorkResult:
    """Raises RecordError."""
    return read(_known(skill).result, fields, f"the result of {skill}")


def split(request: WorkRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """(input, parameters) as a TASK_REQUEST carries them; every parameter is written out, so that receipts show it."""
    given = write(request)
    parameters = {name: value for name, value in _whole(request).items() if name not in INPUT_FIELDS}
    return {name: value for name, value in given.items() if name in INPUT_FIELDS}, parameters


def _whole(request: WorkRequest) -> dict[str, Any]:
    """All fields that have a value; an absent seed is left out."""
    values = {name: getattr(request, name) for name in type(request).__dataclass_fields__}
    return {name: value for name, value in values.items() if value is not None}


def join(skill: str, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> WorkRequest:
    """The request in a TASK_REQUEST. Raises RecordError."""
    misplaced = sorted({*inputs} - INPUT_FIELDS | {*parameters} & INPUT_FIELDS)
    if misplaced:
        raise RecordError(f"{misplaced[0]} stands in the wrong half of a request for {skill}")
    return read_request(skill, {**inputs, **parameters})


def _known(skill: str) -> Skill:
    found = SKILLS.get(skill)
    if found is None:
        raise RecordError(f"there is no skill {skill[:32]!r}; known are chat, {', '.join(SKILLS)}", code="UNSUPPORTED")
    return found
