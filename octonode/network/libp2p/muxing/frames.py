"""Yamux frames: the header, its numbers, and what makes one unacceptable whatever the state of the session.

version 8 | type 8 | flags 16 | stream id 32 | length 32        big endian, then `length` bytes after DATA alone
"""

from __future__ import annotations

import struct
from typing import Final

from octonode.errors import RemoteProtocolError

HEADER: Final = struct.Struct("!BBHII")
HEADER_BYTES: Final = 12
PROTOCOL: Final = "/yamux/1.0.0"
VERSION: Final = 0

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8

NORMAL: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
"""Codes of GO_AWAY, in its length."""

INITIAL_WINDOW_BYTES: Final = 256 * 1024
"""Of every stream, both ways, by the specification."""
WINDOW_LIMIT: Final = 2**32 - 1


class MuxerError(RemoteProtocolError):
    """The peer broke the rules of the session; nothing more of it is read, and the connection ends."""


def header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return HEADER.pack(VERSION, kind, flags, stream_id, length)


def check(version: int, kind: int, stream_id: int) -> None:
    """Raises MuxerError for a header that belongs to no session."""
    if version != VERSION:
        raise MuxerError(f"a yamux frame of version {version}; only {VERSION} is known")
    if kind > GO_AWAY:
        raise MuxerError(f"a yamux frame of type {kind}; there are 0 to {GO_AWAY}")
    if (kind <= WINDOW_UPDATE) == (stream_id == 0):
        raise MuxerError(f"a yamux frame of type {kind} for stream {stream_id}")
