"""The grammar of a schema's tree in llama.cpp's GBNF. Pure.

White space is what models write by themselves (one space, or a line break with an indent) and never without end.
"""

from __future__ import annotations

import json

from octonode.engines.constraint import tree
from octonode.engines.constraint.ambiguity import check_ambiguity
from octonode.engines.constraint.automaton import Automata
from octonode.engines.constraint.reading import read_schema
from octonode.engines.constraint.tree import Node, Pattern, Tree
from octonode.errors import OctonodeError

GRAMMAR_CHARACTERS_MAX = 512 * 1024
_BASE = {
    "ws": r'" "? | "\n" [ \t]{0,20}',
    "char": r'[^"\\\x00-\x1F\x7F\uD800-\uDFFF] | "\\" ["\\/bfnrt]',
    "string": r'"\"" char* "\""',
    "digits": f"[0-9]{{1,{tree.NUMBER_DIGITS_MAX}}}",
    "natural": f'"0" | [1-9] [0-9]{{0,{tree.NUMBER_DIGITS_MAX - 1}}}',
    "number": '"-"? natural ("." digits)? ([eE] [-+]? [0-9]{1,2})?',
    "value": 'object | array | string | number | "true" | "false" | "null"',
    "object": r'"{" ws (string ":" " "? value ("," ws string ":" " "? value)*)? ws "}"',
    "array": '"[" ws (value ("," ws value)*)? ws "]"',
}


def grammar_for(schema: str) -> str:
    """The grammar that a JSON Schema (as JSON text) asks for. Raises what `read_schema` raises."""
    return write_grammar(read_schema(schema))


def write_grammar(made: Tree) -> str:
    """GBNF with the rule `root`. Raises OctonodeError: TOO_LARGE, UNSUPPORTED for what takes too long to enforce."""
    check_ambiguity(made)
    writer = _Writer(made)
    text = "\n".join(f"{name} ::= {body}" for name, body in writer.rules.items()) + "\n"
    if len(text) > GRAMMAR_CHARACTERS_MAX:
        raise OctonodeError("the schema makes too large a grammar; simplify it", code="TOO_LARGE")
    return text


class _Writer:
    def __init__(self, made: Tree) -> None:
        self.rules = {"root": "", **_BASE}
        self._names = {name: f"definition-{number}" for number, name in enumerate(made.definitions)}
        self._known: dict[str, str] = {}
        self._patterns: dict[Pattern, str] = {}
        self._automata = Automata()
        self.rules["root"] = self._node(made.root)
        for name, node in made.definitions.items():
            self.rules[self._names[name]] = self._node(node)

    def _rule(self, body: str) -> str:
        """The name of a rule with this body."""
        if body not in self._known:
            self._known[body] = f"r{len(self._known)}"
            self.rules[self._known[body]] = body
        return self._known[body]

    def _node(self, node: Node) -> str:
        if isinstance(node, tree.Anything):
            return "object" if node.object_only else "value"
        if isinstance(node, tree.Literal):
            return _quoted(node.json)
        if isinstance(node, tree.Text):
            return self._text(node)
        if isinstance(node, tree.Number):
            return self._number(node)
        if isinstance(node, tree.Named):
            return self._names[node.name]
        if isinstance(node, tree.Either):
            return self._rule(" | ".join(self._node(option) for option in node.options))
        if isinstance(node, tree.Items):
            return self._items(node)
        if isinstance(node, tree.Mapping):
            pair = self._rule(f'string ":" " "? {self._node(node.value)}')
            return self._rule(f'"{{" ws {_listed(pair, node.least, node.most)} ws "}}"')
        return self._rule(f'"{{" ws {self._members(node.members)} ws "}}"')

    def _members(self, members: tuple[tree.Member, ...]) -> str:
        """All of them, from the last to the first: with and without a comma before them, each is written once."""
        rest, rest_first = "", ""
        for each in reversed(members):
            name = json.dumps(each.name, ensure_ascii=False)
            pair = f'{_quoted(name + ":")} " "? {self._node(each.value)} {rest}'.rstrip()
            rest_first = self._member(each, pair, rest_first)
            rest = self._member(each, f'"," ws {pair}', rest)
        return rest_first

    def _member(self, member: tree.Member, with_it: str, without: str) -> str:
        if member.required:
            return self._rule(with_it)
        return self._rule(f"{with_it} | {without}") if without else self._rule(f"({with_it})?")

    def _items(self, node: tree.Items) -> str:
        parts, closing = "", ""
        for number, each in enumerate(node.prefix):
            comma = '"," ws ' if number else ""
            if number < node.least:
                parts += f"{comma}{self._node(each)} "
            else:
                parts += f"({comma}{self._node(each)} "
                closing += ")?"
        count = len(node.prefix)
        if node.item is not None and (node.most is None or node.most > count):
            least, most = max(0, node.least - count), None if node.most is None else node.most - count
            item = self._rule(self._node(node.item))
            parts += f'("," ws {item}){_counts(least, most)}' if count else _listed(item, least, most)
        return self._rule(f'"[" ws {parts}{closing} ws "]"')

    def _text(self, node: tree.Text) -> str:
        if node.pattern is not None:
            return self._rule(rf'"\"" {self._pattern(node.pattern)} "\""')
        if not node.least and node.most is None:
            return "string"
        return self._rule(rf'"\"" char{_counts(node.least, node.most)} "\""')

    def _pattern(self, pattern: Pattern) -> str:
        """The name of the rule of its first state. Each state is a rule, and each way ends in the rule of the next."""
        if pattern not in self._patterns:
            states = self._automata.states_of(pattern)
            prefix = f"p{len(self._patterns)}"
            for number, state in enumerate(states):
                written = [(_class(characters), target) for characters, target in state.ways]
                ways = [f"{one} {prefix}-{target}" for one, target in written if one]
                if not ways and not state.ends:
                    text = "the schema has a pattern that goes on with control characters only; simplify it"
                    raise OctonodeError(text, code="UNSUPPORTED")
                self.rules[f"{prefix}-{number}"] = " | ".join([*ways, *(['""'] if state.ends else [])])
            self._patterns[pattern] = f"{prefix}-0"
        return self._patterns[pattern]

    def _number(self, node: tree.Number) -> str:
        limit = 10**tree.NUMBER_DIGITS_MAX - 1
        if node.low is None and node.high is None:
            return "number" if not node.whole else self._rule('"-"? natural')
        low = -limit if node.low is None else node.low
        high = limit if node.high is None else node.high
        options = _between(low, high)
        if not node.whole:  # a fraction goes beyond its whole number, so the last one at each end has none
            options += [f"({each}) fraction" for each in _between(max(low, 0), high - 1)]
            options += [f"({each}) fraction" for each in _between(low + 1, min(high, -1))]
            if low < 0 <= high:
                options.append('"-0" fraction')
            self.rules["fraction"] = '"." digits'
        return self._rule(" | ".join(options))


def _counts(least: int, most: int | None) -> str:
    if (least, most) == (0, None):
        return "*"
    return f"{{{least},{'' if most is None else most}}}"


def _listed(item: str, least: int, most: int | None) -> str:
    if most == 0:
        return ""
    rest = f'("," ws {item}){_counts(max(0, least - 1), None if most is None else most - 1)}'
    return f"{item} {rest}" if least else f"({item} {rest})?"


def _quoted(text: str) -> str:
    """A literal of GBNF."""
    return '"' + "".join(_escaped(ord(sign), '"\\') for sign in text) + '"'


def _escaped(code: int, signs: str) -> str:
    if 0x20 <= code < 0x7F:
        return "\\" + chr(code) if chr(code) in signs else chr(code)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


_IN_TEXT = {34: r'"\\\""', 92: r'"\\\\"', 10: r'"\\n"', 13: r'"\\r"', 9: r'"\\t"', 12: r'"\\f"', 8: r'"\\b"'}
"""Characters that a JSON text writes with a backslash, as literals of GBNF."""
_PLAIN = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF))


def _class(part: tree.Characters) -> str:
    """The set as it looks inside a JSON text; empty where nothing of it can stand there."""
    plain = [(max(a, low), min(b, high)) for a, b in part.ranges for low, high in _PLAIN if a <= high and b >= low]
    options = [literal for code, literal in _IN_TEXT.items() if any(a <= code <= b for a, b in part.ranges)]
    if plain:
        inside = "".join(_escaped(a, "]\\^-") + ("" if a == b else "-" + _escaped(b, "]\\^-")) for a, b in plain)
        options.insert(0, f"[{inside}]")
    return "".join(options) if len(options) < 2 else "(" + " | ".join(options) + ")"


def _between(low: int, high: int) -> list[str]:
    """Alternatives that together are the whole numbers from `low` to `high`."""
    if low > high:
        return []
    if high < 0:
        return [f'"-" ({" | ".join(_between(-high, -low))})']
    if low < 0:
        return [f'"-" ({" | ".join(_between(1, -low))})', *_between(0, high)]
    options = []
    while len(str(low)) < len(str(high)):
        end = 10 ** len(str(low)) - 1
        options += _same_length(str(low), str(end))
        low = end + 1
    return options + _same_length(str(low), str(high))


def _same_length(low: str, high: str) -> list[str]:
    if not low:
        return ['""']
    if low[0] == high[0]:
        return [f'"{low[0]}" {_group(_same_length(low[1:], high[1:]))}']
    rest = len(low) - 1
    any_digits = f"[0-9]{{{rest}}}" if rest else ""
    first, last = int(low[0]), int(high[0])
    options = []
    if rest and low[1:] != "0" * rest:
        options.append(f'"{first}" {_group(_same_length(low[1:], "9" * rest))}')
        first += 1
    if rest and high[1:] != "9" * rest:
        options.append(f'"{last}" {_group(_same_length("0" * rest, high[1:]))}')
        last -= 1
    if first <= last:
        options.append(f"[{first}-{last}] {any_digits}".rstrip())
    return options


def _group(options: list[str]) -> str:
    return options[0] if len(options) == 1 else "(" + " | ".join(options) + ")"
