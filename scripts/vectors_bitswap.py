"""Golden vectors of bitswap messages; `scripts/vectors.py` writes them."""

from __future__ import annotations

from typing import Any

from octonode.errors import OctonodeError
from octonode.ids import BITSWAP_PROTOCOL
from octonode.ipfs.bitswap_messages import (
    MESSAGE_BYTES_MAX,
    Block,
    Message,
    MessageReader,
    Presence,
    WantEntry,
    decode,
    frame,
    prefix_of,
)
from octonode.ipfs.cid import Cid, dag_pb_cid, raw_cid
from octonode.ipfs.dagpb import varint

RAW = raw_cid(b"hello world")
NODE = dag_pb_cid(bytes.fromhex("0a020801"))
OLD = Cid(NODE.codec, NODE.digest, version=0)
IDENTITY = bytes.fromhex("01550005") + b"hello"

SAID = {
    "a block is wanted": Message((WantEntry(RAW.raw, send_dont_have=True),)),
    "a full list: a block, a presence, a CIDv0, an identity CID": Message(
        (
            WantEntry(RAW.raw),
            WantEntry(NODE.raw, wants_have=True, send_dont_have=True),
            WantEntry(OLD.raw),
            WantEntry(IDENTITY, send_dont_have=True),
        ),
        full=True,
    ),
    "a cancel": Message((WantEntry(RAW.raw, cancel=True),)),
    "nothing is wanted any more": Message(full=True),
    "two blocks": Message(
        blocks=(Block(prefix_of(RAW), b"hello world"), Block(prefix_of(OLD), bytes.fromhex("0a020801")))
    ),
    "one is here and one is not": Message(presences=(Presence(RAW.raw, True), Presence(IDENTITY, False))),
    "all at once": Message(
        (WantEntry(RAW.raw),), True, (Block(prefix_of(RAW), b"x"),), (Presence(NODE.raw, True),), 123_456
    ),
}

_ENTRY = bytes((0x0A, 36)) + RAW.raw


def _framed(body: bytes) -> bytes:
    return varint(len(body)) + body


READ_AS = {
    "unknown fields of every wire type are passed over": (
        _framed(
            bytes.fromhex("78ffffffffffffffffff01")
            + b"\x79"
            + bytes(8)
            + b"\x7d"
            + bytes(4)
            + b"\x7a\x03abc"
            + b"\x12\x05block"  # the blocks of bitswap 1.0
            + b"\x0a"
            + varint(len(_ENTRY) + 2)
            + b"\x0a"
            + varint(len(_ENTRY))
            + _ENTRY
        ),
        Message((WantEntry(RAW.raw),)),
    ),
    "a negative priority takes ten bytes": (
        _framed(b"\x0a\x33\x0a\x31" + _ENTRY + bytes.fromhex("10ffffffffffffffffff01")),
        Message((WantEntry(RAW.raw, priority=-1),)),
    ),
    "an entry without a CID is passed over": (_framed(b"\x0a\x04\x0a\x02\x10\x01"), Message(passed_over=1)),
    "two messages, an empty one between them": (
        _framed(b"\x28\x07") + b"\0" + _framed(b"\x28\x08"),
        (Message(pending_bytes=7), Message(pending_bytes=8)),
    ),
}

REFUSED = {
    "longer than any message may be": varint(MESSAGE_BYTES_MAX + 1),
    "a length of five bytes": b"\xff\xff\xff\xff\x01",
    "a length that is longer than it need be": b"\x80\x00",
    "a field that ends behind the message": _framed(b"\x0a\x05\x0a"),
    "a number without an end": _framed(b"\x28\xff"),
    "a number of eleven bytes": _framed(b"\x28" + b"\xff" * 10 + b"\x01"),
    "a group": _framed(b"\x0b\x0c"),
    "more parts than are read": _framed(b"\x28\x00" * 8193),
}


def bitswap() -> dict[str, Any]:
    """What is said, what else is read and how, and what is refused."""
    return {
        "page": "protocols/bitswap.md",
        "protocol": BITSWAP_PROTOCOL,
        "said": [
            {"what": what, "message": plain(said), "hex": b"".join(frame(said)).hex()} for what, said in SAID.items()
        ],
        "read": [
            {
                "what": what,
                "messages": [plain(each) for each in (read if isinstance(read, tuple) else (read,))],
                "hex": wire.hex(),
            }
            for what, (wire, read) in READ_AS.items()
        ],
        "refused": [
            {"why": why, "code": _code(wire), "starts": wire[:16].hex(), "bytes": len(wire)}
            if len(wire) > 1000
            else {"why": why, "code": _code(wire), "hex": wire.hex()}
            for why, wire in REFUSED.items()
        ],
    }


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON has it; bytes in hex."""
    return {
        "entries": [{**entry._asdict(), "cid": entry.cid.hex()} for entry in message.entries],
        "full": message.full,
        "blocks": [{"prefix": each.prefix.hex(), "data": bytes(each.data).hex()} for each in message.blocks],
        "presences": [{"cid": each.cid.hex(), "have": each.have} for each in message.presences],
        "pending_bytes": message.pending_bytes,
        "passed_over": message.passed_over,
    }


def _code(wire: bytes) -> str:
    try:
        for body in MessageReader().feed(wire):
            decode(body)
    except OctonodeError as error:
        return error.code
    raise AssertionError("a message that should be refused is taken")
