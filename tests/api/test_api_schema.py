"""The pure schema: any body gives a request or a typed error, and every shape survives JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.api import schema
from octonode.api.schema import (
    AddModel,
    Answer,
    AnswerFacts,
    ChatRequest,
    Chunks,
    EventLog,
    FetchModel,
    Job,
    ModelFacts,
    ModelOutcome,
    NodeFacts,
    ReceiptFacts,
    error_body,
    error_from_body,
    error_headers,
    parse,
    parse_chat,
    read,
    sse_event,
    to_json,
)
from octonode.api.schema.chat import IGNORED, NEUTRAL, READ
from octonode.errors import TABLE, OctonodeError, Unreachable
from octonode.tasks.asking import Candidate

GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["user", "text", "x"])
)
names = st.sampled_from(
    [*sorted(READ | IGNORED | set(NEUTRAL)), "role", "content", "type", "text", "include_usage", "peer", "explain"]
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)
bodies = st.one_of(values, st.dictionaries(names, values), st.dictionaries(names, values).map(lambda d: {**GOOD, **d}))


def tried(act: Callable[..., Any], *arguments: Any) -> tuple[Any, OctonodeError | None]:
    try:
        return act(*arguments), None
    except OctonodeError as error:
        return None, error


@settings(max_examples=800, deadline=None)
@given(body=bodies, header=st.none() | st.text(max_size=12))
def test_any_body_is_a_request_or_a_typed_error(body: Any, header: str | None) -> None:
    request, error = tried(parse_chat, body, header)
    if error is not None:
        assert error.row.http_status in (400, 422)
        assert json.dumps(error_body(error))
    else:
        assert isinstance(request, ChatRequest)
        assert request.messages
        assert all(set(each) == {"role", "content"} for each in request.messages)
        assert request.privacy == "public"


@settings(max_examples=200, deadline=None)
@given(body=values)
def test_any_native_body_is_a_request_or_a_typed_error(body: Any) -> None:
    for kind in (AddModel, FetchModel, schema.ServeModel, schema.TrustPublisher, schema.Join, schema.Explain):
        request, error = tried(parse, kind, body)
        assert isinstance(request, kind) if error is None else error.code == "BAD_REQUEST"


@settings(max_examples=200, deadline=None)
@given(value=values)
def test_any_answer_is_facts_or_a_typed_error(value: Any) -> None:
    for kind in (NodeFacts, ModelOutcome, AnswerFacts, ReceiptFacts):
        facts, error = tried(read, kind, value)
        assert isinstance(facts, kind) if error is None else error.code == "INTERNAL"
    assert isinstance(error_from_body(value, 500), OctonodeError)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(min_size=1), max_size=5), usage=st.booleans())
def test_chunks_are_read_back_as_they_were_written(texts: list[str], usage: bool) -> None:
    chunks = Chunks("id", 'a"model\\', 1, include_usage=usage)
    facts = AnswerFacts("peer", True, "root", "00" * 16, True, receipt=b"\0\xff")
    stream = chunks.role() + b"".join(map(chunks.text, texts)) + chunks.finish("length", facts)
    stream += (chunks.usage(3, 4) if usage else b"") + schema.DONE
    answer = Answer()
    said = [answer.take(line) for line in stream.decode().splitlines()]  # splits where the least careful readers do
    answer.end()
    assert [each for each in said if each is not None] == texts
    assert (answer.text, answer.finish_reason, answer.facts) == ("".join(texts), "length", facts)
    assert (answer.tokens_in, answer.tokens_out) == ((3, 4) if usage else (0, 0))


def test_every_fact_survives_json() -> None:
    for name in schema.__all__:
        kind = getattr(schema, name)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)) or name in ("Call", "ChatRequest"):
            continue
        given_fields = {
            each.name: SAMPLES.get((name, each.name), SAMPLES.get(each.type, "x"))
            for each in dataclasses.fields(kind)
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        }
        value = kind(**given_fields)
        assert read(kind, json.loads(json.dumps(to_json(value)))) == value, name


MODEL = ModelFacts("a/b", "root", servers=("p", "q"))
SAMPLES: dict[Any, Any] = {
    "bool": True,
    "int": 3,
    "bytes": b"\0\xff",
    ("ModelOutcome", "model"): MODEL,
    ("TaskFacts", "role"): "asker",
    ("Finding", "status"): "warning",
}


def test_nested_facts_and_candidates_survive_json() -> None:
    node = NodeFacts("p", "1", degraded=(schema.Degraded("network", "nobody"),), tasks=schema.TaskCounts(1, 2, 3, 4))
    assert read(NodeFacts, json.loads(json.dumps(to_json(node)))) == node
    outcome = ModelOutcome(MODEL, {"gateway": 5}, 0.5)
    assert read(ModelOutcome, json.loads(json.dumps(to_json(outcome)))) == outcome
    candidate = Candidate("p", local=False, accepted=True, reason="r", tokens_per_second=1.5)  # type: ignore[arg-type]
    assert dataclasses.asdict(read(schema.CandidateFacts, to_json(candidate))) == dataclasses.asdict(candidate)


def test_a_newer_daemon_may_say_more() -> None:
    assert read(NodeFacts, {"peer_id": "p", "version": "9", "invented_later": {}}).version == "9"


def test_every_error_survives_its_body() -> None:
    for code in TABLE:
        error = OctonodeError("m", code=code, retry_after_seconds=2.5, detail={"param": "p", "progress": {"done": 1}})
        back = error_from_body(json.loads(json.dumps(error_body(error))), error.row.http_status)
        assert (back.code, back.message, back.retry_after_seconds, back.detail) == (code, "m", 2.5, error.detail)
        assert back.row.exit_code == error.row.exit_code


def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    for seconds, header in ((None, "1"), (0.1, "1"), (1.0, "1"), (1.1, "2"), (90, "90")):
        error = OctonodeError("m", code="OVERLOADED", retry_after_seconds=seconds)
        assert error_headers(error) == {"retry-after": header}


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_is_not_served_is_refused_unless_it_asks_for_nothing(name: str) -> None:
    assert parse_chat({**GOOD, name: None}) == parse_chat(GOOD)
    with pytest.raises(OctonodeError) as refused:
        parse_chat({**GOOD, name: {"asks": "for something"}})
    assert (refused.value.code, refused.value.detail["param"]) == ("UNSUPPORTED", name)


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_hints_are_ignored(name: str) -> None:
    assert parse_chat({**GOOD, name: "anything"}) == parse_chat(GOOD)


def test_messages_as_sdks_dump_them_are_taken() -> None:
    dumped = {"role": "assistant", "content": "hi", "refusal": None, "annotations": [], "tool_calls": None, "name": "n"}
    assert parse_chat({**GOOD, "messages": [dumped]}).messages == ({"role": "assistant", "content": "hi"},)
    for role, code in (("function", "UNSUPPORTED"), ("tool", "BAD_REQUEST"), ("robot", "BAD_REQUEST")):
        with pytest.raises(OctonodeError) as refused:
            parse_chat({**GOOD, "messages": [{"role": role, "content": "x"}]})
        assert refused.value.code == code
    image = [{"type": "image_url", "image_url": {"url": "data:..."}}]
    with pytest.raises(OctonodeError, match="image_url") as unsupported:
        parse_chat({**GOOD, "messages": [{"role": "user", "content": image}]})
    assert unsupported.value.detail["param"] == "messages[0].content[0]"


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"top_p": 1},
        {"seed": -(2**63)},
        {"max_tokens": 1},
        {"stop": "x"},
        {"stop": None},
        {"stream_options": {"include_usage": True}},
        {"octonode": {"mode": "batch"}},
        {"logprobs": True, "top_logprobs": 20},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"tools": [], "tool_choice": "auto"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    ],
)
def test_edges_inside(change: dict[str, Any]) -> None:
    assert parse_chat({**GOOD, **change}).model == "m"


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": 10**400},
        {"temperature": True},
        {"top_p": 0},
        {"top_p": 1.01},
        {"seed": 2**63},
        {"seed": 1.5},
        {"max_tokens": 0},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"stop": ""},
        {"stop": ["a", 1]},
        {"stream": "yes"},
        {"stream_options": {"include_usage": 1}},
        {"octonode": {"pier": "x"}},
        {"octonode": {"peer": 5}},
        {"octonode": {"mode": "async"}},
        {"octonode": {"mode": "later"}},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"tool_choice": "required"},
        {"tool_choice": "maybe"},
        {"tools": {"type": "function"}},
        {"tools": [{"type": "function", "function": {"name": "has space"}}]},
        {"model": " "},
        {"model": "m" * 513},
        {"messages": [{"role": "user", "content": "x"}] * 2049},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
    ],
)
def test_edges_outside(change: dict[str, Any]) -> None:
    with pytest.raises(OctonodeError) as refused:
        parse_chat({**GOOD, **change})
    assert refused.value.code == "BAD_REQUEST"
    assert refused.value.detail["param"]


def test_a_stream_that_breaks_off_is_a_loss() -> None:
    for reading in (Answer(), Job()):
        with pytest.raises(Unreachable):
            reading.end()
    EventLog().end()
    with pytest.raises(OctonodeError) as said:
        Answer().take(sse_event(error_body(OctonodeError("gone", code="PROVIDER_LOST"))).decode().strip())
    assert said.value.code == "PROVIDER_LOST"
