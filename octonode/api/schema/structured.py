"""Answers that must satisfy a JSON Schema: which schemas are taken, and whether an answer does. Pure, and bounded.

A schema comes from a stranger and so does the answer: nothing is fetched (`$ref` leads only into the schema itself),
regexes run in linear time, and how often a part of the schema may be visited for one value is counted beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from octonode.api.schema.failures import bad_request
from octonode.errors import OctonodeError

SCHEMA_BYTES_MAX: Final = 64 * 1024
SCHEMA_DEPTH_MAX: Final = 64
"""Levels of nested objects and lists of the schema."""
ANSWER_CHARACTERS_MAX: Final = 256 * 1024
VISITS_MAX: Final = 1_000_000
"""Of parts of the schema while one answer is checked: some 20 ms."""
PATTERN_CHARACTERS_MAX: Final = 512
PATTERN_COMPILED_BYTES_MAX: Final = 1 << 18

_HERE: Final = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas")
"""Keywords whose schemas see the same value."""
_EITHER: Final = ("properties", "prefixItems")
"""Of whose schemas each child sees one."""
_EACH: Final = (
    *("patternProperties", "additionalProperties", "propertyNames", "items", "contains"),
    *("unevaluatedProperties", "unevaluatedItems"),
)
"""All of whose schemas a child may see."""
_MAPS: Final = frozenset({"properties", "patternProperties", "dependentSchemas"})
"""Keywords that hold a map of schemas; the others hold one, or a list."""
_LEVELS_MAX: Final = 300
"""Of visits within visits: schema and value together may nest so deep. Well within Python's own stack."""
_PAIRS_MAX: Final = 100_000
"""Of a part of the schema and a part of the answer, that are counted."""
_NAMES: Final = _MAPS | {"$defs", "definitions"}
_REFUSED: Final = (
    *("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
    "$vocabulary",
)
_DATA: Final = frozenset({"const", "enum", "default", "examples", "example"})
"""Keywords that hold values, not schemas."""


class NotValid(OctonodeError):
    """The answer is not what the schema says; the engine did not keep to its constraint."""

    code = "ENGINE_FAILED"


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that may be asked for. Made by `take_schema`."""

    text: str
    """Its JSON, as it goes to the engine."""
    value: Any
    validator: Any

    def why_not(self, value: Any) -> str:
        """Empty when `value` is valid, else what is wrong and where, in a line."""
        try:
            _Visits(self.value).of(self.value, value)
        except _TooCostly:
            return "it takes too long to check; give the schema fewer alternatives that contain each other"
        try:
            error = next(iter(self.validator.iter_errors(value)), None)
        except ValueError as fault:  # a number that no JSON can hold
            return str(fault)[:200]
        return "" if error is None else _told(error.message, error.instance_path)


def take_schema(value: Any, where: str) -> Schema:
    """The schema in a request's field `where`. Raises BAD_REQUEST that names the place at fault."""
    if not isinstance(value, Mapping):
        raise bad_request(f"{where} must be a JSON Schema, an object", where)
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    size = len(written.encode("utf-8", "replace"))
    if size > SCHEMA_BYTES_MAX:
        raise bad_request(f"{where} has {size} bytes; at most {SCHEMA_BYTES_MAX} are taken", where, code="TOO_LARGE")
    _check(value, where)
    visits = _Visits(value)
    try:
        for part in _parts(value):
            visits.of(part, None)
    except _TooCostly:
        raise bad_request(f"{where} has too many alternatives within alternatives; make it simpler", where) from None
    return Schema(written, value, _validator(value, where))


def parse_answer(text: str, schema: Schema | None) -> Any:
    """The JSON of an answer that satisfies `schema`; None: that is any JSON object. Raises NotValid."""
    if len(text) > ANSWER_CHARACTERS_MAX:
        raise NotValid(f"the answer has over {ANSWER_CHARACTERS_MAX} characters, too many to be checked")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise NotValid(f"the answer is not JSON ({str(error)[:100]}); ask again, or another model") from None
    if schema is None:
        if not isinstance(value, dict):
            raise NotValid("the answer is JSON and no object; ask again, or another model")
        return value
    reason = schema.why_not(value)
    if reason:
        raise NotValid(f"the answer does not satisfy the schema: {reason}; ask again, or another model")
    return value


def _validator(value: Any, where: str) -> Any:
    import jsonschema_rs  # only nodes and callers that are asked for structured answers need it

    options = jsonschema_rs.RegexOptions(
        size_limit=PATTERN_COMPILED_BYTES_MAX, dfa_size_limit=PATTERN_COMPILED_BYTES_MAX
    )
    try:
        return jsonschema_rs.Draft202012Validator(
            value, pattern_options=options, validate_formats=False, offline=True, mask="the value"
        )
    except jsonschema_rs.ValidationError as error:
        raise bad_request(f"{where} is no JSON Schema: {_told(error.message, error.instance_path)}", where) from None
    except ValueError as error:
        raise bad_request(f"{where} is no JSON Schema: {str(error)[:200]}", where) from None


def _told(message: str, path: Sequence[str | int]) -> str:
    place = "/".join(map(str, path))
    return f"{message[:300]} (at {place[:200]})" if place else message[:300]


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _check(schema: Any, where: str) -> None:
    """Every part of a schema, before anything compiles it."""
    level: list[tuple[Any, str, bool]] = [(schema, "", False)]
    for _ in range(SCHEMA_DEPTH_MAX):
        following: list[tuple[Any, str, bool]] = []
        for value, place, names in level:
            if isinstance(value, Mapping):
                if not names:
                    _check_keywords(value, place, schema, where)
                following += [
                    (each, f"{place}/{name}", not names and name in _NAMES)
                    for name, each in value.items()
                    if names or name not in _DATA
                ]
            elif isinstance(value, list):
                following += [(each, f"{place}/{index}", False) for index, each in enumerate(value)]
        if not following:
            return
        level = following
    raise bad_request(f"{where} nests deeper than {SCHEMA_DEPTH_MAX} levels", where)


def _check_keywords(value: Mapping[str, Any], place: str, root: Any, where: str) -> None:
    for name in _REFUSED:
        if isinstance(value.get(name), str):
            raise bad_request(f"{where}{place}: {name} is not served; refer with #/$defs/NAME", where)
    reference = value.get("$ref")
    if isinstance(reference, str):
        try:
            resolve(root, reference)
        except LookupError:
            message = f"{where}{place}/$ref {reference[:200]!r} leads nowhere in this schema; nothing is fetched"
            raise bad_request(f"{message}: refer with #/$defs/NAME", where) from None
    keyed = value.get("patternProperties")
    patterns = [value.get("pattern"), *(keyed if isinstance(keyed, Mapping) else ())]
    if any(isinstance(each, str) and len(each) > PATTERN_CHARACTERS_MAX for each in patterns):
        raise bad_request(f"{where}{place}: a pattern has over {PATTERN_CHARACTERS_MAX} characters", where)


def resolve(root: Any, reference: str) -> Any:
    """What a reference such as `#/$defs/a` means in `root`. Raises LookupError."""
    if reference not in ("", "#") and not reference.startswith("#/"):
        raise LookupError(reference)
    found = root
    for part in reference[2:].split("/") if reference.startswith("#/") else ():
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and name.isascii() and int(name) < len(found):
            found = found[int(name)]
        else:
            raise LookupError(reference)
    return found


class _TooCostly(Exception):
    """So many visits that they are not made."""


class _Visits:
    """Counts how often parts of a schema would be visited for a value, without making the visits.

    Alternatives within alternatives multiply, and a count that remembers does not: 30 levels of two alternatives each
    are 30 sums here, and a thousand million visits there.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[tuple[int, int], int] = {}

    def of(self, part: Any, value: Any, level: int = 0) -> int:
        """At the most. Raises _TooCostly."""
        if not isinstance(part, Mapping):
            return 1
        key = (id(part), id(value))
        total = self._known.get(key, 0)
        if total:
            return total
        if level > _LEVELS_MAX or len(self._known) > _PAIRS_MAX:
            raise _TooCostly
        total = 1
        for each, seen in self._pairs(part, value):
            total += self.of(each, seen, level + 1)
            if total > VISITS_MAX:
                raise _TooCostly
        self._known[key] = total
        return total

    def _pairs(self, part: Mapping[str, Any], value: Any) -> Iterator[tuple[Any, Any]]:
        """(schema, value) of the visits that one visit leads to."""
        yield _referred(self._root, part), value
        for name in _HERE:
            for each in _schemas(part, name):
                yield each, value
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for name in _EACH:
            for each in _schemas(part, name):
                for child in children:
                    yield each, child
        if isinstance(value, dict) and isinstance(part.get("properties"), Mapping):
            for key, child in value.items():
                yield part["properties"].get(key), child
        elif isinstance(value, list):
            yield from zip(_schemas(part, "prefixItems"), value, strict=False)


def _parts(root: Any) -> list[Any]:
    """Every schema that may be visited, each once."""
    found: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping) and id(part) not in found:
            found[id(part)] = part
            waiting += [each for name in (*_HERE, *_EITHER, *_EACH) for each in _schemas(part, name)]
            waiting.append(_referred(root, part))
    return list(found.values())


def _referred(root: Any, part: Mapping[str, Any]) -> Any:
    reference = part.get("$ref")
    try:
        return resolve(root, reference) if isinstance(reference, str) else None
    except LookupError:  # within what is data and no schema, where `_check` does not look
        return None


def _schemas(part: Mapping[str, Any], name: str) -> Sequence[Any]:
    """The schemas that a keyword of `part` holds."""
    value = part.get(name)
    if isinstance(value, list):
        return value
    if not isinstance(value, Mapping):
        return ()
    return list(value.values()) if name in _MAPS else (value,)
