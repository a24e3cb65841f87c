"""Reads a JSON Schema into the tree of what an answer may be. Pure.

Strict: a keyword that would have to be ignored is refused, since an answer is promised to satisfy the schema. Those
that only tell something (title, description, format, ...) are passed over. `oneOf` is read as `anyOf`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from octonode.engines.constraint import tree
from octonode.engines.constraint.ending import check_endings
from octonode.engines.constraint.patterns import read_pattern
from octonode.engines.constraint.tree import Node, Tree
from octonode.errors import OctonodeError

SCHEMA_CHARACTERS_MAX = 64 * 1024
SCHEMA_DEPTH_MAX = 64
SCHEMA_NODES_MAX = 2000
_ANNOTATIONS = frozenset(
    f"${name}" for name in ("schema", "id", "comment", "anchor", "defs")
) | frozenset(
    ("definitions", "title", "description", "default", "examples", "example", "format", "deprecated", "readOnly",
     "writeOnly", "contentEncoding", "contentMediaType", "strict")
)  # fmt: skip
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_KEYWORDS: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties", "propertyOrdering"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
_INTEGER_BOUND = 10**tree.NUMBER_DIGITS_MAX - 1


def read_schema(text: str) -> Tree:
    """The tree of a schema given as JSON text; that of `{}` is any object.

    Raises OctonodeError: BAD_REQUEST for what is no schema or what no finite value satisfies, UNSUPPORTED for keywords
    that cannot be enforced here, TOO_LARGE.
    """
    if len(text) > SCHEMA_CHARACTERS_MAX:
        raise OctonodeError(f"the schema has more than {SCHEMA_CHARACTERS_MAX} characters", code="TOO_LARGE")
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise bad("it is not JSON") from None
    if schema == {}:
        return Tree(tree.Anything(object_only=True))
    reader = _Reader(schema)
    made = Tree(reader.node(schema, 0), reader.definitions)
    check_endings(made)
    return made


def bad(why: str) -> OctonodeError:
    return OctonodeError(f"the schema cannot be used: {why}", code="BAD_REQUEST")


def unsupported(what: str) -> OctonodeError:
    return OctonodeError(f"the schema asks for what cannot be enforced here: {what}; leave it out", code="UNSUPPORTED")


def _no_constant(name: str) -> Any:
    raise ValueError(name)


class _Reader:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._count = 0
        self.definitions: dict[str, Node] = {}
        """Filled when a reference is met."""

    def node(self, schema: Any, depth: int) -> Node:
        self._count += 1
        if depth > SCHEMA_DEPTH_MAX or self._count > SCHEMA_NODES_MAX:
            raise OctonodeError("the schema is nested too deeply, or has too many parts", code="TOO_LARGE")
        if schema is True:
            return tree.Anything()
        if not isinstance(schema, dict):
            raise bad("nothing satisfies false" if schema is False else "a schema in it is no object")
        said = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
        for combination in ("allOf", "anyOf", "oneOf"):
            if combination in said:
                return self._combined(said, combination, depth)
        if "$ref" in said:
            return self._reference(said, depth)
        if "const" in said or "enum" in said:
            return self._values(said)
        return self._typed(said, depth)

    def _combined(self, said: dict[str, Any], combination: str, depth: int) -> Node:
        rest = {name: value for name, value in said.items() if name != combination}
        schemas = said[combination]
        if not isinstance(schemas, list) or not schemas or not all(isinstance(each, dict) for each in schemas):
            raise bad(f"{combination} is no list of schemas")
        if combination == "allOf":
            return self.node(_merged([rest, *schemas]), depth + 1)
        options = [self.node(_merged([rest, each]) if rest else each, depth + 1) for each in schemas]
        return options[0] if len(options) == 1 else tree.Either(tuple(options))

    def _reference(self, said: dict[str, Any], depth: int) -> Node:
        name = said["$ref"]
        if len(said) > 1:
            raise unsupported("keywords beside $ref")
        if not isinstance(name, str) or not name.startswith("#"):
            raise unsupported("a $ref to another document")
        if name not in self.definitions:
            target = self._target(name)
            self.definitions[name] = tree.Anything()  # in the making: it may refer to itself
            self.definitions[name] = self.node(target, depth + 1)
        return tree.Named(name)

    def _target(self, name: str) -> Any:
        target = self._schema
        for part in name[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or key not in target:
                raise bad(f"nothing stands at {name[:100]}")
            target = target[key]
        return target

    def _values(self, said: dict[str, Any]) -> Node:
        others = set(said) - {"const", "enum", "type"}
        if others:
            raise unsupported(f"{min(others)} beside enum or const")
        values = [said["const"]] if "const" in said else said["enum"]
        if not isinstance(values, list) or not values:
            raise bad("enum is no list of values")
        if "type" in said:
            values = [value for value in values if any(_has_type(value, kind) for kind in _kinds(said["type"]))]
        if not values:
            raise bad("no value of enum or const has the type")
        literals = tuple(tree.Literal(json.dumps(value, ensure_ascii=False)) for value in values)
        return literals[0] if len(literals) == 1 else tree.Either(literals)

    def _typed(self, said: dict[str, Any], depth: int) -> Node:
        kinds = _kinds(said["type"]) if "type" in said else _implied(said)
        known = {"type", *(word for kind in kinds for word in _KEYWORDS[kind])}
        others = set(said) - known
        if others:
            raise unsupported(min(others)[:100])
        if not kinds:
            return tree.Anything()
        options = [self._of_type(kind, said, depth) for kind in kinds]
        return options[0] if len(options) == 1 else tree.Either(tuple(options))

    def _of_type(self, kind: str, said: dict[str, Any], depth: int) -> Node:
        if kind == "object":
            return self._object(said, depth)
        if kind == "array":
            return self._array(said, depth)
        if kind == "string":
            return _text(said)
        if kind in ("integer", "number"):
            return _number(said, whole=kind == "integer")
        if kind == "null":
            return tree.Literal("null")
        return tree.Either((tree.Literal("true"), tree.Literal("false")))

    def _object(self, said: dict[str, Any], depth: int) -> Node:
        properties = said.get("properties", {})
        required = said.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise bad("properties is no object, or required no list")
        more = said.get("additionalProperties", True)
        least, most = _bounds(said, "minProperties", "maxProperties")
        if not properties and not required:
            if more is False:
                return tree.Members(())
            value = tree.Anything() if more is True else self.node(more, depth + 1)
            return tree.Mapping(value, least, most)
        if least or most is not None:
            raise unsupported("minProperties and maxProperties beside properties")
        for name in required:
            if not isinstance(name, str):
                raise bad("a name in required is no text")
            if name not in properties:
                properties = {**properties, name: more}
        members = [
            tree.Member(name, self.node(value, depth + 1), name in required)
            for name, value in properties.items()
            if value is not False or name in required
        ]
        return tree.Members(tuple(members))

    def _array(self, said: dict[str, Any], depth: int) -> Node:
        least, most = _bounds(said, "minItems", "maxItems")
        before = said.get("prefixItems", [])
        if not isinstance(before, list):
            raise bad("prefixItems is no list")
        prefix = tuple(self.node(each, depth + 1) for each in before[: len(before) if most is None else most])
        items = said.get("items", True)
        if items is False:
            most = len(prefix) if most is None else min(most, len(prefix))
        item = None if items is False or most == len(prefix) else self.node(items, depth + 1)
        if most is not None and least > most:
            raise bad("an array has more items at least than at most")
        return tree.Items(prefix, item, least, most)


def _kinds(said: Any) -> list[str]:
    kinds = said if isinstance(said, list) else [said]
    if not kinds or any(kind not in _TYPES for kind in kinds):
        raise bad(f"a type is none of {', '.join(_TYPES)}")
    return ["number"] if set(kinds) == {"integer", "number"} else list(dict.fromkeys(kinds))


def _implied(said: Mapping[str, Any]) -> list[str]:
    """The type that its keywords are about; a value of another type would satisfy it too, and is not made."""
    found = [kind for kind, words in _KEYWORDS.items() if any(word in said for word in words)]
    return ["number"] if "number" in found else found[:1]


def _has_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    types: dict[str, type | tuple[type, ...]] = {
        "object": dict, "array": list, "string": str, "number": (int, float), "null": type(None), "boolean": bool,
    }  # fmt: skip
    return whole if kind == "integer" else isinstance(value, types[kind])


def _merged(schemas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One schema for all of them together, as far as their keywords do not meet."""
    out: dict[str, Any] = {}
    for schema in schemas:
        for name, value in schema.items():
            if name in _ANNOTATIONS or out.get(name, value) == value:
                out[name] = value
            elif name == "properties" and isinstance(value, dict) and not set(out[name]) & set(value):
                out[name] = {**out[name], **value}
            elif name == "required" and isinstance(value, list):
                out[name] = [*out[name], *value]
            else:
                raise unsupported(f"{name[:100]} said twice through allOf, anyOf or oneOf")
    return out


def _bounds(said: Mapping[str, Any], low: str, high: str) -> tuple[int, int | None]:
    for value in (said.get(low, 0), said.get(high, 0)):
        if type(value) is not int or value < 0:
            raise bad(f"{low} or {high} is no count")
    least, most = said.get(low, 0), said.get(high)
    if max(least, most or 0) > tree.REPEATS_MAX:
        raise unsupported(f"{low} or {high} above {tree.REPEATS_MAX}")
    if most is not None and most < least:
        raise bad(f"{low} is above {high}")
    return least, most


def _text(said: Mapping[str, Any]) -> Node:
    least, most = _bounds(said, "minLength", "maxLength")
    pattern = said.get("pattern")
    if pattern is None:
        return tree.Text(least, most)
    if not isinstance(pattern, str):
        raise bad("a pattern is no text")
    if least or most is not None:
        raise unsupported("minLength and maxLength beside pattern")
    return tree.Text(pattern=read_pattern(pattern))


def _number(said: Mapping[str, Any], *, whole: bool) -> Node:
    for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if type(said.get(word, 0)) not in (int, float):
            raise bad(f"{word} is no number")
    lows = [said[word] for word in ("minimum", "exclusiveMinimum") if word in said]
    highs = [said[word] for word in ("maximum", "exclusiveMaximum") if word in said]
    if any(abs(bound) > _INTEGER_BOUND for bound in (*lows, *highs)):
        raise unsupported(f"numbers beyond {tree.NUMBER_DIGITS_MAX} digits")
    low = -(-max(lows) // 1) if lows else None
    high = min(highs) // 1 if highs else None
    # the whole numbers at the ends, where they are not to be reached
    if low is not None and low == said.get("exclusiveMinimum"):
        low += 1
    if high is not None and high == said.get("exclusiveMaximum"):
        high -= 1
    if low is not None and high is not None and low > high:
        raise bad("no whole number is in its bounds") if whole else unsupported("bounds without a whole number in them")
    return tree.Number(whole, None if low is None else int(low), None if high is None else int(high))
