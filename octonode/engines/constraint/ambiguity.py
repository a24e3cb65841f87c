"""In how many ways the beginning of an answer may be meant at once: engines keep each, and try it for each token. Pure.

Alternatives that begin alike are all meant until they part. Within each other they multiply: lists of lists, in two
forms each, are a thousand ways ten levels down. Objects part by the name, or the constant, that they begin with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from octonode.engines.constraint import tree
from octonode.engines.constraint.tree import Node, Tree
from octonode.errors import OctonodeError

WAYS_MAX: Final = 256
"""Measured with 49,000 tokens: 512 ways took three seconds a token, in which no other stream goes on."""
LEVELS: Final = 32
"""Of definitions within definitions that are looked at; what grows by each of them is over the bound by then."""
_ANY_OBJECT: Final = "{"
_LITERAL_CHARACTERS: Final = 8
"""By which constants are told apart."""

STEPS_MAX: Final = 1_000_000
"""Of counting: about half a second, in which a worker does nothing else."""

_Ways = Mapping[str, int]
"""How an answer may begin -> in how many ways it may then be meant at once."""


def check_ambiguity(made: Tree) -> None:
    """Raises OctonodeError UNSUPPORTED for alternatives that multiply."""
    counting = _Counting(made)
    for _ in range(LEVELS):
        following = {name: counting.ways(node) for name, node in made.definitions.items()}
        if following == counting.known:
            break
        counting.known = following
    counting.ways(made.root)


class _Counting:
    def __init__(self, made: Tree) -> None:
        self.known: dict[str, _Ways] = {name: {} for name in made.definitions}
        self._steps_left = STEPS_MAX

    def ways(self, node: Node) -> _Ways:
        """Raises OctonodeError UNSUPPORTED."""
        if isinstance(node, tree.Either):
            return self._either(node)
        if isinstance(node, tree.Named):
            return self.known[node.name]
        if isinstance(node, tree.Items):
            return {"[": self._most([*node.prefix, *([] if node.item is None else [node.item])])}
        if isinstance(node, tree.Mapping):
            return {_ANY_OBJECT: self._most([node.value])}
        if isinstance(node, tree.Members):
            return {_beginning(node): self._most([each.value for each in node.members])}
        if isinstance(node, tree.Literal):
            return {node.json[:_LITERAL_CHARACTERS]: 1}
        if isinstance(node, tree.Anything):
            return {_ANY_OBJECT: 1} if node.object_only else {_ANY_OBJECT: 1, "[": 1, '"': 1, "0": 1}
        return {'"' if isinstance(node, tree.Text) else "0": 1}

    def _either(self, node: tree.Either) -> _Ways:
        found: Counter[str] = Counter()
        for option in node.options:
            ways = self.ways(option)
            self._steps_left -= 1 + len(ways)
            found.update(ways)
        if self._steps_left < 0 or _together(found) > WAYS_MAX:
            raise OctonodeError(
                "the schema has alternatives that begin alike within others that do: they multiply, and cannot be"
                " enforced; have each begin with a required member of its own name or constant",
                code="UNSUPPORTED",
            )
        return found

    def _most(self, parts: list[Node]) -> int:
        """Of parts that come one after the other."""
        return max((_together(self.ways(each)) for each in parts), default=1)


def _beginning(node: tree.Members) -> str:
    if not node.members or not node.members[0].required:
        return _ANY_OBJECT
    first = node.members[0]
    return _ANY_OBJECT + first.name + (f":{first.value.json}" if isinstance(first.value, tree.Literal) else "")


def _together(ways: _Ways) -> int:
    """At once: an object of any names begins like all others."""
    objects = ways.get(_ANY_OBJECT, 0)
    counts = [count + (objects if len(begins) > 1 and begins[0] == "{" else 0) for begins, count in ways.items()]
    return max(counts, default=1)
