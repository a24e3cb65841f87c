"""Hello and join lines against the golden vectors of their pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import OctonodeError, RemoteProtocolError
from octonode.ids import PeerId
from octonode.network import access, hello_messages
from octonode.network.hello_messages import decode_answer, decode_request, encode_answer, encode_request
from octonode.network.joinline import JoinLine, encode, parse_line
from octonode.protocol import codec
from octonode.protocol.announcement import open_announcement
from octonode.protocol.framing import FrameDecoder, encode_frame
from scripts.vectors_hello import plain

VECTORS = Path(__file__).parents[3] / "protocols" / "vectors"
HELLO = json.loads((VECTORS / "hello.json").read_text(encoding="utf-8"))
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
    for decode in (decode_request, decode_answer):
        try:
            decode(data)
        except RemoteProtocolError:
            continue


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
