"""Vectors of protocols/skills.md: requests as (input, params), results as bytes with the piece that stands for them."""

from __future__ import annotations

from typing import Any

from octonode.errors import OctonodeError
from octonode.protocol.codec import pack
from octonode.protocol.work import audio, image, text, vision
from octonode.protocol.work.skills import WorkRequest, WorkResult, join, skill_of, split
from octonode.tasks.results import pack_result, piece_of

REQUESTS: tuple[WorkRequest, ...] = (
    text.EmbedRequest(("one", "zwei 世界")),
    vision.ClassifyRequest(b"\x89PNG", top=2),
    vision.DetectRequest(b"\x89PNG"),
    vision.ReadRequest(b"\x89PNG", score_least=0.25),
    audio.TranscribeRequest(b"RIFF", language="en", words=True),
    audio.VoiceActivityRequest(b"RIFF"),
    audio.SpeakRequest("Hello.", speed=1.5),
    audio.SoundRequest("rain on a roof", seed=-1),
    image.ImageRequest("a lighthouse", image=b"\x89PNG", strength=0.5, steps=20, seed=7),
)
RESULTS: dict[str, WorkResult] = {
    "embed": text.Embeddings(b"\x00\x00\x80\x3f\x00\x00\x00\x00", 2, tokens_in=3),
    "classify": vision.Classification((vision.Label("cat", 0.75), vision.Label("dog", 0.25))),
    "detect": vision.Detection((vision.DetectedObject("cat", 0.5, vision.Box(1.0, 2.0, 30.5, 40.0)),), 64, 48),
    "read": vision.ReadText((vision.TextLine("EXIT", 0.875, vision.Box(0.0, 0.0, 20.0, 8.0)),), 64, 48),
    "transcribe": audio.Transcription("hello there", "en", 1.5, (audio.Segment("hello there", 0.25, 1.25),)),
    "voice_activity": audio.VoiceActivity((audio.Span(0.25, 1.25),), 1.5),
    "speak": audio.Sound(b"RIFF", 22050, 0.5),
    "sound": audio.Sound(b"RIFF", 16000, 0.5, seed=7),
    "image": image.Images((b"\x89PNG",), 64, 64, 20, 7),
}
INVALID: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("an unknown skill", "dream", {}, {}),
    ("a parameter among the input", "image", {"prompt": "a", "steps": 3}, {}),
    ("an input among the parameters", "embed", {}, {"texts": ["a"]}),
    ("an unknown field", "embed", {"texts": ["a"]}, {"colour": 1}),
    ("nothing to embed", "embed", {"texts": []}, {}),
    ("a whole number that is true", "image", {"prompt": "a"}, {"steps": True}),
    ("a speed beyond its bound", "speak", {"text": "a"}, {"speed": 9.0}),
    ("text in place of bytes", "classify", {"image": "a"}, {}),
)


def skills() -> dict[str, Any]:
    """The vectors."""
    return {
        "page": "protocols/skills.md",
        "requests": [_request(request) for request in REQUESTS],
        "results": [_result(skill, result) for skill, result in RESULTS.items()],
        "invalid": [_invalid(*row) for row in INVALID],
    }


def _request(request: WorkRequest) -> dict[str, Any]:
    inputs, parameters = split(request)
    return {"skill": skill_of(request).name, "input": pack(inputs).hex(), "params": pack(parameters).hex()}


def _result(skill: str, result: WorkResult) -> dict[str, Any]:
    data = pack_result(result)
    return {"skill": skill, "bytes": data.hex(), "piece": piece_of(data)}


def _invalid(why: str, skill: str, inputs: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    try:
        join(skill, inputs, parameters)
    except OctonodeError as error:
        packed = {"input": pack(inputs).hex(), "params": pack(parameters).hex()}
        return {"why": why, "skill": skill, **packed, "code": error.code}
    raise AssertionError(why)
