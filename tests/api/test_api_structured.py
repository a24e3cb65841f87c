"""Answers that must be JSON: which schemas are taken, what is checked, and how it goes out."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from octonode.api.schema.structured import (
    ANSWER_CHARACTERS_MAX,
    SCHEMA_BYTES_MAX,
    NotValid,
    parse_answer,
    take_schema,
)
from octonode.errors import OctonodeError
from octonode.testing.faces import PlayedAsking, Stage, answered, says

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class City(BaseModel):
    city: str


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def doubling(levels: int) -> dict[str, Any]:
    """Two alternatives that are the next level, each: 2 to the power of `levels` visits for one value."""
    definitions: dict[str, Any] = {
        f"a{level}": {"anyOf": [{"$ref": f"#/$defs/a{level + 1}"}] * 2} for level in range(levels)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{levels}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("text", "must be a JSON Schema"),
        ({"type": "strng"}, "at type"),
        ({"properties": {"a": {"type": 5}}}, "at properties/a/type"),
        ({"properties": {"a": {"$ref": "https://example.com/a.json"}}}, "/properties/a/$ref"),
        ({"$ref": "#/$defs/missing"}, "leads nowhere"),
        ({"$ref": "#"}, "alternatives within alternatives"),
        ({"$id": "https://example.com/", "type": "object"}, "$id is not served"),
        ({"pattern": "(a+"}, "at pattern"),
        ({"pattern": "(?=a)b"}, "at pattern"),
        ({"pattern": "((a{1000}){1000}){1000}"}, "at pattern"),
        ({"pattern": "a" * 513}, "over 512 characters"),
        (doubling(40), "alternatives within alternatives"),
        ({"properties": {"properties": {"$ref": "#/nowhere"}}}, "/properties/properties/$ref"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_schema_at_fault_names_the_place(schema: Any, told: str) -> None:
    with pytest.raises(OctonodeError) as refused:
        take_schema(schema, "response_format.json_schema.schema")
    assert refused.value.code == "BAD_REQUEST"
    assert refused.value.detail["param"] == "response_format.json_schema.schema"
    assert told in refused.value.message


def test_a_schema_that_is_too_large_or_too_deep_is_refused() -> None:
    with pytest.raises(OctonodeError) as large:
        take_schema({"enum": ["x" * SCHEMA_BYTES_MAX]}, "s")
    assert large.value.code == "TOO_LARGE"
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"items": deep}
    with pytest.raises(OctonodeError, match="nests deeper than 64 levels"):
        take_schema(deep, "s")


def test_a_regex_that_explodes_elsewhere_takes_no_time_here() -> None:
    """Backtracking would need 2 to the power of 100,000 steps; the test would never end."""
    schema = take_schema({"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}}, "s")
    assert "does not match" in schema.why_not({"a": "a" * 100_000 + "!"})
    assert schema.why_not({"a": "a" * 100_000}) == ""


def test_alternatives_that_multiply_with_the_answer_are_not_tried() -> None:
    """A recursive schema whose branches all fit: 3 to the power of the answer's depth visits."""
    schema = take_schema({"anyOf": [{"type": "array", "items": {"$ref": "#"}}] * 3 + [{"type": "integer"}]}, "s")
    answer: Any = 1
    for _ in range(5):
        answer = [answer]
    assert schema.why_not(answer) == ""
    for _ in range(40):
        answer = [answer]
    assert "too long to check" in schema.why_not(answer)


def test_a_recursive_schema_of_a_tree_is_taken_and_checked() -> None:
    leaf = {"type": "object", "properties": {"op": {"const": "number"}, "value": {"type": "number"}}}
    branch = {
        "type": "object",
        "properties": {"op": {"const": "sum"}, "left": {"$ref": "#/$defs/e"}, "right": {"$ref": "#/$defs/e"}},
        "required": ["op", "left", "right"],
    }
    schema = take_schema({"$ref": "#/$defs/e", "$defs": {"e": {"anyOf": [leaf, branch]}}}, "s")
    tree: Any = {"op": "number", "value": 1}
    for _ in range(6):
        tree = {"op": "sum", "left": tree, "right": tree}
    assert schema.why_not(tree) == ""
    tree["left"]["left"] = 5
    assert schema.why_not(tree)


leaves = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["a", "b", "object", "string", "#", "#/$defs/x"])
)
keys = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "anyOf",
        "allOf",
        "not",
        "$ref",
        "$defs",
        "x",
        "pattern",
        "enum",
        "const",
        "required",
    ]
)
values: st.SearchStrategy[Any] = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=15
)


@settings(max_examples=300, deadline=None)
@given(schema=values, value=values)
def test_any_schema_is_taken_or_refused_by_name_and_any_answer_is_judged(schema: Any, value: Any) -> None:
    taken, param = None, ""
    try:
        taken = take_schema(schema, "s")
    except OctonodeError as error:
        param = error.detail["param"]
    assert param == "s" if taken is None else isinstance(taken.why_not(value), str)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"city": NaN}', "not JSON"),
        ('{"city": 5}', 'the value is not of type "string" (at city)'),
        ("[]", 'the value is not of type "object"'),
        ("", "not JSON"),
        ('"' + "x" * ANSWER_CHARACTERS_MAX + '"', "too many"),
    ],
    ids=lambda value: value[:20],
)
def test_an_answer_that_is_not_what_was_asked_is_named(text: str, told: str) -> None:
    with pytest.raises(NotValid) as refused:
        parse_answer(text, take_schema(CITY, "s"))
    assert refused.value.code == "ENGINE_FAILED"
    assert told in refused.value.message
    with pytest.raises(NotValid):
        parse_answer("[1]", None)


def ask_openai(stage: Stage, **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="tiny", messages=HELLO, **fields)
        return list(answer) if fields.get("stream") else answer


async def test_the_openai_client_gets_what_its_schema_says_and_the_engine_is_told() -> None:
    async with Stage(asking=PlayedAsking(says('{"ci', 'ty": "Oslo"}'))).run() as stage:

        def parse() -> Any:
            with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
                return client.chat.completions.parse(model="tiny", messages=HELLO, response_format=City)

        answer = await trio.to_thread.run_sync(parse)
        assert answer.choices[0].message.parsed == City(city="Oslo")
        assert json.loads(stage.asking.asked[0].schema)["required"] == ["city"]
        chunks = await trio.to_thread.run_sync(lambda: ask_openai(stage, response_format=form(CITY), stream=True))
        await trio.to_thread.run_sync(lambda: ask_openai(stage, response_format={"type": "json_object"}))
    assert [each.choices[0].delta.content for each in chunks] == ["", '{"city": "Oslo"}', None]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["octonode"]["verified"] is True
    assert stage.asking.asked[-1].schema == "{}"
    assert stage.asking.asked[-1].messages == ({"role": "user", "content": "Hello"},)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_its_schema_is_an_error_with_a_status_of_its_own(stream: bool) -> None:
    async with Stage(asking=PlayedAsking(says('{"city": ', "5}"))).run() as stage:
        with pytest.raises(openai.InternalServerError) as failed:
            await trio.to_thread.run_sync(lambda: ask_openai(stage, response_format=form(CITY), stream=stream))
    assert (failed.value.status_code, failed.value.code) == (502, "ENGINE_FAILED")
    assert "city" in failed.value.message


async def test_an_answer_that_was_cut_is_given_and_says_so() -> None:
    async def script(ask: Any) -> Any:
        async for event in says('{"city": "Os')(ask):
            yield answered(1, finish_reason="length") if hasattr(event, "finish_reason") else event

    async with Stage(asking=PlayedAsking(script)).run() as stage:
        answer = await trio.to_thread.run_sync(lambda: ask_openai(stage, response_format=form(CITY)))
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("length", '{"city": "Os')


async def test_an_answer_without_end_is_given_up_and_cancelled() -> None:
    async def script(ask: Any) -> Any:
        while True:
            async for event in says(*["x" * 65536] * 9)(ask):
                if not hasattr(event, "finish_reason"):
                    yield event

    async with Stage(asking=PlayedAsking(script)).run() as stage:
        with pytest.raises(openai.InternalServerError, match="too many to be checked"):
            await trio.to_thread.run_sync(lambda: ask_openai(stage, response_format={"type": "json_object"}))
        assert stage.asking.open == 0


async def test_a_malformed_schema_asks_nobody() -> None:
    async with Stage().run() as stage:
        body = {"model": "tiny", "messages": HELLO, "response_format": form({"type": "strng"})}
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{stage.url}/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "BAD_REQUEST")
    assert error["param"] == "response_format.json_schema.schema"
    assert stage.asking.asked == []
