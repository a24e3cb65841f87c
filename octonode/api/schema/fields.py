"""The fields that several of OpenAI's requests share, each read and checked in one place. Pure.

What would change the answer and is not built is refused with the field's name, never dropped in silence; what only
hints is ignored: each request's tables (`Served`) say which.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from octonode.api.schema.failures import bad_request
from octonode.api.schema.shape import text

STOPS_MAX = 4
STOP_CHARACTERS_MAX = 256
MODEL_CHARACTERS_MAX = 512
TOKENS_MAX = 1_000_000  # as tasks.chat takes from anybody
SEED_MIN, SEED_MAX = -(1 << 63), (1 << 63) - 1

PrivacyLevel = Literal["public", "shared", "confidential", "private"]
PRIVACY_LEVELS = ("public", "shared", "confidential", "private")
PRIVACY_BUILT = frozenset({"public"})

Mode = Literal["", "realtime", "batch"]
MODES: Final = ("", "realtime", "batch")
"""`async` has a route of its own, `POST /api/v1/inference`: its answer comes later."""

OURS: Final = ("peer", "explain", "request", "mode")
"""Fields of the `octonode` object that every request of OpenAI's face knows."""

Neutral = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Served:
    """What becomes of each field of one request."""

    read: frozenset[str]
    ignored: frozenset[str] = frozenset()
    """Hints: the answer may be given without them."""
    neutral: Mapping[str, Neutral] = field(default_factory=dict)
    """Fields we do not serve, and the values that ask for nothing; null always does."""

    def check(self, body: Mapping[str, Any]) -> None:
        """Raises UNSUPPORTED for what is not served, BAD_REQUEST for what nobody knows; both name the field."""
        for name, value in body.items():
            if name in self.read or name in self.ignored:
                continue
            neutral = self.neutral.get(name)
            if neutral is None:
                close = difflib.get_close_matches(str(name), sorted(self.read), n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise bad_request(f"unknown field {str(name)[:64]!r}{hint}", str(name)[:64])
            if value is not None and not neutral(value):
                raise bad_request(f"{name} is not served by this node yet; leave it out", name, code="UNSUPPORTED")


@dataclass(frozen=True, slots=True)
class Terms:
    """What every request of OpenAI's face says beside its work."""

    model: str
    """As the caller wrote it: publisher/name, cid:..., a bare name."""
    privacy: PrivacyLevel = "public"
    peer: str = ""
    """Ask this peer alone (octonode extension)."""
    request: bool = False
    """Put the signed request, as it was sent, beside the receipt (octonode extension)."""
    explain: bool = False
    """Say in the answer who else was considered and why not (octonode extension)."""
    mode: Mode = ""


def body_of(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise bad_request("the body must be a JSON object")
    return body


def terms_of(body: Mapping[str, Any], privacy_header: str | None, more: tuple[str, ...] = ()) -> Terms:
    """Raises BAD_REQUEST or PRIVACY_UNAVAILABLE; `more` are further fields that the `octonode` object may have."""
    ours = object_of(body, "octonode")
    known = (*OURS, *more)
    for name in ours:
        if name not in known:
            raise bad_request(f"octonode has no field {str(name)[:64]!r}; known are {', '.join(known)}", "octonode")
    mode = ours.get("mode") or ""
    if mode == "async":
        raise bad_request("async answers come later: POST /api/v1/inference takes them", "octonode.mode")
    if mode not in MODES:
        raise bad_request("octonode.mode must be realtime or batch, or be left out", "octonode.mode")
    return Terms(
        model=model_of(body),
        privacy=privacy_level(body.get("privacy_level"), privacy_header),
        peer=text_of(ours, "peer", "octonode.peer"),
        request=flag_of(ours, "request", "octonode.request"),
        explain=flag_of(ours, "explain", "octonode.explain"),
        mode=cast(Mode, mode),
    )


def model_of(body: Mapping[str, Any]) -> str:
    value = body.get("model")
    if not isinstance(value, str) or not value.strip():
        raise bad_request("model is missing; GET /v1/models lists what can be asked for", "model")
    return text(value.strip(), "model", MODEL_CHARACTERS_MAX)


def max_tokens_of(body: Mapping[str, Any]) -> int | None:
    new = whole_of(body, "max_completion_tokens", 1, TOKENS_MAX)
    old = whole_of(body, "max_tokens", 1, TOKENS_MAX)
    if new is not None and old is not None and new != old:
        raise bad_request("max_tokens and max_completion_tokens differ; give one", "max_tokens")
    return new if new is not None else old


def stops_of(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or len(stops) > STOPS_MAX:
        raise bad_request(f"stop must be a text or a list of at most {STOPS_MAX}", "stop")
    if not all(isinstance(each, str) and each for each in stops):
        raise bad_request("each entry of stop must be a text that is not empty", "stop")
    return tuple(text(each, "stop", STOP_CHARACTERS_MAX) for each in stops)


def privacy_level(field: Any, header: str | None = None) -> PrivacyLevel:
    """The level a body field and a header ask for. Raises BAD_REQUEST, PRIVACY_UNAVAILABLE for one not built."""
    given = [each for each in (field, header) if each is not None]
    for each in given:
        if not isinstance(each, str) or each.strip().lower() not in PRIVACY_LEVELS:
            raise bad_request(f"privacy_level must be one of {', '.join(PRIVACY_LEVELS)}", "privacy_level")
    levels = {each.strip().lower() for each in given}
    if len(levels) > 1:
        raise bad_request("privacy_level and the header X-Octonode-Privacy differ; give one", "privacy_level")
    level = levels.pop() if levels else "public"
    if level not in PRIVACY_BUILT:
        message = f"privacy level {level} cannot be met by this node yet; nothing was sent. It is never lowered for you"
        raise bad_request(message, "privacy_level", code="PRIVACY_UNAVAILABLE")
    return cast(PrivacyLevel, level)


def object_of(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise bad_request(f"{name} must be an object", name)
    return value or {}


def flag_of(body: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"{where or name} must be true or false", where or name)
    return bool(value)


def text_of(body: Mapping[str, Any], name: str, where: str = "", *, characters_max: int = MODEL_CHARACTERS_MAX) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"{where or name} must be a text", where or name)
    return text(value or "", where or name, characters_max)


def choice_of(body: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    """One of `choices`; the first of them where it is left out."""
    value = body.get(name)
    if value is None:
        return choices[0]
    if value not in choices:
        raise bad_request(f"{name} must be one of {', '.join(choices)}", name)
    return cast(str, value)


def whole_of(body: Mapping[str, Any], name: str, low: int, high: int, where: str = "") -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad_request(f"{where or name} must be a whole number from {low} to {high}", where or name)
    return value


def number_of(
    body: Mapping[str, Any], name: str, low: float, high: float, *, above: bool = False, default: float = 1.0,
    where: str = "",
) -> float:  # fmt: skip
    value = body.get(name)
    if value is None:
        return default
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not (low < value if above else low <= value) or not value <= high:  # so that NaN fails too
        spoken = f"{'above' if above else 'from'} {low} up to {high}"
        raise bad_request(f"{where or name} must be a number {spoken}", where or name)
    return float(value)
