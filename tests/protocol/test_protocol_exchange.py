"""Two ends of a stream, every message pushed through both: what a task may look like when nobody breaks a rule."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from octonode.errors import LocalProtocolError, Refused, RemoteProtocolError
from octonode.protocol import states
from octonode.protocol.artifacts import Artifact, split
from octonode.protocol.codec import pack
from octonode.protocol.exchange import report
from octonode.protocol.framing import FrameDecoder, encode_frame
from octonode.protocol.limits import Limits
from octonode.protocol.messages import ErrorReport, Negotiate, StatusUpdate, TaskRequest, TaskResponse
from octonode.protocol.states import State

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
CANCEL = TaskRequest(operation="cancel")


@pytest.mark.parametrize("chunk_bytes", [0, 1, 7, 200])
def test_a_task_from_request_to_answer(new_link: Any, task: bytes, chunk_bytes: int) -> None:
    link = new_link(chunk_bytes=chunk_bytes)
    request = TaskRequest(model="bafy", input=CHAT, parameters={"max_tokens": 3})
    (asked,) = link.ask(request, conversation=b"c" * 16, budget_micro_octo=9)
    assert asked.message == request == link.provider.request
    assert (asked.header.task, asked.header.conversation, asked.header.budget_micro_octo) == (task, b"c" * 16, 9)
    assert link.provider.input == CHAT
    assert link.provider.request_header == link.asker.request_header == asked.header_bytes
    assert link.provider.request_sha256 == sha256(asked.header_bytes).digest()
    assert link.asker.request_payload == link.provider.request_payload == asked.payload

    link.say(link.provider, StatusUpdate(stage="prefill", done=1, total=2))
    (delta,) = link.say(link.provider, StatusUpdate(pieces=("Hel", "lo")))
    assert (delta.signature, delta.message) == (b"", StatusUpdate(pieces=("Hel", "lo")))
    link.say(link.provider, StatusUpdate(first_piece=2, pieces=("!",)))
    response = TaskResponse(tokens_in=5, tokens_out=3, pieces_total=3)
    (ended,) = link.say(link.provider, response)
    assert (ended.message, ended.header.correlation) == (response, asked.header.id)
    assert link.asker.terminal == link.provider.terminal == response
    assert link.asker.closed
    assert link.provider.closed
    link.asker.receive_end(link.now_ms)
    link.provider.receive_end(link.now_ms)


def test_an_error_is_a_terminal(link: Any) -> None:
    link.ask(TaskRequest(model="bafy"))
    refusal = report(Refused("the queue is full; try again in 2 s", retry_after_seconds=2.0))
    link.say(link.provider, refusal)
    assert link.asker.terminal == ErrorReport("OVERLOADED", "the queue is full; try again in 2 s", 2000)


def test_an_endless_error_text_is_cut_and_still_arrives(link: Any) -> None:
    link.ask(TaskRequest())
    link.say(link.provider, ErrorReport("ENGINE_CRASHED", "é" * 10_000))
    assert link.asker.terminal is not None
    assert link.asker.terminal.message == "é" * 2048


def test_cancel_is_answered_by_canceled_with_what_was_done(link: Any) -> None:
    link.ask(TaskRequest())
    link.say(link.provider, StatusUpdate(pieces=("a",)))
    (event,) = link.say(link.asker, CANCEL)
    assert event.message == CANCEL
    assert link.provider.state is State.CANCELING
    link.say(link.asker, CANCEL)
    link.say(link.provider, StatusUpdate(first_piece=1, pieces=("b",)))
    link.say(link.provider, TaskResponse("canceled", "cancel", 1, 2, pieces_total=2))
    assert link.asker.closed


def test_a_cancel_may_cross_the_terminal_frame(link: Any) -> None:
    link.ask(TaskRequest())
    ending = link.provider.send(TaskResponse(), link.now_ms)
    cancel = link.asker.send(CANCEL, link.now_ms)
    assert [event.message for event in link.asker.receive(ending, link.now_ms)] == [TaskResponse()]
    assert link.provider.receive(cancel, link.now_ms) == []
    assert link.provider.fault is None
    with pytest.raises(LocalProtocolError):
        link.asker.send(CANCEL, link.now_ms)


def test_a_large_input_travels_as_an_artifact_and_joins(new_link: Any) -> None:
    link = new_link(chunk_bytes=60_000)
    large = {"messages": [{"role": "user", "content": "x" * 700_000}]}
    events = link.ask(TaskRequest(model="bafy", input=large))
    assert events[0].message.input == {}
    assert events[0].message.input_artifact == sha256(pack(large)).hexdigest()
    assert [event.artifact is not None for event in events] == [False, False, False, True]
    assert link.provider.input == link.asker.input == large
    link.say(link.provider, TaskResponse())
    assert link.asker.closed


def test_a_request_may_be_refused_while_its_input_is_still_coming(link: Any) -> None:
    data = link.asker.send(TaskRequest(input={"x": "y" * 600_000}), link.now_ms)
    first, *rest = FrameDecoder().feed(data)
    link.provider.receive(encode_frame(first), link.now_ms)
    assert link.provider.input is None
    ending = link.provider.send(ErrorReport("OVERLOADED", "full"), link.now_ms)
    assert link.provider.receive(b"".join(encode_frame(chunk) for chunk in rest), link.now_ms) == []
    link.asker.receive(ending, link.now_ms)
    assert link.asker.closed


def test_an_output_may_travel_as_an_artifact(link: Any) -> None:
    link.ask(TaskRequest())
    image = bytes(range(256)) * 2000
    events = [link.say(link.provider, StatusUpdate(artifact=chunk))[0] for chunk in split("image", image)]
    assert [event.artifact for event in events] == [None, Artifact("image", image)]


def test_an_input_over_the_bound_is_our_own_fault_and_changes_nothing(new_link: Any) -> None:
    link = new_link(limits=Limits(artifact_bytes_max=100_000, input_inline_bytes_max=1000))
    with pytest.raises(LocalProtocolError) as caught:
        link.asker.send(TaskRequest(input={"x": "y" * 200_000}), link.now_ms)
    assert caught.value.code == "TOO_LARGE"
    assert link.asker.state is State.IDLE
    assert link.ask(TaskRequest())


@pytest.mark.parametrize("strange", [float("nan"), {"a": {1: 2}}, [[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]])
def test_a_large_input_that_would_be_refused_is_our_own_fault(link: Any, strange: Any) -> None:
    with pytest.raises(LocalProtocolError):
        link.asker.send(TaskRequest(input={"x": "y" * 600_000, "z": strange}), link.now_ms)
    assert link.asker.state is State.IDLE


def test_heartbeat_silence_and_drain_run_by_the_clock_given(link: Any) -> None:
    start = link.now_ms
    assert link.provider.next_heartbeat_ms(start) is None
    link.ask(TaskRequest())
    assert link.asker.next_heartbeat_ms(start) is None
    assert [link.provider.next_heartbeat_ms(start + ms) for ms in (0, 400, 1000, 5000)] == [1000, 600, 0, 0]
    assert [link.asker.silent(start + ms) for ms in (0, 2999, 3000)] == [False, False, True]
    link.now_ms = start + 2000
    link.say(link.provider, StatusUpdate())
    assert link.provider.next_heartbeat_ms(start + 2000) == 1000
    assert [link.asker.silent(start + ms) for ms in (4999, 5000)] == [False, True]
    assert link.asker.drain_left_ms(start) is None
    link.say(link.asker, CANCEL)
    assert [link.asker.drain_left_ms(start + ms) for ms in (2000, 3500, 4000, 9000)] == [2000, 500, 0, 0]
    link.now_ms = start + 2500
    link.say(link.asker, CANCEL)
    assert link.provider.drain_left_ms(start + 2500) == 1500
    link.say(link.provider, TaskResponse("canceled"))
    assert link.provider.next_heartbeat_ms(start + 9000) is None
    assert not link.asker.silent(start + 99_000)


def test_half_a_frame_does_not_break_the_silence(link: Any) -> None:
    link.ask(TaskRequest())
    frame = link.provider.send(StatusUpdate(pieces=("a",)), link.now_ms)
    link.asker.receive(frame[:-1], link.now_ms + 2900)
    assert link.asker.silent(link.now_ms + 3000)


def test_the_same_request_again_attaches_and_starts_a_fresh_stream(link: Any) -> None:
    (first,) = link.ask(TaskRequest(model="bafy"))
    assert not first.again
    asker, provider = link.new_asker(), link.new_provider()
    (second,) = provider.receive(asker.send_again(link.asker.request_payload, link.now_ms), link.now_ms)
    assert second.again
    assert second.message == first.message
    assert provider.request_sha256 == link.provider.request_sha256
    asker.receive(provider.send(StatusUpdate(pieces=("a",)), link.now_ms), link.now_ms)
    asker.receive(provider.send(TaskResponse(pieces_total=1), link.now_ms), link.now_ms)
    assert asker.closed


def test_only_our_own_request_to_this_peer_is_sent_again(link: Any) -> None:
    link.ask(TaskRequest(model="bafy"))
    for payload in (
        b"",
        link.as_provider.payload("TASK_REQUEST"),
        link.as_asker.payload("TASK_REQUEST", {"op": "cancel"}),
    ):
        with pytest.raises(LocalProtocolError):
            link.new_asker().send_again(payload, link.now_ms)
    with pytest.raises(LocalProtocolError):
        link.asker.send_again(link.asker.request_payload, link.now_ms)


def test_a_negotiation_goes_both_ways(link: Any) -> None:
    link.ask(Negotiate("offer", {"price_out": 5}))
    link.say(link.provider, Negotiate("counter", {"price_out": 7}))
    link.say(link.asker, Negotiate("accept"))
    link.say(link.provider, ErrorReport("UNSUPPORTED", "not yet"))
    assert link.asker.state is link.provider.state is State.CLOSED


def test_the_gate_refuses_before_the_signature_is_looked_at(link: Any) -> None:
    def gate(header: Any, message: Any) -> None:
        raise Refused("100 requests a second are taken", code="RATE_LIMITED", retry_after_seconds=0.5)

    link.provider.gate = gate
    unsigned = link.as_asker.frame("TASK_REQUEST", sign=False)
    with pytest.raises(Refused) as caught:
        link.provider.receive(unsigned, link.now_ms)
    link.asker.send(TaskRequest(), link.now_ms, task=link.provider.task)
    frame = link.provider.send(report(caught.value), link.now_ms)
    assert FrameDecoder().feed(frame)
    assert link.provider.closed
    assert link.window.messages(link.asker_key.peer_id) == 0


def test_a_refused_request_is_answered_by_an_error_that_names_it(link: Any) -> None:
    data = link.asker.send(TaskRequest(), link.now_ms, critical=("urn:x",), extensions={"urn:x": 1})
    with pytest.raises(RemoteProtocolError) as caught:
        link.provider.receive(data, link.now_ms)
    (event,) = link.asker.receive(link.provider.send(report(caught.value), link.now_ms), link.now_ms)
    assert event.message.code == "EXTENSION_REQUIRED"
    assert event.header.task == link.asker.task != bytes(16)
    assert len(event.header.correlation) == 16


def test_an_unreadable_request_is_answered_by_an_error_without_a_task(link: Any) -> None:
    link.asker.send(TaskRequest(), link.now_ms)
    with pytest.raises(RemoteProtocolError) as caught:
        link.provider.receive(encode_frame(b"not an envelope"), link.now_ms)
    link.asker.receive(link.provider.send(report(caught.value), link.now_ms), link.now_ms)
    assert link.asker.terminal is not None
    assert link.asker.terminal.code == "BAD_MESSAGE"


def test_local_faults_are_caught_before_a_byte_leaves(link: Any) -> None:
    now = link.now_ms

    def ours(exchange: Any, message: Any, **options: Any) -> None:
        before = (exchange.state, dict(exchange._sequence), exchange.pieces)
        with pytest.raises(LocalProtocolError):
            exchange.send(message, now, **options)
        assert (exchange.state, exchange._sequence, exchange.pieces) == before

    for message in (CANCEL, StatusUpdate(), TaskResponse(), ErrorReport()):
        ours(link.asker, message)
    for message in (TaskRequest(), StatusUpdate(), TaskResponse(), ErrorReport(), Negotiate()):
        ours(link.provider, message)
    link.ask(TaskRequest())
    for message in (TaskRequest(), StatusUpdate(), StatusUpdate(pieces=("a",)), TaskResponse(), ErrorReport()):
        ours(link.asker, message)
    ours(link.asker, CANCEL, hop=1)
    ours(link.provider, StatusUpdate(first_piece=1, pieces=("a",)))
    ours(link.provider, TaskResponse(pieces_total=1))
    ours(link.provider, TaskResponse("canceled"))
    ours(link.provider, TaskResponse(result={"x": "y" * (1 << 20)}))
    link.say(link.provider, TaskResponse())
    for message in (StatusUpdate(), TaskResponse(), ErrorReport()):
        ours(link.provider, message)


def test_every_row_of_the_table_leads_to_a_state_of_the_table() -> None:
    reached = {State.IDLE, State.BROKEN} | set(states.TABLE.values())
    assert {state for state, _, _ in states.TABLE} | {State.CLOSED} == reached
    assert not any(state is State.CLOSED for state, _, _ in states.TABLE)
    terminal = {kind for (_, _, kind), following in states.TABLE.items() if following is State.CLOSED}
    assert terminal == {"completed", "canceled", "error"}
