"""HTTP responses and server-sent events of engines' servers: the same however their bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.engines.http_response import BODY_BYTES_MAX, EventReader, ResponseReader

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
SIZED = b"HTTP/1.1 404 Not Found\r\nContent-Length:11\r\n\r\nhello world"
OPEN = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello world"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % len(data) for place in places)})
    return [data[left:right] for left, right in itertools.pairwise(edges)]


@given(st.sampled_from([(CHUNKED, 200), (SIZED, 404), (OPEN, 200)]), st.lists(st.integers(0, 200), max_size=8))
def test_a_response_is_the_same_however_its_bytes_are_cut(response, places):
    data, status = response
    reader = ResponseReader()
    body = b"".join(reader.feed(part) for part in cut(b"HTTP/1.1 100 Continue\r\n\r\n" + data, places))
    assert reader.end()
    assert (reader.status, body) == (status, b"hello world")


@pytest.mark.parametrize("data", [CHUNKED[:-5], SIZED[:-1], CHUNKED[:20]])
def test_a_response_that_is_cut_off_is_not_whole(data):
    reader = ResponseReader()
    reader.feed(data)
    assert not reader.end()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 20_000,
        b"x" * 20_000,
    ],
)
def test_what_is_no_such_response_is_refused(data):
    with pytest.raises(ValueError):
        ResponseReader().feed(data)


@given(st.lists(st.integers(0, 200), max_size=8))
def test_events_are_the_same_however_their_bytes_are_cut(places):
    data = b': hello\n\ndata: {"a": 1}\n\nevent: x\nid: 3\ndata: one\ndata: two\r\n\r\nerror: bad\n\n'
    data += b"data: [DONE]\n\ndata: cut"
    reader = EventReader()
    values = [value for part in cut(data, places) for value in reader.feed(part)]
    assert values == [b'{"a": 1}', b"one\ntwo", b"bad", b"[DONE]"]


@pytest.mark.parametrize("data", [b"x" * (BODY_BYTES_MAX + 1), b"data: " + b"y" * 1024 + b"\n"])
def test_an_event_without_an_end_is_refused(data):
    reader = EventReader()

    def feed_for_ever() -> None:
        for _ in range(BODY_BYTES_MAX // 1024 + 2):
            reader.feed(data)

    with pytest.raises(ValueError):
        feed_for_ever()
