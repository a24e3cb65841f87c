"""Frames on a byte stream: an unsigned varint length, then that many bytes.

The varint is https://github.com/multiformats/unsigned-varint in its shortest form; longer forms are refused, so one
message has one encoding.
"""

from __future__ import annotations

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.protocol.limits import DEFAULT_LIMITS


def encode_uvarint(number: int) -> bytes:
    """`number` (0 or more) as an unsigned varint of the shortest form."""
    assert number >= 0
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_frame(payload: bytes, max_frame_bytes: int = DEFAULT_LIMITS.frame_bytes_max) -> bytes:
    """`payload` with its length in front. Raises LocalProtocolError (TOO_LARGE) above `max_frame_bytes`."""
    size = len(payload)
    if size > max_frame_bytes:
        message = f"a frame of {size} bytes is over the {max_frame_bytes} that fit; send it as an artifact"
        raise LocalProtocolError(message, code="TOO_LARGE")
    if size < 0x80:
        return b"%c%b" % (size, payload)
    if size < 0x4000:
        return b"%c%c%b" % (size & 0x7F | 0x80, size >> 7, payload)
    return encode_uvarint(size) + payload


class FrameDecoder:
    """Cuts a byte stream into payloads, whatever the pieces it arrives in.

    A fault is final. Payloads that stood whole before it are still returned, and the fault is raised by the next
    `feed` (at once when nothing stood before it), so the way bytes were split changes nothing. Holds at most one
    frame and what one `feed` brought.
    """

    def __init__(self, max_frame_bytes: int = DEFAULT_LIMITS.frame_bytes_max) -> None:
        self._max = max_frame_bytes
        self._buffer = b""
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._wanted = 0
        self.fault: RemoteProtocolError | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not whole yet; 0 between frames."""
        return len(self._buffer) + self._parts_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`, in order. Raises RemoteProtocolError: TOO_LARGE, or BAD_MESSAGE."""
        if self.fault is not None:
            raise self.fault
        if self._wanted:  # in the middle of a large frame: gather parts, join them once
            self._parts.append(bytes(data))
            self._parts_bytes += len(data)
            if self._parts_bytes + len(self._buffer) < self._wanted:
                return []
        if self._parts:
            data = b"".join((self._buffer, *self._parts))
            self._parts.clear()
            self._parts_bytes = 0
        elif self._buffer:
            data = self._buffer + data
        return self._cut(bytes(data))

    def _cut(self, data: bytes) -> list[bytes]:
        payloads: list[bytes] = []
        at, end = 0, len(data)
        self._wanted = 0
        while at < end:
            try:
                head = self._read_length(data, at)
            except RemoteProtocolError as fault:
                self.fault = fault
                self._buffer = b""
                if payloads:
                    return payloads
                raise
            if head is None:
                break
            start, size = head
            if end - start < size:
                self._wanted = start - at + size
                break
            payloads.append(data[start : start + size])
            at = start + size
        self._buffer = data[at:]
        return payloads

    def _read_length(self, data: bytes, at: int) -> tuple[int, int] | None:
        """(where the payload starts, its size), or None while the varint is not whole."""
        size = shift = 0
        for index in range(at, len(data)):
            byte = data[index]
            size |= (byte & 0x7F) << shift
            if size > self._max:
                message = f"a frame of at least {size} bytes; at most {self._max} are taken"
                raise RemoteProtocolError(message, code="TOO_LARGE")
            if byte < 0x80:
                if byte == 0 and shift:
                    raise RemoteProtocolError("a frame length is not in its shortest form")
                return index + 1, size
            shift += 7
            if shift > 28:
                raise RemoteProtocolError("a frame length does not end")
        return None
