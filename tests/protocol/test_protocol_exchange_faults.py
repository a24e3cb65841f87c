"""What a peer may get wrong on a stream, one fault at a time: the code, and that the machine stops there."""

from __future__ import annotations

import contextlib
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.protocol.exchange import Exchange
from octonode.protocol.framing import encode_frame, encode_uvarint
from octonode.protocol.messages import ErrorReport, StatusUpdate, TaskRequest, TaskResponse
from octonode.protocol.states import State

CORRELATION = {"corr": b"\x00" * 15 + b"\x01"}
"""The id of the request that the asker of `link` sends: the first of its ids."""
COMPLETED = {"state": "completed"}


def faulty(exchange: Exchange, data: bytes, now_ms: int) -> str:
    """The code of the fault in `data`; the same fault is raised ever after, and nothing more is taken."""
    with pytest.raises(RemoteProtocolError) as caught:
        exchange.receive(data, now_ms)
    assert exchange.fault is caught.value
    for again in (b"", data):
        with pytest.raises(RemoteProtocolError) as repeated:
            exchange.receive(again, now_ms)
        assert repeated.value is caught.value
    return caught.value.code


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("BAD_SIGNATURE", {"sign": False}),
        ("CLOCK_SKEW", {"ts": 1_700_000_000_000}),
        ("EXPIRED", {"exp": 1_799_999_999_999}),
        ("MISADDRESSED", {"to": "12D3KooWnobody"}),
        ("MISADDRESSED", {"from": "12D3KooWnobody"}),
        ("BAD_SEQUENCE", {"seq": 1}),
        ("BAD_MESSAGE", {"task": bytes(16)}),
        ("UNSUPPORTED", {"t": "GOSSIP"}),
        ("EXTENSION_REQUIRED", {"crit": ["urn:x"], "ext": {"urn:x": 0}}),
        ("HOP_LIMIT", {"hop": 9, "maxhop": 9}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_bad_first_request(link: Any, code: str, changes: dict[str, Any]) -> None:
    assert faulty(link.provider, link.as_asker.frame("TASK_REQUEST", **changes), link.now_ms) == code
    assert link.window.messages(link.asker_key.peer_id) == 0


def test_a_stream_begins_with_a_request(link: Any) -> None:
    for type_name, body in (("TASK_REQUEST", {"op": "cancel"}), ("STATUS_UPDATE", {}), ("TASK_RESPONSE", COMPLETED)):
        provider = link.new_provider()
        assert faulty(provider, link.as_asker.frame(type_name, body), link.now_ms) == "BAD_MESSAGE"


def test_a_replayed_id_with_other_bytes(link: Any) -> None:
    link.provider.receive(link.as_asker.frame("TASK_REQUEST", {"model": "a"}), link.now_ms)
    second = link.new_provider()
    assert faulty(second, link.as_asker.frame("TASK_REQUEST", {"model": "b"}), link.now_ms) == "REPLAY"


def test_a_second_request_on_a_stream(link: Any) -> None:
    link.ask(TaskRequest())
    assert faulty(link.provider, link.as_asker.frame("TASK_REQUEST", seq=1), link.now_ms) == "BAD_MESSAGE"


@pytest.mark.parametrize("sequence", [0, 2, 99])
def test_a_gap_or_a_repetition_in_the_sequence(link: Any, sequence: int) -> None:
    link.ask(TaskRequest())
    link.say(link.provider, StatusUpdate())
    frame = link.as_provider.frame("STATUS_UPDATE", seq=sequence, sign=False)
    assert faulty(link.asker, frame, link.now_ms) == "BAD_SEQUENCE"


def test_a_frame_that_comes_twice(link: Any) -> None:
    link.ask(TaskRequest())
    frame = link.provider.send(StatusUpdate(pieces=("a",)), link.now_ms)
    link.asker.receive(frame, link.now_ms)
    assert faulty(link.asker, frame, link.now_ms) == "BAD_SEQUENCE"


def test_a_frame_of_a_foreign_task(link: Any) -> None:
    link.ask(TaskRequest(), conversation=b"c" * 16)
    for changes in ({"task": b"another task....", "conv": b"c" * 16}, {"conv": b"d" * 16}, {}):
        asker = link.new_asker()
        asker.send(TaskRequest(), link.now_ms, task=link.asker.task, conversation=b"c" * 16)
        frame = link.as_provider.frame("STATUS_UPDATE", sign=False, **changes)
        assert faulty(asker, frame, link.now_ms) == "TASK_NOT_FOUND"
    foreign = link.as_asker.frame("TASK_REQUEST", {"op": "cancel"}, seq=1, task=b"another task....", conv=b"c" * 16)
    assert faulty(link.provider, foreign, link.now_ms) == "TASK_NOT_FOUND"


@pytest.mark.parametrize("corr", [None, b"another message."])
def test_a_terminal_frame_that_answers_another_request(link: Any, corr: bytes | None) -> None:
    link.ask(TaskRequest())
    frame = link.as_provider.frame("TASK_RESPONSE", COMPLETED, corr=corr)
    assert faulty(link.asker, frame, link.now_ms) == "TASK_NOT_FOUND"


def test_an_error_without_a_task_counts_only_without_a_correlation(link: Any) -> None:
    link.ask(TaskRequest())
    frame = link.as_provider.frame("ERROR", {"code": "INTERNAL"}, task=bytes(16), **CORRELATION)
    assert faulty(link.asker, frame, link.now_ms) == "TASK_NOT_FOUND"


def test_an_unsigned_terminal_frame(link: Any) -> None:
    link.ask(TaskRequest())
    frame = link.as_provider.frame("TASK_RESPONSE", COMPLETED, sign=False, **CORRELATION)
    assert faulty(link.asker, frame, link.now_ms) == "BAD_SIGNATURE"
    assert link.asker.terminal is None


@pytest.mark.parametrize("kind", ["second terminal", "update"])
@pytest.mark.parametrize("together", [False, True], ids=["later", "in the same bytes"])
def test_nothing_comes_after_the_terminal_frame(link: Any, kind: str, together: bool) -> None:
    link.ask(TaskRequest())
    ending = link.provider.send(TaskResponse(), link.now_ms)
    if kind == "update":
        more = link.as_provider.frame("STATUS_UPDATE", seq=1, sign=False)
    else:
        more = link.as_provider.frame("TASK_RESPONSE", COMPLETED, seq=1, **CORRELATION)
    first, second = (ending + more, b"") if together else (ending, more)
    assert [event.message for event in link.asker.receive(first, link.now_ms)] == [TaskResponse()]
    assert faulty(link.asker, second, link.now_ms) == "BAD_MESSAGE"
    assert link.asker.terminal == TaskResponse()
    assert link.asker.state is State.CLOSED


def test_canceled_without_a_cancel(link: Any) -> None:
    link.ask(TaskRequest())
    frame = link.as_provider.frame("TASK_RESPONSE", {"state": "canceled"}, **CORRELATION)
    assert faulty(link.asker, frame, link.now_ms) == "BAD_MESSAGE"


@pytest.mark.parametrize("first", [0, 1, 3])
def test_pieces_lost_or_doubled(link: Any, first: int) -> None:
    link.ask(TaskRequest())
    link.say(link.provider, StatusUpdate(pieces=("a", "b")))
    frame = link.as_provider.frame("STATUS_UPDATE", {"first": first, "pieces": ["c"]}, seq=1, sign=False)
    assert faulty(link.asker, frame, link.now_ms) == "BAD_SEQUENCE"


def test_an_answer_of_another_length_than_it_says(link: Any) -> None:
    link.ask(TaskRequest())
    frame = link.as_provider.frame("TASK_RESPONSE", {**COMPLETED, "pieces": 3}, **CORRELATION)
    assert faulty(link.asker, frame, link.now_ms) == "BAD_SEQUENCE"
    assert link.asker.terminal is None


def chunk(data: bytes, **fields: Any) -> dict[str, Any]:
    return {"artifact": {"name": sha256(b"\x80").hexdigest(), "offset": 0, "data": data, "last": True, **fields}}


@pytest.mark.parametrize(
    "body",
    [{}, {"pieces": ["a"]}, chunk(b"\x80", name="other"), chunk(b"\x81\xa1a\x01"), chunk(b"\x80", offset=1)],
    ids=["nothing", "pieces", "another name", "another hash", "another offset"],
)
def test_an_input_that_is_not_the_one_the_request_names(link: Any, body: dict[str, Any]) -> None:
    link.provider.receive(link.as_asker.frame("TASK_REQUEST", {"artifact": sha256(b"\x80").hexdigest()}), link.now_ms)
    frame = link.as_asker.frame("STATUS_UPDATE", body, seq=1, sign=False)
    assert faulty(link.provider, frame, link.now_ms) == "BAD_MESSAGE"
    assert link.provider.input is None


def test_an_input_nobody_named(link: Any) -> None:
    link.ask(TaskRequest())
    frame = link.as_asker.frame("STATUS_UPDATE", chunk(b"\x80"), seq=1, sign=False)
    assert faulty(link.provider, frame, link.now_ms) == "BAD_MESSAGE"


@pytest.mark.parametrize("raw", [b"\x90", b"\xc1", b"\x81\x01\x02"], ids=["array", "junk", "number key"])
def test_an_input_that_is_no_map(link: Any, raw: bytes) -> None:
    name = sha256(raw).hexdigest()
    link.provider.receive(link.as_asker.frame("TASK_REQUEST", {"artifact": name}), link.now_ms)
    frame = link.as_asker.frame("STATUS_UPDATE", chunk(raw, name=name), seq=1, sign=False)
    assert faulty(link.provider, frame, link.now_ms) == "BAD_MESSAGE"


def test_the_end_before_the_terminal_frame_is_a_loss(link: Any) -> None:
    link.ask(TaskRequest())
    for exchange, code in ((link.asker, "PROVIDER_LOST"), (link.provider, "CANCELED")):
        with pytest.raises(RemoteProtocolError) as caught:
            exchange.receive_end(link.now_ms)
        assert caught.value.code == code
        assert exchange.state is State.BROKEN
    with pytest.raises(LocalProtocolError):
        link.asker.send(TaskRequest(operation="cancel"), link.now_ms)


def test_the_end_in_the_middle_of_a_frame_is_a_loss(link: Any) -> None:
    link.ask(TaskRequest())
    frame = link.provider.send(TaskResponse(), link.now_ms)
    link.asker.receive(frame[:-1], link.now_ms)
    with pytest.raises(RemoteProtocolError, match=f"after {len(frame) - 1} bytes"):
        link.asker.receive_end(link.now_ms)
    provider = link.new_provider()
    provider.receive(b"\x05ab", link.now_ms)
    with pytest.raises(RemoteProtocolError):
        provider.receive_end(link.now_ms)


def test_a_stream_on_which_nothing_was_asked_may_end(link: Any) -> None:
    link.provider.receive_end(link.now_ms)
    assert link.provider.fault is None


def test_a_request_after_the_terminal_frame_has_not_crossed_anything(link: Any) -> None:
    link.ask(TaskRequest())
    link.say(link.provider, TaskResponse())
    assert faulty(link.provider, link.as_asker.frame("TASK_REQUEST", seq=1), link.now_ms) == "BAD_MESSAGE"


def test_junk_behind_a_message_is_known_at_once_and_raised_next(link: Any) -> None:
    link.ask(TaskRequest())
    frame = link.provider.send(StatusUpdate(), link.now_ms)
    assert [event.message for event in link.asker.receive(frame + b"\x81\x00", link.now_ms)] == [StatusUpdate()]
    assert link.asker.fault is not None
    assert link.asker.state is State.BROKEN
    assert faulty(link.asker, b"", link.now_ms) == "BAD_MESSAGE"


def test_oversize_and_junk(link: Any) -> None:
    assert faulty(link.provider, encode_uvarint((1 << 20) + 1), link.now_ms) == "TOO_LARGE"
    assert faulty(link.new_provider(), b"GET / HTTP/1.1\r\n\r\n" * 10, link.now_ms) == "BAD_MESSAGE"
    assert faulty(link.new_provider(), encode_frame(b""), link.now_ms) == "BAD_MESSAGE"


def test_after_a_fault_a_provider_says_one_error_and_no_more(link: Any) -> None:
    link.ask(TaskRequest())
    with pytest.raises(RemoteProtocolError):
        link.provider.receive(b"\xff" * 9, link.now_ms)
    with pytest.raises(LocalProtocolError):
        link.provider.send(StatusUpdate(), link.now_ms)
    link.asker.receive(link.provider.send(ErrorReport("TOO_LARGE"), link.now_ms), link.now_ms)
    assert link.asker.closed
    with pytest.raises(LocalProtocolError):
        link.provider.send(ErrorReport("TOO_LARGE"), link.now_ms)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_change_and_any_split_give_the_same_events_and_fault(new_link: Any, data: st.DataObject) -> None:
    """A provider's whole answer with some bytes changed, taken at once and in pieces: same events, same code."""
    link = new_link()
    link.ask(TaskRequest())
    messages = [StatusUpdate(pieces=("a",)), StatusUpdate(), StatusUpdate(first_piece=1, pieces=("b",))]
    stream = bytearray(b"".join(link.provider.send(message, link.now_ms) for message in messages))
    stream += link.provider.send(TaskResponse(pieces_total=2), link.now_ms)
    for _ in range(data.draw(st.integers(0, 2))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))

    def taken(edges: list[int]) -> tuple[list[Any], str, State]:
        asker, events = link.new_asker(), []
        asker.send(TaskRequest(), link.now_ms, task=link.asker.task)
        with contextlib.suppress(RemoteProtocolError):
            for start, end in zip([0, *edges], [*edges, len(stream)], strict=True):
                events += asker.receive(bytes(stream[start:end]), link.now_ms)
        return events, asker.fault.code if asker.fault else "", asker.state

    assert taken([]) == taken(cuts)


@given(st.binary(max_size=200), st.sampled_from(["asker", "provider"]))
@settings(max_examples=150, deadline=None)
def test_any_bytes_raise_only_remote_protocol_errors(new_link: Any, stream: bytes, role: str) -> None:
    link = new_link()
    link.ask(TaskRequest())
    exchange = getattr(link, role)
    with contextlib.suppress(RemoteProtocolError):
        exchange.receive(stream, link.now_ms)
        exchange.receive_end(link.now_ms)
