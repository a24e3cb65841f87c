"""OpenAI's chat completion request, read and checked. Pure; any body gives a `ChatRequest` or an `OctonodeError`.

Source of the format: https://platform.openai.com/docs/api-reference/chat/create. What would change the answer and is
not built is refused with the field's name, never dropped in silence; what only hints is ignored: the tables say which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octonode.api.schema.failures import bad_request
from octonode.api.schema.fields import (
    OURS,
    SEED_MAX,
    SEED_MIN,
    Mode,
    PrivacyLevel,
    Served,
    Terms,
    body_of,
    flag_of,
    max_tokens_of,
    number_of,
    object_of,
    privacy_level,
    stops_of,
    terms_of,
    whole_of,
)
from octonode.api.schema.shape import text
from octonode.api.schema.structured import Schema, take_schema
from octonode.api.schema.tools import History, Tools, call_schema, parse_tools, with_tools

__all__ = ["OURS", "ChatRequest", "Wanted", "has_schema", "parse_chat", "privacy_level"]

MESSAGES_MAX = 2048
TOP_LOGPROBS_MAX = 20

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""`developer` is OpenAI's newer name of `system`; chat templates know the old one."""

READ = frozenset(
    {
        *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"),
        *("stream", "stream_options", "privacy_level", "octonode"),
        *("tools", "tool_choice", "response_format", "logprobs", "top_logprobs"),
    }
)
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prompt_cache_options", "reasoning_effort", "verbosity", "parallel_tool_calls"),
    }
)
"""Hints: the answer may be given without them."""

NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "n": lambda value: value == 1,
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
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
SERVED = Served(READ, IGNORED, NEUTRAL)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an answer must be, beside a text."""

    tools: Tools | None = None
    json: bool = False
    """A JSON value: any object, or what `schema` says."""
    schema: Schema | None = None

    @property
    def constraint(self) -> str:
        """The JSON Schema, as text, that the engine is to keep to; empty: none."""
        if self.tools is not None and self.tools.forced:
            return take_schema(call_schema(self.tools), "tools").text
        if not self.json:
            return ""
        return self.schema.text if self.schema is not None else "{}"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    """As the caller wrote it: publisher/name, cid:..., a bare name."""
    messages: tuple[dict[str, str], ...]
    """{role, content}; roles system, user, assistant. Tools, calls and their results are told in them."""
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
    mode: Mode = ""
    wanted: Wanted = field(default_factory=Wanted)
    schema: str = ""
    """JSON Schema, as text, that the engine is to keep to; empty: none."""
    logprobs: int = 0
    """Alternatives to tell of each token; -1: the chosen token alone, 0: nothing."""

    @property
    def terms(self) -> Terms:
        return Terms(self.model, self.privacy, self.peer, self.request, self.explain, self.mode)


def parse_chat(body: Any, privacy_header: str | None = None) -> ChatRequest:
    """The request in a decoded JSON body. Raises BAD_REQUEST, UNSUPPORTED or PRIVACY_UNAVAILABLE, with `param`."""
    body = body_of(body)
    SERVED.check(body)
    terms: Terms = terms_of(body, privacy_header)
    wanted = _wanted(body)
    return ChatRequest(
        model=terms.model,
        messages=with_tools(_messages(body.get("messages")), wanted.tools),
        max_tokens=max_tokens_of(body),
        temperature=number_of(body, "temperature", 0, 2),
        top_p=number_of(body, "top_p", 0, 1, above=True),
        seed=whole_of(body, "seed", SEED_MIN, SEED_MAX),
        stop=stops_of(body.get("stop")),
        stream=flag_of(body, "stream"),
        include_usage=flag_of(object_of(body, "stream_options"), "include_usage"),
        privacy=terms.privacy,
        peer=terms.peer,
        request=terms.request,
        explain=terms.explain,
        mode=terms.mode,
        wanted=wanted,
        schema=wanted.constraint,
        logprobs=_logprobs(body),
    )


def has_schema(body: Any) -> bool:
    """Whether reading this body may take a while."""
    return isinstance(body, Mapping) and bool(body.get("tools") or body.get("response_format"))


def _wanted(body: Mapping[str, Any]) -> Wanted:
    tools = parse_tools(body)
    form = object_of(body, "response_format")
    kind = form.get("type", "text" if not form else None)
    if kind not in ("text", "json_object", "json_schema"):
        raise bad_request("response_format.type must be text, json_object or json_schema", "response_format")
    if kind == "text":
        return Wanted(tools)
    if tools is not None and tools.offered:
        message = "response_format beside tools that may be called is not served; set tool_choice to none"
        raise bad_request(message, "response_format", code="UNSUPPORTED")
    if kind == "json_object":
        return Wanted(tools, json=True)
    described = object_of(form, "json_schema")
    return Wanted(tools, json=True, schema=take_schema(described.get("schema"), "response_format.json_schema.schema"))


def _logprobs(body: Mapping[str, Any]) -> int:
    top = whole_of(body, "top_logprobs", 0, TOP_LOGPROBS_MAX)
    if not flag_of(body, "logprobs"):
        if top:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        return 0
    return top or -1


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise bad_request("messages must be a list of at least one {role, content}", "messages")
    if len(value) > MESSAGES_MAX:
        raise bad_request(f"messages has {len(value)} entries; at most {MESSAGES_MAX} are taken", "messages")
    history, messages = History(), list[dict[str, str]]()
    for index, each in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(each, Mapping):
            raise bad_request(f"{where} must be an object {{role, content}}", where)
        if each.get("role") != "tool":
            messages.append(_message(each, where, history))
            continue
        told = history.result(each.get("tool_call_id"), _content(each.get("content"), f"{where}.content"), where)
        if index and value[index - 1].get("role") == "tool":  # templates that want turns see one
            messages[-1] = {"role": "user", "content": f"{messages[-1]['content']}\n{told}"}
        else:
            messages.append({"role": "user", "content": told})
    return tuple(messages)


def _message(value: Mapping[str, Any], where: str, history: History) -> dict[str, str]:
    role = value.get("role")
    if role == "function":
        message = f"{where}.role: functions are called by tools in this API; use the role tool"
        raise bad_request(message, f"{where}.role", code="UNSUPPORTED")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(ROLES)}, tool", f"{where}.role")
    calls = value.get("tool_calls") if role == "assistant" else None
    for name, given in value.items():
        known = name in ("role", "content", "name") or (calls and name == "tool_calls")
        if not known and given not in (None, [], {}, ""):
            raise bad_request(f"{where}.{str(name)[:64]} is not served by this node yet", where, code="UNSUPPORTED")
    if not calls:
        return {"role": ROLES[role], "content": _content(value.get("content"), f"{where}.content")}
    called = history.calls(calls, f"{where}.tool_calls")
    said = _content(value["content"], f"{where}.content") if value.get("content") else ""
    return {"role": "assistant", "content": f"{said}\n{called}" if said else called}


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
