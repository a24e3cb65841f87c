"""The codec of bitswap messages: golden bytes, an independent encoder beside it, and any bytes whatever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.bitswap.pb import bitswap_pb2

from octonode.errors import RemoteProtocolError
from octonode.ipfs.bitswap_messages import (
    CID_BYTES_MAX,
    ENTRIES_MAX,
    MESSAGE_BYTES_MAX,
    PARTS_MAX,
    Block,
    Message,
    MessageReader,
    Presence,
    WantEntry,
    decode,
    frame,
    read_cid,
)
from octonode.ipfs.cid import raw_cid
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX, varint

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "protocols" / "vectors" / "bitswap.json").read_text(encoding="utf-8")
)


def message_of(row: dict[str, Any]) -> Message:
    return Message(
        tuple(WantEntry(**{**each, "cid": bytes.fromhex(each["cid"])}) for each in row["entries"]),
        row["full"],
        tuple(Block(bytes.fromhex(each["prefix"]), bytes.fromhex(each["data"])) for each in row["blocks"]),
        tuple(Presence(bytes.fromhex(each["cid"]), each["have"]) for each in row["presences"]),
        row["pending_bytes"],
        row["passed_over"],
    )


def read_all(wire: bytes, *cuts: int) -> list[Message]:
    """What a reader makes of `wire` in the pieces that `cuts` make of it."""
    reader, messages = MessageReader(), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(wire)], strict=True):
        messages += [decode(body) for body in reader.feed(wire[start:end])]
    return messages


def by_protobuf(message: Message) -> bytes:
    """The same message by protobuf's own encoder."""
    made = bitswap_pb2.Message()
    for entry in message.entries:
        made.wantlist.entries.add(
            block=entry.cid, priority=entry.priority, cancel=entry.cancel, wantType=int(entry.wants_have),
            sendDontHave=entry.send_dont_have,
        )  # fmt: skip
    if message.full:
        made.wantlist.full = True
    for block in message.blocks:
        made.payload.add(prefix=block.prefix, data=bytes(block.data))
    for presence in message.presences:
        made.blockPresences.add(cid=presence.cid, type=int(not presence.have))
    made.pendingBytes = message.pending_bytes
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("row", VECTORS["said"], ids=lambda row: row["what"])
def test_what_is_said(row: dict[str, Any]) -> None:
    message, wire = message_of(row["message"]), bytes.fromhex(row["hex"])
    assert b"".join(frame(message)) == wire
    assert read_all(wire) == [message]
    body = by_protobuf(message)
    assert varint(len(body)) + body == wire


@pytest.mark.parametrize("row", VECTORS["read"], ids=lambda row: row["what"])
def test_what_others_may_say(row: dict[str, Any]) -> None:
    assert read_all(bytes.fromhex(row["hex"])) == [message_of(each) for each in row["messages"]]


@pytest.mark.parametrize("row", VECTORS["refused"], ids=lambda row: row["why"])
def test_what_is_refused(row: dict[str, Any]) -> None:
    wire = bytes.fromhex(row.get("hex") or row["starts"])
    wire += wire[-2:] * ((row.get("bytes", len(wire)) - len(wire)) // 2)
    with pytest.raises(RemoteProtocolError) as caught:
        read_all(wire + b"\x28\0" * (row.get("bytes", len(wire)) - len(wire)))
    assert caught.value.code == row["code"]


cids = st.binary(min_size=1, max_size=CID_BYTES_MAX)
messages = st.builds(
    Message,
    st.lists(
        st.builds(WantEntry, cids, st.integers(1, 2**31 - 1), st.booleans(), st.booleans(), st.booleans()), max_size=4
    ).map(tuple),
    st.booleans(),
    st.lists(st.builds(Block, st.binary(min_size=1, max_size=8), st.binary(min_size=1, max_size=300)), max_size=4).map(
        tuple
    ),
    st.lists(st.builds(Presence, cids, st.booleans()), max_size=4).map(tuple),
    st.integers(0, 2**31 - 1),
)


@given(st.lists(messages, max_size=3), st.data())
def test_messages_survive_any_split_of_their_bytes(said: list[Message], data: st.DataObject) -> None:
    wire = b"".join(piece for message in said for piece in frame(message))
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=8))
    assert [each for each in said if each != Message()] == read_all(wire, *cuts)


@given(messages)
def test_our_bytes_are_those_of_protobuf(message: Message) -> None:
    body = by_protobuf(message)
    assert b"".join(frame(message)) == varint(len(body)) + body


def outcome(wire: bytes, *cuts: int) -> list[Message] | str:
    try:
        return read_all(wire, *cuts)
    except RemoteProtocolError as error:
        return error.code


@st.composite
def nearly_messages(draw: st.DrawFn) -> bytes:
    """Bytes of messages, some of them changed, and the end cut off."""
    wire = bytearray(b"".join(piece for message in draw(st.lists(messages, max_size=2)) for piece in frame(message)))
    for _ in range(draw(st.integers(0, 4))):
        if wire:
            wire[draw(st.integers(0, len(wire) - 1))] = draw(st.integers(0, 255))
    return bytes(wire[: draw(st.integers(0, len(wire)))])


@given(st.binary(max_size=400) | nearly_messages(), st.lists(st.integers(0, 400), max_size=8))
def test_any_bytes_give_messages_or_a_typed_error_however_they_are_split(wire: bytes, cuts: list[int]) -> None:
    assert outcome(wire, *(min(cut, len(wire)) for cut in cuts)) == outcome(wire)


@given(st.binary(max_size=400) | nearly_messages().map(lambda wire: wire[1:]))
def test_any_body_gives_a_message_or_a_typed_error(body: bytes) -> None:
    """And a message that is given is one that protobuf reads too, in the parts that both know."""
    try:
        message = decode(body)
    except RemoteProtocolError:
        return
    theirs = bitswap_pb2.Message.FromString(body)
    if not message.passed_over:
        assert [bytes(block.data) for block in message.blocks] == [block.data for block in theirs.payload]
        assert [each.cid for each in message.entries] == [each.block for each in theirs.wantlist.entries]
    assert message.pending_bytes == theirs.pendingBytes


def test_bounds_of_what_is_read() -> None:
    entry = b"\x0a\x03\x0a\x01a"
    many = b"\x0a" + varint(len(entry) * (ENTRIES_MAX + 9)) + entry * (ENTRIES_MAX + 9)
    message = decode(many)
    assert (len(message.entries), message.passed_over) == (ENTRIES_MAX, 1)
    decode(b"\x28\x00" * PARTS_MAX)
    with pytest.raises(RemoteProtocolError, match="parts"):
        decode(b"\x28\x00" * (PARTS_MAX + 1))
    for size, taken in ((CID_BYTES_MAX, 1), (CID_BYTES_MAX + 1, 0)):
        cid = b"\x0a" + varint(size) + bytes(size)
        entry = b"\x0a" + varint(len(cid)) + cid
        message = decode(b"\x0a" + varint(len(entry)) + entry + b"\x22" + varint(len(cid)) + cid)
        assert (len(message.entries), len(message.presences), message.passed_over) == (taken, taken, 2 - 2 * taken)
    for size, taken in ((BLOCK_BYTES_MAX, 1), (BLOCK_BYTES_MAX + 1, 0)):
        block = b"\x12" + varint(size) + bytes(size)
        message = decode(b"\x1a" + varint(len(block)) + block)
        assert (len(message.blocks), message.passed_over) == (taken, 1 - taken)
    with pytest.raises(RemoteProtocolError, match="bytes"):
        decode(bytes(MESSAGE_BYTES_MAX + 1))


def test_messages_longer_than_are_kept_are_read_past() -> None:
    reader = MessageReader(keep_bytes_max=100)
    long, short = Message(blocks=(Block(b"p", bytes(200)),)), Message(pending_bytes=1)
    wire = b"".join([*frame(long), *frame(short), *frame(long)])
    assert [decode(body) for start in range(0, len(wire), 7) for body in reader.feed(wire[start : start + 7])] == [
        short
    ]
    assert reader.read_past == 2
    assert not reader.in_message


def test_a_message_that_is_whole_within_what_came_is_not_copied() -> None:
    wire = b"".join(frame(Message(blocks=(Block(b"p", b"x" * 1000),))))
    (body,) = MessageReader().feed(wire)
    assert body.obj is wire
    assert decode(body).blocks[0].data.obj is wire  # type: ignore[union-attr]


def test_cids_that_are_not_read_are_none() -> None:
    assert read_cid(raw_cid(b"x").raw) == raw_cid(b"x")
    for raw in (b"", b"\x01\x55\x00\x05hello", b"\x01\x55\x1e\x20" + bytes(32), b"\xff" * 300):
        assert read_cid(raw) is None
