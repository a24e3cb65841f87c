"""What the child says, read by who started it: it opened a stranger's file, so nothing is believed unchecked. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octonode.engines.quantizing.job import Made, Quality
from octonode.errors import TABLE, OctonodeError

LINE_BYTES_MAX: Final = 16 * 1024
TEXT_CHARACTERS_MAX: Final = 1000
STAGE_CHARACTERS_MAX: Final = 40
NUMBER_MAX: Final = 2**53
_ITS_CODES: Final = ("CONFIG", "UNSUPPORTED", "ENGINE_FAILED", "FORMAT_REFUSED", "DISK_FULL", "CONTEXT_EXCEEDED")


@dataclass(frozen=True, slots=True)
class Progress:
    stage: str
    done: int
    total: int


def read(line: bytes) -> Progress | Made:
    """One line. Raises the error that it reports, and ENGINE_FAILED for a line that is none of the three."""
    try:
        value = json.loads(line)
        kind = value["type"]
        if kind == "progress":
            return Progress(_text(value, "stage", STAGE_CHARACTERS_MAX), _whole(value, "done"), _whole(value, "total"))
        if kind == "result":
            return _made(value)
        if kind == "error":
            raise _error(value)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise lied("it says what cannot be read")


def lied(why: str) -> OctonodeError:
    """The error for a child that does not keep to the protocol."""
    return OctonodeError(f"the process that makes the model does not do as it should: {why}", code="ENGINE_FAILED")


def _made(value: Mapping[str, Any]) -> Made:
    quality = value["quality"]
    measure = quality["measure"]
    if measure not in ("perplexity", "cosine", "none"):
        raise ValueError(measure)
    return Made(
        path=_text(value, "path", 4096),
        parent_bytes=_whole(value, "parent_bytes"),
        bytes=_whole(value, "bytes"),
        weights=_whole(value, "weights"),
        quality=Quality(
            measure,
            _number(quality, "parent"),
            _number(quality, "value"),
            _number(quality, "mean"),
            _text(quality, "reason", TEXT_CHARACTERS_MAX),
        ),
        seconds=_number(value, "seconds"),
    )


def _error(value: Mapping[str, Any]) -> OctonodeError:
    code = value["code"]
    known = code if code in _ITS_CODES and code in TABLE else "ENGINE_FAILED"
    return OctonodeError(_text(value, "message", TEXT_CHARACTERS_MAX), code=known)


def _text(value: Mapping[str, Any], name: str, characters_max: int) -> str:
    text = value[name]
    if not isinstance(text, str):
        raise TypeError(name)
    return "".join(each if each.isprintable() else " " for each in text[:characters_max])


def _whole(value: Mapping[str, Any], name: str) -> int:
    number = value[name]
    if type(number) is not int or not 0 <= number <= NUMBER_MAX:
        raise ValueError(name)
    return number


def _number(value: Mapping[str, Any], name: str) -> float:
    number = value[name]
    if type(number) not in (int, float) or not math.isfinite(number):
        raise ValueError(name)
    return float(number)
