"""Hello, fan-out and join lines against the golden vectors of their pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import LocalProtocolError, OctonodeError, RemoteProtocolError
from octonode.ids import PeerId
from octonode.network import access, hello_messages
from octonode.network.fanout_messages import FRAME_BYTES_MAX, Said, decode_said, encode_said
from octonode.network.hello_messages import decode_answer, decode_request, encode_answer, encode_request
from octonode.network.joinline import JoinLine, encode, parse_line
from octonode.protocol import codec
from octonode.protocol.announcement import open_announcement
from octonode.protocol.framing import FrameDecoder, encode_frame
from scripts.vectors_hello import plain

VECTORS = Path(__file__).parents[3] / "protocols" / "vectors"
HELLO = json.loads((VECTORS / "hello.json").read_text(encoding="utf-8"))
FANOUT = json.loads((VECTORS / "fanout.json").read_text(encoding="utf-8"))
JOIN = json.loads((VECTORS / "join.json").read_text(encoding="utf-8"))


def payload_of(frame: str) -> bytes:
    [payload] = FrameDecoder(512 * 1024).feed(bytes.fromhex(frame))
    return payload


@pytest.mark.parametrize("vector", HELLO["requests"], ids=lambda v: v["kind"])
def test_requests(vector: dict[str, Any]) -> None:
    request = decode_request(payload_of(vector["frame"]))
    assert type(request) is getattr(hello_messages, vector["kind"])
    assert plain(request) == vector["value"]
    assert encode_frame(encode_request(request)).hex() == vector["frame"]


@pytest.mark.parametrize("vector", HELLO["answers"], ids=lambda v: v["kind"])
def test_answers(vector: dict[str, Any]) -> None:
    answer = decode_answer(payload_of(vector["frame"]))
    assert plain(answer) == vector["value"]
    assert encode_frame(encode_answer(answer)).hex() == vector["frame"]


def test_the_error() -> None:
    with pytest.raises(OctonodeError) as caught:
        decode_answer(payload_of(HELLO["error"]["frame"]))
    assert caught.value.code == HELLO["error"]["code"]
    assert HELLO["error"]["message"] in caught.value.message
    assert caught.value.retry_after_seconds == HELLO["error"]["retry_after_ms"] / 1000


@pytest.mark.parametrize("vector", HELLO["refused_requests"], ids=lambda v: v["payload"] or "empty")
def test_refused_requests(vector: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_request(bytes.fromhex(vector["payload"]))
    assert caught.value.code == vector["code"]


def test_announcements_in_the_vectors_are_real() -> None:
    data = bytes.fromhex(HELLO["requests"][0]["value"]["announcement"])
    assert open_announcement(data, 1_800_000_000_000).sequence == 1_800_000_000_000


@pytest.mark.parametrize("vector", FANOUT["messages"], ids=lambda v: v["value"]["topic"] or "empty")
def test_fanout_messages(vector: dict[str, Any]) -> None:
    said = decode_said(payload_of(vector["frame"]))
    assert plain(said) == vector["value"]
    assert encode_frame(encode_said(said)).hex() == vector["frame"]


def test_what_later_versions_add_to_a_fanout_message_is_ignored() -> None:
    assert plain(decode_said(payload_of(FANOUT["later_version"]["frame"]))) == FANOUT["later_version"]["value"]


@pytest.mark.parametrize("vector", FANOUT["refused"], ids=lambda v: v["why"])
def test_refused_fanout_messages(vector: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_said(bytes.fromhex(vector["payload"]))
    assert caught.value.code == vector["code"]


@pytest.mark.parametrize("vector", FANOUT["refused_streams"], ids=lambda v: v["why"])
def test_refused_fanout_streams(vector: dict[str, str]) -> None:
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    [payload] = decoder.feed(bytes.fromhex(vector["bytes"]))
    assert plain(decode_said(payload)) == FANOUT["messages"][0]["value"]
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.feed(b"")
    assert caught.value.code == vector["code"]


@pytest.mark.parametrize("said", [Said("t" * 65, b""), Said("é" * 33, b""), Said("t", bytes(4097))])
def test_what_peers_would_refuse_is_not_said_over_fanout(said: Said) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode_said(said)
    assert caught.value.code == "TOO_LARGE"


@pytest.mark.parametrize("vector", JOIN["lines"], ids=["with token", "without"])
def test_join_lines(vector: dict[str, Any]) -> None:
    line = JoinLine(vector["value"]["peer_id"], tuple(vector["value"]["addresses"]), vector["value"]["token"])
    assert encode(line) == vector["line"]
    assert parse_line(vector["line"]) == line


def test_proofs() -> None:
    for vector in JOIN["proofs"]:
        asker, provider = PeerId(vector["asker"]), PeerId(vector["provider"])
        assert access.proof(vector["token"], asker, provider) == vector["proof"]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
asks = st.sampled_from(["announce", "providers", "peers", "manifest", "ping", "dialback"])
kinds = st.sampled_from(["announced", "announcements", "manifest", "pong", "dialled", "error"])
names = st.sampled_from(["announcement", "root", "count", "publisher", "name", "cid", "nonce", "addresses", "code",
                         "message", "retry_after_ms", "results", "observed", "announcements", "manifest"])  # fmt: skip


@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_our_errors(data: bytes) -> None:
    for decode in (decode_request, decode_answer, decode_said):
        try:
            decode(data)
        except RemoteProtocolError:
            continue


@given(st.lists(st.text(max_size=80) | st.binary(max_size=80) | values, max_size=9) | values)
def test_any_value_is_a_fanout_message_or_refused(value: Any) -> None:
    try:
        data = codec.pack(value)
    except OctonodeError:
        return
    try:
        said = decode_said(data)
    except RemoteProtocolError:
        return
    assert [said.topic, said.data] == value[:2]
    assert decode_said(encode_said(said)) == said


@given(asks, kinds, st.dictionaries(names, values, max_size=6))
def test_well_formed_nonsense_raises_nothing_but_our_errors(ask: str, kind: str, rest: dict[str, Any]) -> None:
    try:
        data = codec.pack({**rest, "ask": ask, "answer": kind})
    except OctonodeError:
        return
    for decode in (decode_request, decode_answer):
        try:
            decode(data)
        except OctonodeError:  # the peer's own error among them
            continue
