"""A small value that a schema allows, always the same one: what the scripted engine answers. Pure."""

from __future__ import annotations

import json
from typing import Any

from octonode.engines.constraint import tree
from octonode.engines.constraint.ending import ending_definitions, ends
from octonode.engines.constraint.tree import Node, Pattern, Tree


def minimal_json(made: Tree) -> str:
    """JSON text of a value that satisfies the schema: required members only, as few items as it takes."""
    return json.dumps(_value(made.root, made, ending_definitions(made)), ensure_ascii=False)


def _value(node: Node, made: Tree, known: frozenset[str]) -> Any:
    if isinstance(node, tree.Anything):
        return {} if node.object_only else None
    if isinstance(node, tree.Literal):
        return json.loads(node.json)
    if isinstance(node, tree.Text):
        return "x" * node.least if node.pattern is None else _match(node.pattern)
    if isinstance(node, tree.Number):
        return min(max(0, node.low or 0), node.low or 0 if node.high is None else node.high)
    if isinstance(node, tree.Named):
        return _value(made.definitions[node.name], made, _without(node.name, made, known))
    if isinstance(node, tree.Either):
        return _value(next(each for each in node.options if ends(each, known)), made, known)
    if isinstance(node, tree.Items):
        few = [_value(each, made, known) for each in node.prefix[: node.least]]
        return few + [_value(node.item, made, known) for _ in range(node.least - len(few)) if node.item is not None]
    if isinstance(node, tree.Mapping):
        return {f"name{number}": _value(node.value, made, known) for number in range(node.least)}
    return {each.name: _value(each.value, made, known) for each in node.members if each.required}


def _without(name: str, made: Tree, known: frozenset[str]) -> frozenset[str]:
    """Definitions that end without the one that is being made, so that no value holds itself for ever."""
    others = Tree(made.root, {each: node for each, node in made.definitions.items() if each != name and each in known})
    return ending_definitions(others)


def _match(part: Pattern) -> str:
    if isinstance(part, tree.Characters):
        return chr(min(part.ranges, key=lambda each: (each[0] < 0x20, each[0]))[0])
    if isinstance(part, tree.Sequence):
        return "".join(map(_match, part.parts))
    if isinstance(part, tree.Choice):
        return min(map(_match, part.options), key=len)
    return _match(part.part) * part.least
