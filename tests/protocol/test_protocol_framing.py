from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.protocol.framing import FrameDecoder, encode_frame, encode_uvarint


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def run(pieces: list[bytes], limit: int) -> tuple[list[bytes], str]:
    """What a decoder gives for pieces: payloads in order, and the code of the fault that ended it."""
    decoder, payloads = FrameDecoder(limit), []
    try:
        for piece in [*pieces, b""]:
            payloads += decoder.feed(piece)
    except RemoteProtocolError as fault:
        return payloads, fault.code
    return payloads, ""


@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_frames_survive_any_split(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(payload) for payload in payloads)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert run(cut(stream, cuts), 1000) == (payloads, "")


@given(st.binary(max_size=120), st.data())
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_the_same_payloads_and_fault_for_any_split(stream: bytes, data: st.DataObject) -> None:
    whole = run([stream], 60)
    assert run([stream[at : at + 1] for at in range(len(stream))], 60) == whole
    assert run(cut(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=5))), 60) == whole


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 20])
def test_edges_of_the_length(size: int) -> None:
    frame = encode_frame(bytes(size))
    assert frame == encode_uvarint(size) + bytes(size)
    assert FrameDecoder().feed(frame) == [bytes(size)]


def test_a_frame_over_the_bound_is_refused_before_it_is_buffered() -> None:
    decoder = FrameDecoder(1000)
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.feed(encode_uvarint(1001))
    assert caught.value.code == "TOO_LARGE"
    assert decoder.pending_bytes == 0


def test_a_frame_over_the_bound_is_not_made() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode_frame(bytes(1001), 1000)
    assert caught.value.code == "TOO_LARGE"


def test_frames_before_a_fault_are_given_and_then_the_fault() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(encode_frame(b"one") + b"\x81\x00") == [b"one"]
    assert decoder.fault is not None
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="shortest"):
            decoder.feed(b"")


def test_pending_bytes_tell_a_truncated_frame() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(b"\x80") == []
    assert decoder.pending_bytes == 1
    assert decoder.feed(b"\x01" + bytes(100)) == []
    assert decoder.pending_bytes == 102
    assert decoder.feed(bytes(28)) == [bytes(128)]
    assert decoder.pending_bytes == 0


def test_a_decoder_takes_any_kind_of_bytes_and_gives_bytes() -> None:
    frame = encode_frame(b"payload")
    payloads = FrameDecoder().feed(bytearray(frame)) + FrameDecoder().feed(memoryview(frame))  # type: ignore[arg-type]
    assert payloads == [b"payload"] * 2
    assert all(type(payload) is bytes for payload in payloads)
