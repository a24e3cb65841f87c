"""OpenAI's pictures: from a prompt, and from a picture and a prompt. Pure.

Source of the format: https://platform.openai.com/docs/api-reference/images. What diffusion needs beside OpenAI's fields
stands in the `octonode` object: seed, steps, guidance, negative_prompt, strength.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octonode.api.schema.failures import bad_request
from octonode.api.schema.fields import (
    SEED_MAX,
    SEED_MIN,
    Served,
    Terms,
    body_of,
    number_of,
    object_of,
    terms_of,
    text_of,
    whole_of,
)
from octonode.protocol.work.image import IMAGES_MAX, ImageRequest, Images
from octonode.protocol.work.records import RecordError
from octonode.protocol.work.skills import read_request

PROMPT_CHARACTERS_MAX: Final = 16_384
OURS_TOO: Final = ("seed", "steps", "guidance", "negative_prompt", "strength")
_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})\Z", re.ASCII)

SERVED: Final = Served(
    read=frozenset({"model", "prompt", "n", "size", "response_format", "image", "privacy_level", "octonode"}),
    ignored=frozenset({"user", "safety_identifier", "quality", "style", "moderation", "input_fidelity", "complexity"}),
    neutral={
        "background": lambda value: value in ("auto", "opaque"),
        "output_format": lambda value: value == "png",
        "output_compression": lambda value: value == 100,
        "partial_images": lambda value: value == 0,
        "stream": lambda value: value is False,
        "mask": lambda _: False,
        "markup": lambda _: False,
        "frame_count": lambda _: False,
        "frame_duration_ms": lambda _: False,
        "svg": lambda _: False,
    },
)


@dataclass(frozen=True, slots=True)
class PictureRequest:
    terms: Terms
    work: ImageRequest
    size: str
    """As it was asked for; `auto`: what the model was made for."""


def parse_images(body: Any, privacy_header: str | None = None, *, image: bytes | None = None) -> PictureRequest:
    """The request in a decoded body; `image` is the picture of an edit, None where none is taken.

    Raises BAD_REQUEST, UNSUPPORTED or PRIVACY_UNAVAILABLE, with `param`.
    """
    body = body_of(body)
    SERVED.check(body)
    if "image" in body:
        raise bad_request("image is a file of POST /v1/images/edits, multipart/form-data", "image")
    form = body.get("response_format")
    if form not in (None, "b64_json"):
        message = "response_format url is not served: a node keeps no pictures to link to; ask for b64_json"
        raise bad_request(message, "response_format", code="UNSUPPORTED")
    terms = terms_of(body, privacy_header, OURS_TOO)
    size, (width, height) = _size(body.get("size"))
    fields = {
        "prompt": _prompt(body),
        "count": whole_of(body, "n", 1, IMAGES_MAX) or 1,
        "width_pixels": width,
        "height_pixels": height,
        **_diffusion(object_of(body, "octonode"), with_image=image is not None),
    }
    if image is not None:
        fields["image"] = image
    try:
        work = read_request("image", fields)
    except RecordError as error:
        param = "image" if error.code == "TOO_LARGE" else "octonode"
        raise bad_request(error.message, param, code=error.code) from None
    assert isinstance(work, ImageRequest)
    return PictureRequest(terms, work, size)


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = text_of(body, "prompt", characters_max=PROMPT_CHARACTERS_MAX)
    if not prompt.strip():
        raise bad_request("prompt must say what the picture shows", "prompt")
    return prompt


def _size(value: Any) -> tuple[str, tuple[int, int]]:
    if value in (None, "auto"):
        return "auto", (0, 0)
    found = _SIZE.match(value) if isinstance(value, str) else None
    if found is None:
        raise bad_request("size must be WIDTHxHEIGHT in pixels, such as 512x512, or auto", "size")
    sides = int(found[1]), int(found[2])
    if any(side % 8 or not 8 <= side <= 4096 for side in sides):
        raise bad_request("size takes multiples of 8 from 8 to 4096", "size")
    return value, sides


def _diffusion(ours: Mapping[str, Any], *, with_image: bool) -> dict[str, Any]:
    """The fields of an ImageRequest that the `octonode` object sets."""
    if ours.get("strength") is not None and not with_image:
        raise bad_request("strength is about a picture to start from: POST /v1/images/edits", "octonode.strength")
    given: dict[str, Any] = {
        "seed": whole_of(ours, "seed", SEED_MIN, SEED_MAX, "octonode.seed"),
        "steps": whole_of(ours, "steps", 1, 500, "octonode.steps"),
        "negative_prompt": text_of(
            ours, "negative_prompt", "octonode.negative_prompt", characters_max=PROMPT_CHARACTERS_MAX
        ),
    }
    for name, most in (("guidance", 50.0), ("strength", 1.0)):
        if ours.get(name) is not None:
            given[name] = number_of(ours, name, 0, most, where=f"octonode.{name}")
    return {name: value for name, value in given.items() if value is not None}


def images_json(made: Images, created: int, facts: Mapping[str, Any]) -> bytes:
    """The answer as JSON; `facts` is its `octonode` object. Pictures go in as they are: base64 needs no escapes."""
    data = [b'{"b64_json":"%s"}' % base64.b64encode(each) for each in made.images]
    rest = {
        "created": created,
        "output_format": "png",
        "size": f"{made.width_pixels}x{made.height_pixels}",
        "octonode": {**facts, "seed": made.seed, "steps": made.steps},
    }
    return b'{"data":[' + b",".join(data) + b"]," + json.dumps(rest).encode()[1:]
