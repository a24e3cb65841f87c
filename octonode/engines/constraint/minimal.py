"""A small value that a schema allows, always the same one: what the scripted engine answers. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from octonode.engines.constraint import tree
from octonode.engines.constraint.ending import ending_definitions, ends
from octonode.engines.constraint.tree import Node, Pattern, Tree
from octonode.errors import OctonodeError

VALUES_MAX: Final = 2000
"""Of the smallest value, with all that it holds."""


def minimal_json(made: Tree) -> str:
    """JSON text of a value that satisfies the schema: required members only, as few items as it takes.

    Raises OctonodeError UNSUPPORTED where even that holds more than VALUES_MAX values: lists of lists of many items.
    """
    return json.dumps(_Values(made).of(made.root, ending_definitions(made)), ensure_ascii=False)


class _Values:
    def __init__(self, made: Tree) -> None:
        self._made = made
        self._left = VALUES_MAX

    def of(self, node: Node, known: frozenset[str]) -> Any:
        """Raises OctonodeError UNSUPPORTED."""
        self._left -= 1
        if self._left < 0:
            text = f"no value of fewer than {VALUES_MAX} parts satisfies the schema; ask for fewer items"
            raise OctonodeError(text, code="UNSUPPORTED")
        if isinstance(node, tree.Anything):
            return {} if node.object_only else None
        if isinstance(node, tree.Literal):
            return json.loads(node.json)
        if isinstance(node, tree.Text):
            return "x" * node.least if node.pattern is None else _match(node.pattern)
        if isinstance(node, tree.Number):
            return min(max(0, node.low or 0), node.low or 0 if node.high is None else node.high)
        if isinstance(node, tree.Named):
            return self.of(self._made.definitions[node.name], _without(node.name, self._made, known))
        if isinstance(node, tree.Either):
            return self.of(next(each for each in node.options if ends(each, known)), known)
        if isinstance(node, tree.Items):
            few = [self.of(each, known) for each in node.prefix[: node.least]]
            return few + [self.of(node.item, known) for _ in range(node.least - len(few)) if node.item is not None]
        if isinstance(node, tree.Mapping):
            return {f"name{number}": self.of(node.value, known) for number in range(node.least)}
        return {each.name: self.of(each.value, known) for each in node.members if each.required}


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
