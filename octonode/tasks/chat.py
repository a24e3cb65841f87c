"""Skill `chat` on the wire: an `Ask` as input and parameters of a TASK_REQUEST, and back to what an engine takes.

`orders` is the same for every skill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octonode.engines.contract import GenerateRequest
from octonode.errors import OctonodeError
from octonode.tasks.asking import Ask

MAX_TOKENS_DEFAULT = 512
MAX_TOKENS_MOST = 1_000_000
MESSAGES_MOST = 4096
STOPS_MOST = 16
STOP_CHARACTERS_MOST = 256
PROMPT_CHARACTERS_MOST = 8 << 20
SCHEMA_CHARACTERS_MOST = 64 * 1024
LOGPROBS_MOST = 20


def input_of(ask: Ask) -> dict[str, Any]:
    value: dict[str, Any] = {"messages": [dict(message) for message in ask.messages]} if ask.messages else {}
    if ask.prompt:
        value["prompt"] = ask.prompt
    if ask.schema:
        value["schema"] = ask.schema
    return value


def parameters_of(ask: Ask) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "max_tokens": ask.max_tokens,
        "temperature": float(ask.temperature),
        "top_p": float(ask.top_p),
        "stop": list(ask.stop),
    }
    if ask.seed is not None:
        parameters["seed"] = ask.seed
    if ask.logprobs:
        parameters["logprobs"] = ask.logprobs
    return parameters


def generate_request(
    body: Mapping[str, Any], parameters: Mapping[str, Any], *, cache_scope: str = ""
) -> GenerateRequest:
    """What the engine is asked for. Raises OctonodeError (BAD_REQUEST) that names the field."""
    seed = parameters.get("seed")
    if seed is not None:
        seed = _integer(parameters, "seed", 0, least=-(2**63), most=2**63 - 1)
    prompt = _text(body, "prompt", PROMPT_CHARACTERS_MOST)
    return GenerateRequest(
        messages=() if prompt and "messages" not in body else _messages(body),
        max_tokens=_integer(parameters, "max_tokens", MAX_TOKENS_DEFAULT, least=1, most=MAX_TOKENS_MOST),
        temperature=_number(parameters, "temperature", 1.0, most=10.0),
        top_p=_number(parameters, "top_p", 1.0, most=1.0),
        seed=seed,
        stop=_stops(parameters),
        cache_scope=cache_scope,
        prompt=prompt,
        schema=_text(body, "schema", SCHEMA_CHARACTERS_MOST),
        logprobs=_integer(parameters, "logprobs", 0, least=-1, most=LOGPROBS_MOST),
    )


def applied(request: GenerateRequest) -> dict[str, Any]:
    """The parameters for the receipt: as applied, the seed aside."""
    parameters: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": list(request.stop),
    }
    if request.logprobs:
        parameters["logprobs"] = request.logprobs
    return parameters


def _messages(body: Mapping[str, Any]) -> tuple[dict[str, str], ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or len(messages) > MESSAGES_MOST:
        raise _bad(f"input.messages must be a list of 1 to {MESSAGES_MOST} messages")
    for message in messages:
        good = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not good or not all(isinstance(value, str) for value in message.values()):
            raise _bad("each of input.messages must be a map of texts with role and content")
        if "content" not in message:
            raise _bad("a message has no content")
    return tuple(messages)


def _text(values: Mapping[str, Any], name: str, most: int) -> str:
    value = values.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise _bad(f"input.{name} must be a text of at most {most} characters")
    return value


def _integer(values: Mapping[str, Any], name: str, default: int, *, least: int, most: int) -> int:
    value = values.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise _bad(f"{name} must be an integer from {least} to {most}")
    return value


def _number(values: Mapping[str, Any], name: str, default: float, *, most: float) -> float:
    value = values.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise _bad(f"{name} must be a number from 0 to {most:g}")
    return float(value)


def _stops(values: Mapping[str, Any]) -> tuple[str, ...]:
    stops = values.get("stop", [])
    if not isinstance(stops, list) or len(stops) > STOPS_MOST:
        raise _bad(f"stop must be a list of at most {STOPS_MOST} texts")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= STOP_CHARACTERS_MOST:
            raise _bad(f"each stop must be a text of 1 to {STOP_CHARACTERS_MOST} characters")
    return tuple(stops)


def _bad(message: str) -> OctonodeError:
    return OctonodeError(message, code="BAD_REQUEST")
