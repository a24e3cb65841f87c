"""Whether what a schema allows ever comes to an end: some values would be without end, some grammars too. Pure."""

from __future__ import annotations

from octonode.engines.constraint.tree import Either, Items, Mapping, Members, Named, Node, Tree
from octonode.errors import OctonodeError


def ending_definitions(tree: Tree) -> frozenset[str]:
    """Names of the definitions that a finite value satisfies."""
    known: set[str] = set()
    while True:
        more = {name for name, node in tree.definitions.items() if name not in known and ends(node, known)}
        if not more:
            return frozenset(known)
        known |= more


def ends(node: Node, known: frozenset[str] | set[str]) -> bool:
    """Whether a finite value satisfies it, given the definitions of which that is known."""
    if isinstance(node, Named):
        return node.name in known
    if isinstance(node, Either):
        return any(ends(option, known) for option in node.options)
    if isinstance(node, Members):
        return all(ends(member.value, known) for member in node.members if member.required)
    if isinstance(node, Mapping):
        return not node.least or ends(node.value, known)
    if isinstance(node, Items):
        first = all(ends(each, known) for each in node.prefix[: node.least])
        return first and (node.least <= len(node.prefix) or node.item is None or ends(node.item, known))
    return True


def check_endings(tree: Tree) -> None:
    """Raises OctonodeError BAD_REQUEST when no finite value satisfies the schema, or a definition is just itself."""
    if not ends(tree.root, ending_definitions(tree)):
        raise OctonodeError(
            "no finite value satisfies the schema: it always holds itself once more", code="BAD_REQUEST"
        )
    for start in tree.definitions:
        seen: set[str] = set()
        waiting = _heads(tree.definitions[start])
        while waiting:
            name = waiting.pop()
            if name == start:
                raise OctonodeError("a definition of the schema is nothing but itself", code="BAD_REQUEST")
            if name not in seen:
                seen.add(name)
                waiting += _heads(tree.definitions[name])


def _heads(node: Node) -> list[str]:
    """Definitions that a value of the node may be as a whole."""
    if isinstance(node, Named):
        return [node.name]
    return [name for option in node.options for name in _heads(option)] if isinstance(node, Either) else []
