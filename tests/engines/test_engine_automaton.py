"""Regular expressions as automata: they mean the same, and whatever they are, one state is the state of a text."""

from __future__ import annotations

import contextlib
import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.engines.constraint.automaton import Automata
from octonode.engines.constraint.gbnf import grammar_for
from octonode.engines.constraint.minimal import minimal_json
from octonode.engines.constraint.patterns import read_pattern
from octonode.engines.constraint.reading import read_schema
from octonode.errors import OctonodeError

LETTERS = "abc"
TEXTS = ["".join(each) for count in range(6) for each in itertools.product(LETTERS, repeat=count)]
EXPLODING = ["^(a+)+$", "^(a|a|a)*b$", "^(.*){30}b$", "^((a?){20}){20}a{20}$", "^(a?){200}a{200}$", "^((a|b)?){100}$"]
"""Each can be meant in more ways than there are atoms."""


def states(text):
    return Automata().states_of(read_pattern(text))


def matches(automaton, text):
    """Whether it takes the text; at each character there is one way at most."""
    state = automaton[0]
    for sign in text:
        ways = [to for characters, to in state.ways if any(a <= ord(sign) <= b for a, b in characters.ranges)]
        assert len(ways) <= 1
        if not ways:
            return False
        state = automaton[ways[0]]
    return state.ends


@pytest.mark.parametrize("text", EXPLODING)
def test_what_explodes_elsewhere_has_few_states(text):
    automaton = states(text)
    assert len(automaton) <= 421
    assert all(len(state.ways) <= 3 for state in automaton)
    assert grammar_for(json.dumps({"type": "string", "pattern": text})).startswith("root ::= ")


EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "ab", "c"]),
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})")
        | st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{1,3}", "{2,}", "{0}"])).map(
            lambda two: f"({two[0]}){two[1]}"
        )
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(EXPRESSIONS)
def test_it_takes_the_texts_that_the_expression_takes(text):
    with contextlib.suppress(OctonodeError):  # what repeats without end what may be empty
        automaton = states(text)
        for each in TEXTS[:: max(1, len(TEXTS) // 100)]:
            assert matches(automaton, each) == bool(re.fullmatch(text, each)), each


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^[ab]*a[ab]{60}$"},
        {"prefixItems": [{"type": "string", "pattern": f"^(a?){{400}}{number}$"} for number in range(200)]},
    ],
    ids=["states that double", "many expressions"],
)
def test_what_takes_too_long_to_make_is_refused(schema):
    with pytest.raises(OctonodeError, match="simplify it") as caught:
        grammar_for(json.dumps(schema))
    assert caught.value.code == "UNSUPPORTED"


def test_members_that_may_be_left_out_are_written_once_each():
    """Sixty of them, and objects within objects: written for each way to leave some out, it would never end."""
    nested: dict[str, object] = {"type": "string"}
    for _ in range(20):
        nested = {"type": "object", "properties": {"a": nested, "b": {"type": "null"}}}
    wide = {"type": "object", "properties": {f"k{number}": {"type": "string"} for number in range(60)}}
    for schema in (wide, nested):
        assert len(grammar_for(json.dumps(schema))) < 20_000


def test_what_only_control_characters_can_satisfy_is_refused():
    for pattern in (r"\x01", r"a\x01b"):
        with pytest.raises(OctonodeError, match="control characters"):
            grammar_for(json.dumps({"type": "string", "pattern": pattern}))
    assert grammar_for(json.dumps({"type": "string", "pattern": r"\x01|a"}))


def lists(levels, **more):
    """Lists of lists, each in two forms that begin alike."""
    definitions = {
        f"a{level}": {
            "anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/a{level + 1}"}, **each} for each in ({}, more)]
        }
        for level in range(levels)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{levels}": {"type": "string"}}}


def doubled(levels):
    """Alternatives that come to the same in 2 to the power of `levels` ways, before the first character."""
    definitions = {
        f"a{level}": {
            "anyOf": [{"$ref": f"#/$defs/a{level + 1}"}, {"anyOf": [{"$ref": f"#/$defs/a{level + 1}"}, {"const": 1}]}]
        }
        for level in range(levels)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{levels}": {"type": "string"}}}


ALIKE = [{"properties": {"a": {"$ref": "#"}, each: True}, "required": ["a"]} for each in "bc"]
ANY = [{"type": "array", "items": {"$ref": "#"}}, {"type": "object", "additionalProperties": {"$ref": "#"}}]
SUM = {"op": {"const": "sum"}, "left": {"$ref": "#"}, "right": {"$ref": "#"}}
NUMBER = {"op": {"const": "number"}, "value": {"type": "number"}}


@pytest.mark.parametrize(
    "schema",
    [
        lists(12, maxItems=5),
        doubled(30),
        {"anyOf": [{"type": "array", "items": {"$ref": "#"}}] * 2 + [{"type": "integer"}]},
        {"anyOf": [*ALIKE, {"type": "null"}]},
    ],
    ids=["lists", "doubled", "itself", "objects"],
)  # fmt: skip
def test_alternatives_that_multiply_are_refused(schema):
    with pytest.raises(OctonodeError, match="begin alike") as caught:
        grammar_for(json.dumps(schema))
    assert caught.value.code == "UNSUPPORTED"


@pytest.mark.parametrize(
    "schema",
    [
        lists(5, maxItems=5),
        doubled(5),
        {"anyOf": [{"properties": each, "required": list(each)} for each in (SUM, NUMBER)]},
        {"enum": [f"word {number}" for number in range(900)]},
        {"anyOf": [*ANY, {"type": "string"}]},
    ],
    ids=["lists", "doubled", "told apart", "constants", "any JSON"],
)  # fmt: skip
def test_alternatives_that_part_are_taken(schema):
    assert grammar_for(json.dumps(schema)).startswith("root ::= ")


def test_a_smallest_value_that_is_very_large_is_not_made():
    """A thousand lists of a thousand lists of a thousand lists."""
    schema = {"type": "integer"}
    for _ in range(3):
        schema = {"type": "array", "items": schema, "minItems": 1000}
    with pytest.raises(OctonodeError, match="fewer items") as caught:
        minimal_json(read_schema(json.dumps(schema)))
    assert caught.value.code == "UNSUPPORTED"
