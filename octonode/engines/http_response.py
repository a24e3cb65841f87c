"""Takes the bytes of HTTP/1.1 responses and of server-sent events apart, as far as engines' servers need. Pure.

RFC 9112 sections 6 and 7.1; https://html.spec.whatwg.org/multipage/server-sent-events.html section 9.2.6. A streamed
token passes through here, so nothing is copied twice.
"""

from __future__ import annotations

HEAD_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 4 * 1024 * 1024
"""Of an answer that is not streamed, and of one chunk or one event of a stream."""


class ResponseReader:
    """`status`, then the body freed of its transfer coding. One response a connection."""

    def __init__(self) -> None:
        self.status = 0
        self.complete = False
        self._buffer = b""
        self._chunked = False
        self._until_end = False
        """The body ends where the connection does."""
        self._left = 0
        """Bytes of the body that are still to come, where its length was told."""

    def feed(self, data: bytes) -> bytes:
        """The part of the body that these bytes add. Raises ValueError for what is not such a response."""
        self._buffer += data
        while not self.status:
            if not self._read_head():
                return b""
        if self._chunked:
            return self._read_chunks()
        body, self._buffer = self._buffer, b""
        if self._until_end:
            return body
        body = body[: self._left]
        self._left -= len(body)
        self.complete = self._left == 0
        return body

    def end(self) -> bool:
        """The connection ended: True when the response is whole."""
        self.complete = self.complete or (self.status > 0 and self._until_end)
        return self.complete

    def _read_head(self) -> bool:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise ValueError("the head of the response is too long")
            return False
        self._buffer = rest
        first, *lines = head.split(b"\r\n")
        version, _, status = first.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ValueError("not an HTTP/1 response")
        if 100 <= int(status[:3]) < 200:
            return True  # an interim response; the real one follows
        self.status = int(status[:3])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        length = headers.get(b"content-length")
        self._until_end = length is None and not self._chunked
        self._left = int(length or b"0")
        if not 0 <= self._left <= BODY_BYTES_MAX:
            raise ValueError("the body of the response has a bad length")
        return True

    def _read_chunks(self) -> bytes:
        parts: list[bytes] = []
        while not self.complete:
            size_text, separator, rest = self._buffer.partition(b"\r\n")
            if not separator:
                if len(self._buffer) > HEAD_BYTES_MAX:
                    raise ValueError("the size of a chunk is too long")
                break
            size = int(size_text.partition(b";")[0], 16)
            if not 0 <= size <= BODY_BYTES_MAX:
                raise ValueError("a chunk has a bad length")
            if len(rest) < size + 2:
                break
            parts.append(rest[:size])
            self._buffer = rest[size + 2 :]
            self.complete = size == 0
        return b"".join(parts)


class EventReader:
    """The data of server-sent events, one value an event, as bytes arrive."""

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, body: bytes) -> list[bytes]:
        """The values of the events that these bytes end. Raises ValueError for one without an end."""
        *lines, self._pending = (self._pending + body).split(b"\n")
        events: list[bytes] = []
        for line in lines:
            self._take(line.removesuffix(b"\r"), events)
        if len(self._pending) + self._data_bytes > BODY_BYTES_MAX:
            raise ValueError("an event has no end")
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data, self._data_bytes = [], 0
            return
        name, _, value = line.partition(b":")
        if name in (b"data", b"error"):  # llama.cpp names the field of its errors so; comments have no name
            self._data.append(value.removeprefix(b" "))
            self._data_bytes += len(value)
