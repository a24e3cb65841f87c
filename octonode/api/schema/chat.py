"""OpenAI's chat completion request, read and checked. Pure; any body gives a `ChatRequest` or an `OctonodeError`.

Source of the format: https://platform.openai.com/docs/api-reference/chat/create. What would change the answer and is
not built is refused with the field's name, never dropped in silence; what only hints is ignored: the tables say which.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from octonode.api.schema.failures import bad_request
from octonode.api.schema.shape import text

MESSAGES_MAX = 2048
STOPS_MAX = 4
STOP_CHARACTERS_MAX = 256
MODEL_CHARACTERS_MAX = 512
TOKENS_MAX = 1 << 31
SEED_MIN, SEED_MAX = -(1 << 63), (1 << 63) - 1

PrivacyLevel = Literal["public", "shared", "confidential", "private"]
PRIVACY_LEVELS = ("public", "shared", "confidential", "private")
PRIVACY_BUILT = frozenset({"public"})

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""`developer` is OpenAI's newer name of `system`; chat templates know the old one."""

READ = frozenset(
    {
        *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"),
        *("stream", "stream_options", "privacy_level", "octonode"),
    }
)
OURS = ("peer", "explain", "request")
"""Fields of the `octonode` object."""
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "reasoning_effort", "verbosity", "parallel_tool_calls"),
    }
)
"""Hints: the answer may be given without them."""

NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "n": lambda value: value == 1,
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
    "response_format": lambda value: value == {"type": "text"},
    "logprobs": lambda value: value is False,
    "top_logprobs": lambda value: value == 0,
    "logit_bias": lambda value: value == {},
    "presence_penalty": lambda value: value == 0,
    "frequency_penalty": lambda value: value == 0,
    "modalities": lambda value: value == ["text"],
    "audio": lambda _: False,
    "prediction": lambda _: False,
    "web_search_options": lambda _: False,
    "moderation": lambda _: False,
}
"""Fields we do not serve, and the values that ask for nothing; null always does."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    """As the caller wrote it: publisher/name, cid:..., a bare name."""
    messages: tuple[dict[str, str], ...]
    """{role, content}; roles system, user, assistant."""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    privacy: PrivacyLevel = "public"
    peer: str = ""
    """Ask this peer alone (octonode extension)."""
    request: bool = False
    """Put the signed request, as it was sent, beside the receipt (octonode extension)."""
    explain: bool = False
    """Say in the answer who else was considered and why not (octonode extension)."""


def parse_chat(body: Any, privacy_header: str | None = None) -> ChatRequest:
    """The request in a decoded JSON body. Raises BAD_REQUEST, UNSUPPORTED or PRIVACY_UNAVAILABLE, with `param`."""
    if not isinstance(body, Mapping):
        raise bad_request("the body must be a JSON object")
    _refuse_unserved(body)
    options = _object(body, "stream_options")
    ours = _object(body, "octonode")
    for name in ours:
        if name not in OURS:
            raise bad_request(f"octonode has no field {str(name)[:64]!r}; known are {', '.join(OURS)}", "octonode")
    return ChatRequest(
        model=_model(body),
        messages=_messages(body.get("messages")),
        max_tokens=_max_tokens(body),
        temperature=_number(body, "temperature", 0, 2),
        top_p=_number(body, "top_p", 0, 1, above=True),
        seed=_whole(body, "seed", SEED_MIN, SEED_MAX),
        stop=_stop(body.get("stop")),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        privacy=privacy_level(body.get("privacy_level"), privacy_header),
        peer=_text_of(ours, "peer", "octonode.peer"),
        request=_flag(ours, "request", "octonode.request"),
        explain=_flag(ours, "explain", "octonode.explain"),
    )


def _refuse_unserved(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in READ or name in IGNORED:
            continue
        neutral = NEUTRAL.get(name)
        if neutral is None:
            close = difflib.get_close_matches(str(name), sorted(READ), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise bad_request(f"unknown field {str(name)[:64]!r}{hint}", str(name)[:64])
        if value is not None and not neutral(value):
            raise bad_request(f"{name} is not served by this node yet; leave it out", name, code="UNSUPPORTED")


def _model(body: Mapping[str, Any]) -> str:
    value = body.get("model")
    if not isinstance(value, str) or not value.strip():
        raise bad_request("model is missing; GET /v1/models lists what can be asked for", "model")
    return text(value.strip(), "model", MODEL_CHARACTERS_MAX)


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise bad_request("messages must be a list of at least one {role, content}", "messages")
    if len(value) > MESSAGES_MAX:
        raise bad_request(f"messages has {len(value)} entries; at most {MESSAGES_MAX} are taken", "messages")
    return tuple(_message(each, f"messages[{index}]") for index, each in enumerate(value))


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise bad_request(f"{where} must be an object {{role, content}}", where)
    role = value.get("role")
    if role in ("tool", "function"):
        raise bad_request(f"{where}.role: tools are not served by this node yet", f"{where}.role", code="UNSUPPORTED")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    for name, given in value.items():
        if name not in ("role", "content", "name") and given not in (None, [], {}, ""):
            raise bad_request(f"{where}.{str(name)[:64]} is not served by this node yet", where, code="UNSUPPORTED")
    return {"role": ROLES[role], "content": _content(value.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return text(value, where)
    if not isinstance(value, list) or not value:
        raise bad_request(f"{where} must be a text or a list of parts", where)
    return "".join(_part(each, f"{where}[{index}]") for index, each in enumerate(value))


def _part(value: Any, where: str) -> str:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        raise bad_request(f'{where} must be an object such as {{"type": "text", "text": "..."}}', where)
    if kind != "text":
        raise bad_request(
            f"{where}.type {kind[:32]!r} is not served by this node yet; text is", where, code="UNSUPPORTED"
        )
    if not isinstance(value.get("text"), str):
        raise bad_request(f"{where}.text must be a text", f"{where}.text")
    return text(value["text"], f"{where}.text")


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    new = _whole(body, "max_completion_tokens", 1, TOKENS_MAX)
    old = _whole(body, "max_tokens", 1, TOKENS_MAX)
    if new is not None and old is not None and new != old:
        raise bad_request("max_tokens and max_completion_tokens differ; give one", "max_tokens")
    return new if new is not None else old


def _stop(value: Any) -> tuple[str, ...]:
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


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise bad_request(f"{name} must be an object", name)
    return value or {}


def _flag(body: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"{where or name} must be true or false", where or name)
    return bool(value)


def _text_of(body: Mapping[str, Any], name: str, where: str) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"{where} must be a text", where)
    return text(value or "", where, MODEL_CHARACTERS_MAX)


def _whole(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad_request(f"{name} must be a whole number from {low} to {high}", name)
    return value


def _number(body: Mapping[str, Any], name: str, low: float, high: float, *, above: bool = False) -> float:
    value = body.get(name)
    if value is None:
        return 1.0
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not (low < value if above else low <= value) or not value <= high:  # so that NaN fails too
        raise bad_request(f"{name} must be a number {'above' if above else 'from'} {low} up to {high}", name)
    return float(value)
