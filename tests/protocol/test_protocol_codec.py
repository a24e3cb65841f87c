from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.protocol.codec import pack, unpack
from octonode.protocol.limits import Limits

LIMITS = Limits()

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain_values)
@settings(max_examples=100, deadline=None)
def test_what_is_packed_comes_back(value: object) -> None:
    assert unpack(pack(value), LIMITS) == value


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_value_or_a_remote_protocol_error(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        unpack(data, LIMITS)


@given(plain_values, st.data())
@settings(max_examples=200, deadline=None)
def test_one_changed_byte_gives_a_value_or_a_remote_protocol_error(value: object, data: st.DataObject) -> None:
    raw = bytearray(pack(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        unpack(bytes(raw), LIMITS)


REFUSED = {
    "no bytes": b"",
    "bytes after the value": b"\xc0\xc0",
    "a value cut short": b"\x92\xc0",
    "the reserved byte": b"\xc1",
    "duplicate keys": b"\x82\xa1a\x01\xa1a\x02",
    "duplicate keys below": b"\x91\x82\xa1a\x01\xa1a\x02",
    "a key that is a number": b"\x81\x01\x02",
    "a key that is bytes": b"\x81\xc4\x01a\x02",
    "a key that is nil": b"\x81\xc0\x02",
    "a key that is an array": b"\x81\x90\x02",
    "ext without data": b"\xc7\x00\x05",
    "ext with data": b"\xd4\x05a",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "text that is not UTF-8": b"\xa1\xff",
    "an array that claims 4 billion items": b"\xdd\xff\xff\xff\xff",
    "a map that claims 4 billion keys": b"\xdf\xff\xff\xff\xff",
    "a million arrays inside each other": b"\x91" * 1_000_000,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(data, LIMITS)
    assert caught.value.code == "BAD_MESSAGE"


def test_depth_is_taken_to_the_bound_and_not_beyond() -> None:
    assert unpack(b"\x91" * 16 + b"\xc0", LIMITS)
    with pytest.raises(RemoteProtocolError, match="deep"):
        unpack(b"\x91" * 17 + b"\xc0", LIMITS)
    mixed = b"\x81\xa1a\x91" * 8
    assert unpack(mixed + b"\xc0", LIMITS)
    with pytest.raises(RemoteProtocolError, match="deep"):
        unpack(mixed + b"\x90", LIMITS)


def test_map_keys_are_taken_to_the_bound_and_not_beyond() -> None:
    value = {str(number): None for number in range(32)}
    assert unpack(pack(value), LIMITS, keys_max=32) == value
    with pytest.raises(RemoteProtocolError):
        unpack(pack({**value, "one more": None}), LIMITS, keys_max=32)


def test_a_small_frame_cannot_become_a_large_heap() -> None:
    limits = Limits(values_max=100)
    assert unpack(pack([[None] * 10] * 8), limits)
    with pytest.raises(RemoteProtocolError, match="too many values"):
        unpack(pack([[None] * 10] * 12), limits)


@pytest.mark.parametrize("value", [2**64, object(), "\ud800", {1, 2}], ids=["integer", "object", "surrogate", "set"])
def test_what_has_no_place_on_the_wire_is_our_own_fault(value: object) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        pack({"value": value})
    assert caught.value.code == "BAD_REQUEST"


def test_nesting_without_end_is_our_own_fault() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(LocalProtocolError):
        pack(endless)


def test_bytes_are_what_any_msgpack_library_makes() -> None:
    assert pack({"a": [1, "é", b"\x00", None, True]}) == msgpack.packb({"a": [1, "é", b"\x00", None, True]})
