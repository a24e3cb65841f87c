"""What a schema allows, as a tree, as a grammar, as a value; and the other pure parts under llama.cpp's adapters."""

from __future__ import annotations

import contextlib
import json
import re
from types import SimpleNamespace

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.engines import lora
from octonode.engines.adapters.chunking import CHUNK_TOKENS_MAX, CHUNK_TOKENS_MIN, chunk_tokens, worth_another_load
from octonode.engines.adapters.llama_cpp_python_model import LlamaModel
from octonode.engines.adapters.llama_cpp_python_plan import Part, Row, Step, plan_step
from octonode.engines.constraint.gbnf import _between, grammar_for
from octonode.engines.constraint.minimal import minimal_json
from octonode.engines.constraint.patterns import read_pattern
from octonode.engines.constraint.reading import read_schema
from octonode.engines.slots import common_prefix
from octonode.errors import ConfigError, OctonodeError

LIST = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS = [
    {"type": "object", "title": "any"},
    {
        "type": "object",
        "properties": {"a": {"type": ["number", "null"], "minimum": -1.5}, "b": True},
        "required": ["b"],
    },
    {"type": "string", "pattern": r"^[A-Z]{2}\d{3,4}(-x|\"y\\)?$"},
    {"type": "string", "minLength": 3, "maxLength": 4, "format": "date"},
    {"type": "array", "items": {"enum": ["a", 1, None, {"k": [True]}]}, "minItems": 2, "maxItems": 3},
    {"prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False, "minItems": 1},
    {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1},
    {"type": "integer", "exclusiveMinimum": -15, "maximum": 1234},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]},
    LIST,
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_a_small_value_satisfies_the_schema_and_there_is_a_grammar(schema):
    made = minimal_json(read_schema(json.dumps(schema)))
    assert jsonschema_rs.validator_for(schema).is_valid(json.loads(made)), made
    assert grammar_for(json.dumps(schema)).startswith("root ::= ")


REFUSED = [
    ("no JSON", "BAD_REQUEST"),
    ("NaN", "BAD_REQUEST"),
    ("[1]", "BAD_REQUEST"),
    ("false", "BAD_REQUEST"),
    ('{"type": "person"}', "BAD_REQUEST"),
    ('{"type": 3}', "BAD_REQUEST"),
    ('{"$ref": "#/nowhere"}', "BAD_REQUEST"),
    ('{"$ref": "#"}', "BAD_REQUEST"),
    ('{"anyOf": [{"$ref": "#"}, {"type": "null"}]}', "BAD_REQUEST"),
    ('{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}', "BAD_REQUEST"),
    ('{"enum": []}', "BAD_REQUEST"),
    ('{"type": "integer", "minimum": 5, "maximum": 4}', "BAD_REQUEST"),
    ('{"minItems": 3, "maxItems": 2}', "BAD_REQUEST"),
    ('{"type": "string", "pattern": "("}', "BAD_REQUEST"),
    ('{"type": "string", "pattern": "[z-a]"}', "BAD_REQUEST"),
    ('{"type": "string", "pattern": "a{2,1}"}', "BAD_REQUEST"),
    ('{"type": "string", "pattern": "a(?=b)"}', "UNSUPPORTED"),
    ('{"type": "string", "pattern": "(a*)*"}', "UNSUPPORTED"),
    ('{"type": "string", "pattern": "((a{1,99}){1,99})b"}', "UNSUPPORTED"),
    ('{"not": {"type": "string"}}', "UNSUPPORTED"),
    ('{"uniqueItems": true}', "UNSUPPORTED"),
    ('{"type": "number", "multipleOf": 3}', "UNSUPPORTED"),
    ('{"minItems": 100000}', "UNSUPPORTED"),
    ('{"$ref": "https://example.org/schema"}', "UNSUPPORTED"),
    ('{"a": ' * 200 + "1" + "}" * 200, "UNSUPPORTED"),
    ('{"items": ' * 200 + "{}" + "}" * 200, "TOO_LARGE"),
    ("[" * 100_000, "TOO_LARGE"),
    ("[" * 60_000, "BAD_REQUEST"),
]


@pytest.mark.parametrize(("schema", "code"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_enforced_is_refused(schema, code):
    with pytest.raises(OctonodeError) as caught:
        grammar_for(schema)
    assert caught.value.code == code
    assert len(caught.value.message) < 300


KEYWORDS = (
    "type", "properties", "required", "items", "prefixItems", "anyOf", "allOf", "oneOf", "enum", "const", "$ref",
    "$defs", "minItems", "maxItems", "minimum", "maximum", "minLength", "maxLength", "pattern", "not",
    "additionalProperties",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["object", "array", "string", "#", "a+", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYWORDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def told(make):
    """What is made, or None where it is refused as it may be; any other error goes through."""
    with contextlib.suppress(OctonodeError):
        return make()
    return None


@settings(deadline=None)
@given(JSON)
def test_any_json_is_a_schema_that_can_be_satisfied_or_is_refused(schema):
    text = json.dumps(schema)
    made = told(lambda: minimal_json(read_schema(text)) + grammar_for(text))
    assert made or made is None


@settings(deadline=None)
@given(st.text(alphabet="ab(|)[]{}^$*+?.\\d1,-x", max_size=12))
def test_any_text_is_a_pattern_or_is_refused(text):
    told(lambda: read_pattern(text))


def _as_regex(grammar: str) -> str:
    """Alternatives of digits in GBNF are regular expressions but for quotes and spaces."""
    return grammar.replace('"', "").replace(" ", "")


@settings(deadline=None)
@given(st.integers(-2000, 2000), st.integers(0, 3000), st.integers(-5000, 5000))
def test_whole_numbers_between_two_bounds_are_just_those(low, width, probe):
    high = low + width
    options = re.compile("|".join(_as_regex(option) for option in _between(low, high)))
    for number in {low, high, (low + high) // 2, low - 1, high + 1, probe}:
        assert bool(options.fullmatch(str(number))) == (low <= number <= high), number


@settings(deadline=None)
@given(st.floats(0.001, 1e9))
def test_a_chunk_takes_about_its_time_within_bounds(speed):
    chunk = chunk_tokens(speed)
    assert CHUNK_TOKENS_MIN <= chunk <= CHUNK_TOKENS_MAX
    assert chunk / speed <= 0.13 or chunk == CHUNK_TOKENS_MIN
    assert not worth_another_load(chunk, speed)


def test_only_a_chunk_that_is_far_off_is_worth_another_load():
    assert worth_another_load(64, 100)
    assert not worth_another_load(24, 150)
    assert worth_another_load(64, 5000)
    assert not worth_another_load(CHUNK_TOKENS_MIN, 2.0), "it cannot be smaller"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 90)), min_size=1, max_size=8), st.integers(9, 64))
def test_a_step_takes_every_decoding_row_along_and_never_more_prompt_than_its_chunk(rows, chunk):
    made = [Row(slot, [0] * max(prompt, done + 1), prompt, done) for slot, (prompt, done) in enumerate(rows)]
    step = plan_step(made, chunk)
    parts = {part.row.slot: part for part in step.parts}
    assert step.tokens <= chunk
    assert all(row.slot in parts for row in made if not row.prefilling)
    assert all(part.start == part.row.done for part in step.parts)
    waiting = [row for row in made if row.prefilling]
    if waiting:
        assert waiting[0].slot in parts, "the oldest prompt goes on"
        assert step.tokens == chunk or all(parts[row.slot].end == row.prompt_tokens for row in waiting)


def test_the_last_token_of_a_prompt_is_always_computed():
    assert common_prefix([1, 2, 3], [1, 2, 3]) == 2
    assert common_prefix([1, 2, 3, 4], [1, 2, 9]) == 2
    assert common_prefix([], [1]) == 0


def test_adapters_of_a_model_are_found_by_its_name_or_root():
    entries = ("us/small=/l/a.gguf", "bafy=/l/b:1.gguf:0.5", "other=/l/c.gguf:2")
    option = lora.option_for(entries, "bafy", "us/small")
    assert [(str(path), scale) for path, scale in lora.files_of(option)] == [("/l/a.gguf", 1.0), ("/l/b:1.gguf", 0.5)]
    assert lora.option_for(entries, "none") == ""
    assert lora.files_of("") == lora.files_of(None) == ()


@pytest.mark.parametrize("entry", ["x", "=/a", "m=", "m=a.gguf", "m=/a:nan", "m=/a\tb"])
def test_a_bad_entry_of_lora_is_told(entry):
    with pytest.raises(ConfigError, match=r"engines\.lora"):
        lora.option_for((entry,), "m")


@pytest.mark.parametrize("forgets", [False, True])
def test_a_step_that_was_stopped_leaves_a_row_with_what_its_slot_still_holds(forgets):
    """Recurrent models can give back no part of a sequence, so all of it goes."""
    library = SimpleNamespace(llama_decode=lambda *_: 2, llama_memory_seq_rm=lambda _, slot, first, last: not forgets)
    model = object.__new__(LlamaModel)
    model._library, model._memory, model.context = library, None, None
    columns = ("token", "pos", "n_seq_id", "logits")
    model._batch = SimpleNamespace(**{name: [0] * 8 for name in columns}, seq_id=[[0] for _ in range(8)])
    row = Row(0, [1, 2, 3, 4, 5], 5, done=2)
    assert model.run(Step((Part(row, 2, 5),))) is None
    assert row.done == (0 if forgets else 2)
