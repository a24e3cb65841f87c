"""Functions that a model may call: told to it in words, forced by a schema, found again in its answer. Pure.

Engines differ in what they make of tools, so none is relied on: the functions go into a system message, a call that
must be made is a JSON Schema for the answer, and an answer becomes `tool_calls` only if it parses and its arguments
satisfy the function's parameters. Source of the format: https://platform.openai.com/docs/guides/function-calling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from octonode.api.schema.failures import bad_request
from octonode.api.schema.shape import text
from octonode.api.schema.structured import NotValid, Schema, parse_answer, take_schema

TOOLS_MAX: Final = 128
DESCRIPTION_CHARACTERS_MAX: Final = 8192
TOOLS_BYTES_MAX: Final = 256 * 1024
"""Of all functions together, as the model is told of them."""
CALLS_MAX: Final = 128
"""In one message of the history."""
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z", re.ASCII)
_FENCE: Final = re.compile(r"(?:```(?:json)?|<tool_call>)\s*(.*?)\s*(?:```|</tool_call>)\Z", re.DOTALL)
"""What models wrap a call in by habit."""
_CALL_BEGINS: Final = ("{", "```", "<tool_call>")

Choice = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    description: str
    parameters: Schema


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a model made: `arguments` is the JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of one request, and whether one must be called."""

    functions: tuple[Function, ...]
    choice: Choice = "auto"
    only: str = ""
    """The one that must be called."""

    @property
    def forced(self) -> bool:
        return self.choice == "required"

    @property
    def offered(self) -> tuple[Function, ...]:
        """Those that may be called now."""
        if self.choice == "none":
            return ()
        return tuple(each for each in self.functions if self.only in ("", each.name))


def parse_tools(body: Mapping[str, Any]) -> Tools | None:
    """The functions in a chat request; None where there are none. Raises BAD_REQUEST, UNSUPPORTED, TOO_LARGE."""
    given = body.get("tools")
    if given is not None and not isinstance(given, list):
        raise bad_request("tools must be a list of functions", "tools")
    choice, only = _choice(body.get("tool_choice"))
    if not given:
        if choice == "required":
            raise bad_request("tool_choice asks for a call, and tools names no function", "tool_choice")
        return None
    if len(given) > TOOLS_MAX:
        raise bad_request(f"tools has {len(given)} entries; at most {TOOLS_MAX} are taken", "tools")
    functions = tuple(_function(each, f"tools[{index}]") for index, each in enumerate(given))
    names = [each.name for each in functions]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise bad_request(f"tools has two functions named {twice}", "tools")
    if only and only not in names:
        raise bad_request(f"tool_choice names {only[:64]!r}; tools has {', '.join(names)[:500]}", "tool_choice")
    if sum(len(_told(each).encode()) for each in functions) > TOOLS_BYTES_MAX:
        raise bad_request(f"tools has over {TOOLS_BYTES_MAX} bytes", "tools", code="TOO_LARGE")
    return Tools(functions, choice, only)


def _choice(value: Any) -> tuple[Choice, str]:
    if value is None:
        return "auto", ""
    if value in ("none", "auto", "required"):
        return value, ""
    named = value.get("function") if isinstance(value, Mapping) and value.get("type") == "function" else None
    name = named.get("name") if isinstance(named, Mapping) else None
    if not isinstance(name, str):
        message = 'tool_choice must be none, auto, required or {"type": "function", "function": {"name": NAME}}'
        raise bad_request(message, "tool_choice")
    return "required", name


def _function(value: Any, where: str) -> Function:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        raise bad_request(f'{where} must be {{"type": "function", "function": {{...}}}}', where)
    if kind != "function":
        raise bad_request(
            f"{where}.type {kind[:32]!r} is not served by this node; function is", where, code="UNSUPPORTED"
        )
    function, where = value.get("function"), f"{where}.function"
    if not isinstance(function, Mapping):
        raise bad_request(f"{where} must be an object with a name", where)
    for name in function:
        if name not in ("name", "description", "parameters", "strict"):  # strict: every call is checked anyway
            raise bad_request(f"{where} has no field {str(name)[:64]!r}", where)
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.match(name):
        raise bad_request(f"{where}.name must be 1 to 64 letters, digits, _ or -", f"{where}.name")
    if description is not None and not isinstance(description, str):
        raise bad_request(f"{where}.description must be a text", f"{where}.description")
    parameters = function.get("parameters")
    if parameters is None or parameters == {}:
        parameters = {"type": "object", "properties": {}}
    return Function(
        name,
        text(description or "", f"{where}.description", DESCRIPTION_CHARACTERS_MAX),
        take_schema(parameters, f"{where}.parameters"),
    )


# --- Told to the model ----------------------------------------------------------------------------------------------


def instructions(tools: Tools) -> str:
    """What the system message says of the functions; empty where none may be called."""
    if not tools.offered:
        return ""
    lines = ["You can call functions. Each line describes one as JSON:", *map(_told, tools.offered), ""]
    lines.append('To call one, answer with {"name": NAME, "arguments": {ARGUMENTS}} as JSON and nothing else.')
    lines.append("Call one now." if tools.forced else "If no function is needed, answer in plain words.")
    return "\n".join(lines)


def _told(function: Function) -> str:
    told = {"name": function.name, "description": function.description, "parameters": function.parameters.value}
    return json.dumps(told, ensure_ascii=False)


def with_tools(messages: Sequence[Mapping[str, str]], tools: Tools | None) -> tuple[dict[str, str], ...]:
    """The messages with the functions told at the end of the first system message, or in one of their own."""
    said = instructions(tools) if tools is not None else ""
    if not said:
        return tuple(dict(each) for each in messages)
    if messages and messages[0]["role"] == "system":
        first = {"role": "system", "content": f"{messages[0]['content']}\n\n{said}"}
        return (first, *(dict(each) for each in messages[1:]))
    return ({"role": "system", "content": said}, *(dict(each) for each in messages))


class History:
    """Earlier calls and their results as plain messages: chat templates differ in what they make of the role `tool`."""

    def __init__(self) -> None:
        self._called: dict[str, str] = {}  # id of a call -> name of its function

    def calls(self, value: Any, where: str) -> str:
        """An assistant's `tool_calls`, in the words in which it made them. Raises BAD_REQUEST, UNSUPPORTED."""
        if not isinstance(value, list) or len(value) > CALLS_MAX:
            raise bad_request(f"{where} must be a list of at most {CALLS_MAX} calls", where)
        return "\n".join(self._call(each, f"{where}[{index}]") for index, each in enumerate(value))

    def _call(self, value: Any, where: str) -> str:
        kind = value.get("type", "function") if isinstance(value, Mapping) else None
        function = value.get("function") if kind == "function" else None
        if not isinstance(function, Mapping):
            raise bad_request(f"{where} must be a call of a function", where)
        name, arguments, identity = function.get("name"), function.get("arguments"), value.get("id")
        if not isinstance(name, str) or not isinstance(arguments, str) or not isinstance(identity, str):
            raise bad_request(f"{where} needs the texts id, function.name and function.arguments", where)
        self._called[text(identity, f"{where}.id", 256)] = text(name, f"{where}.function.name", 64)
        try:
            given = json.loads(arguments)
        except (ValueError, RecursionError):
            raise bad_request(f"{where}.function.arguments is not JSON", where) from None
        return json.dumps({"name": name, "arguments": given}, ensure_ascii=False)

    def result(self, identity: Any, content: str, where: str) -> str:
        """A message of the role `tool`. Raises BAD_REQUEST for a call that nobody made."""
        name = self._called.get(identity) if isinstance(identity, str) else None
        if name is None:
            message = f"{where}.tool_call_id must be the id of a call in an assistant message before it"
            raise bad_request(message, f"{where}.tool_call_id")
        return f"Result of {name}: {content}"


# --- Forced, and found again ----------------------------------------------------------------------------------------


def call_schema(tools: Tools) -> dict[str, Any]:
    """The JSON Schema of an answer that is a call of one of the functions that may be called."""
    definitions: dict[str, Any] = {}
    alternatives = []
    for index, function in enumerate(tools.offered):
        arguments = function.parameters.value
        if _refers(arguments):  # its references begin at its own root, which now lies elsewhere
            place = f"#/$defs/f{index}"
            definitions[f"f{index}"] = _moved(arguments, place)
            arguments = {"$ref": place}
        alternatives.append(
            {
                "type": "object",
                "properties": {"name": {"const": function.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    whole = alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
    return {**whole, "$defs": definitions} if definitions else whole


def _refers(schema: Any) -> bool:
    return '"$ref"' in json.dumps(schema)


def _moved(schema: Any, place: str) -> Any:
    """`schema` with its references leading to where it is put."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: f"{place}{value[1:]}" if name == "$ref" and isinstance(value, str) else _moved(value, place)
        for name, value in schema.items()
    }


def may_become_call(said: str) -> bool:
    """Whether an answer that begins so may still turn out to be a call: until then it is held."""
    begun = said.lstrip()
    return any(begun.startswith(each) or each.startswith(begun) for each in _CALL_BEGINS)


def find_call(said: str, tools: Tools) -> Call | None:
    """The call that an answer is; None where it is words. Never raises."""
    try:
        return take_call(said, tools)
    except NotValid:
        return None


def take_call(said: str, tools: Tools) -> Call:
    """The call that an answer must be. Raises NotValid."""
    bare = said.strip()
    fenced = _FENCE.match(bare)
    value = parse_answer(fenced[1] if fenced else bare, None)
    if set(value) != {"name", "arguments"}:
        raise NotValid("the answer is no call of a function; ask again, or another model")
    function = next((each for each in tools.offered if each.name == value["name"]), None)
    if function is None:
        raise NotValid("the answer calls a function that was not offered; ask again, or another model")
    arguments = value["arguments"]
    reason = function.parameters.why_not(arguments) if isinstance(arguments, dict) else "they are no object"
    if reason:
        message = f"the arguments of {function.name} do not satisfy its parameters: {reason}"
        raise NotValid(f"{message}; ask again, or another model")
    return Call(function.name, json.dumps(arguments, ensure_ascii=False, separators=(",", ":")))
