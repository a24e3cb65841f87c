"""Functions that a model may or must call: told in words, forced by a schema, and said only when the answer is one."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import openai
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.api.schema import parse_chat
from octonode.api.schema.tools import Call, call_schema, find_call, may_become_call, parse_tools
from octonode.client import Client
from octonode.errors import OctonodeError
from octonode.testing.faces import TOKEN, PlayedAsking, Stage, says

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
GOOD: dict[str, Any] = {"model": "m", "messages": HELLO, "tools": [WEATHER, CLOCK]}
CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'


def test_functions_are_told_at_the_end_of_the_system_message_or_in_one_of_their_own() -> None:
    alone = parse_chat(GOOD).messages
    assert [each["role"] for each in alone] == ["system", "user"]
    assert '"name": "weather"' in alone[0]["content"]
    assert '"additionalProperties": false' in alone[0]["content"]
    assert "answer in plain words" in alone[0]["content"]
    both = parse_chat({**GOOD, "messages": [{"role": "system", "content": "Be brief."}, *HELLO]}).messages
    assert [each["role"] for each in both] == ["system", "user"]
    assert both[0]["content"] == f"Be brief.\n\n{alone[0]['content']}"
    assert parse_chat({**GOOD, "tool_choice": "none"}).messages == ({"role": "user", "content": "Hello"},)
    named = parse_chat({**GOOD, "tool_choice": {"type": "function", "function": {"name": "clock"}}}).messages
    assert "weather" not in named[0]["content"]
    assert "Call one now." in named[0]["content"]


def test_calls_and_results_of_before_are_told_as_plain_turns() -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "noon"}]},
    ]
    told = parse_chat({**GOOD, "tool_choice": "none", "messages": messages}).messages
    assert [each["role"] for each in told] == ["user", "assistant", "user"]
    assert told[1]["content"].splitlines() == [CALL, '{"name": "clock", "arguments": {}}']
    assert told[2]["content"] == "Result of weather: rain\nResult of clock: noon"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{**WEATHER, "type": "custom"}]}, "tools[0]"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [CLOCK] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "colour": 1}}]}, "tools[0].function"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "strng"}}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [*HELLO, {"role": "tool", "tool_call_id": "c9", "content": "x"}]}, "messages[1].tool_call_id"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}]},
            "messages[0].tool_calls[0]",
        ),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0]"),
    ],
)
def test_what_is_at_fault_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(OctonodeError) as refused:
        parse_chat({**GOOD, **change})
    assert refused.value.code in ("BAD_REQUEST", "UNSUPPORTED")
    assert refused.value.detail["param"] == param


def test_the_schema_of_a_forced_call_takes_calls_and_nothing_else() -> None:
    recursive = {"type": "object", "properties": {"next": {"$ref": "#"}, "city": {"$ref": "#/$defs/city"}}}
    recursive["$defs"] = {"city": {"type": "string"}}
    tools = parse_tools(
        {"tools": [WEATHER, {"type": "function", "function": {"name": "walk", "parameters": recursive}}]}
    )
    assert tools is not None
    judge = jsonschema_rs.validator_for(call_schema(tools))
    assert judge.is_valid(json.loads(CALL))
    assert judge.is_valid({"name": "walk", "arguments": {"next": {"next": {}, "city": "Oslo"}}})
    for other in (
        {"name": "weather", "arguments": {}},
        {"name": "walk", "arguments": {"next": {"city": 5}}},
        {"name": "clock", "arguments": {}},
        {"name": "weather", "arguments": {"city": "Oslo"}, "more": 1},
        "words",
    ):
        assert not judge.is_valid(other), other


@pytest.mark.parametrize("said", [CALL, f"  {CALL}\n", f"```json\n{CALL}\n```", f"<tool_call>\n{CALL}</tool_call>"])
def test_a_call_is_found_in_what_models_wrap_it_in(said: str) -> None:
    tools = parse_tools(GOOD)
    assert tools is not None
    assert find_call(said, tools) == Call("weather", '{"city":"Oslo"}')


@settings(max_examples=200, deadline=None)
@given(said=st.text(max_size=60) | st.text(alphabet='{}":,nameruts[] weather`', max_size=60))
def test_any_text_is_a_call_or_words(said: str) -> None:
    tools = parse_tools(GOOD)
    assert tools is not None
    call = find_call(said, tools)
    assert call is None or (may_become_call(said) and json.loads(call.arguments) is not None)


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, len(CALL)))
def test_no_beginning_of_a_call_is_let_go(cut: int) -> None:
    assert may_become_call(CALL[:cut])
    assert may_become_call(f"\n```json\n{CALL}"[:cut])


def ask_openai(stage: Stage, **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            **{"model": "tiny", "messages": HELLO, "tools": [WEATHER, CLOCK], **fields}
        )
        return list(answer) if fields.get("stream") else answer


async def test_the_openai_client_is_called_back_and_asked_on() -> None:
    async with Stage(
        asking=PlayedAsking(says('{"name": "wea', 'ther", "arguments": {"city": "Oslo"}}'))
    ).run() as stage:
        answer = await trio.to_thread.run_sync(lambda: ask_openai(stage, tool_choice="required"))
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        (call,) = answer.choices[0].message.tool_calls
        assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
            "function",
            "weather",
            {"city": "Oslo"},
        )
        assert answer.model_extra["octonode"]["verified"] is True
        forced = json.loads(stage.asking.asked[0].schema)
        assert [each["properties"]["name"] for each in forced["anyOf"]] == [{"const": "weather"}, {"const": "clock"}]
        again = [*HELLO, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
        stage.asking.script = says("It ", "rains.")
        last = await trio.to_thread.run_sync(lambda: ask_openai(stage, messages=again))
    assert (last.choices[0].finish_reason, last.choices[0].message.content) == ("stop", "It rains.")
    assert stage.asking.asked[1].schema == ""
    assert stage.asking.asked[1].messages[-1] == {"role": "user", "content": "Result of weather: rain"}


async def test_the_openai_client_streams_a_call() -> None:
    async with Stage(asking=PlayedAsking(says('{"name": "clock"', ', "arguments": {}}'))).run() as stage:
        chunks = await trio.to_thread.run_sync(lambda: ask_openai(stage, stream=True))
        with Client(stage.url, TOKEN) as client:
            stream = client.chat("tiny", HELLO, tools=[CLOCK])

            def read() -> list[str]:
                with stream:
                    return list(stream)

            assert await trio.to_thread.run_sync(read) == []
    deltas = [each.choices[0].delta for each in chunks]
    (call,) = deltas[0].tool_calls
    assert (deltas[0].role, deltas[0].content, call.index) == ("assistant", None, 0)
    assert (call.id[:5], call.type, call.function.name, call.function.arguments) == ("call_", "function", "clock", "{}")
    assert [each.choices[0].finish_reason for each in chunks] == [None, "tool_calls"]
    assert (stream.result.finish_reason, stream.result.calls) == ("tool_calls", [("clock", "{}")])


async def test_words_stream_at_once_though_functions_could_be_called() -> None:
    more = trio.Event()

    async def script(ask: Any) -> Any:
        async for event in says("It ", "rains.")(ask):
            yield event
            if getattr(event, "text", "") == "It ":
                await more.wait()

    async with Stage(asking=PlayedAsking(script)).run() as stage:
        client = openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0)
        async with (
            client,
            await client.chat.completions.create(
                model="tiny",
                messages=HELLO,
                tools=[WEATHER],
                stream=True,  # type: ignore[list-item]
            ) as answer,
        ):
            texts = []
            async for chunk in answer:
                texts.append(chunk.choices[0].delta.content or "")
                more.set()  # the second piece exists only once the first is here
    assert "".join(texts) == "It rains."


@pytest.mark.parametrize(
    "said",
    ['{"name": "weather", "arguments": {"town": 5}}', '{"name": "other", "arguments": {}}', '{"a": 1}', "{ or words"],
)
async def test_what_is_no_valid_call_is_text_where_it_may_be_and_an_error_where_it_must_not(said: str) -> None:
    async with Stage(asking=PlayedAsking(says(said))).run() as stage:
        answer = await trio.to_thread.run_sync(ask_openai, stage)
        assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("stop", said)
        assert answer.choices[0].message.tool_calls is None
        chunks = await trio.to_thread.run_sync(lambda: ask_openai(stage, stream=True))
        assert "".join(each.choices[0].delta.content or "" for each in chunks) == said
        with pytest.raises(openai.InternalServerError) as failed:
            await trio.to_thread.run_sync(lambda: ask_openai(stage, tool_choice="required"))
    assert failed.value.code == "ENGINE_FAILED"
