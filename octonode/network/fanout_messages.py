"""What goes over a fan-out stream, as a frozen dataclass and as bytes. Pure. Spec: protocols/fanout.md.

A frame holds a msgpack array: the topic, the data, and whatever later minor versions add behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.protocol import codec
from octonode.protocol.limits import DEFAULT_LIMITS, Limits

KIB = 1024
TOPIC_BYTES_MAX = 64
DATA_BYTES_MAX = DEFAULT_LIMITS.announcement_bytes_max
FRAME_BYTES_MAX = DATA_BYTES_MAX + KIB
_ITEMS_MIN, _ITEMS_MAX = 2, 8
_UNPACK = Limits(depth_max=4, map_keys_max=16, values_max=64)


@dataclass(frozen=True, slots=True)
class FanoutLimits:
    """Bounds of the fan-out service. The table in protocols/fanout.md lists them with these names."""

    frame_bytes_max: int = FRAME_BYTES_MAX
    frames_per_second: float = 4.0
    """From one peer, all its streams together; to open a stream counts as a frame."""
    frames_burst: int = 16
    send_timeout_seconds: float = 10.0
    """To open a stream, to write one frame, and at the end to wait for the peer's end; each."""
    topics_waiting_max: int = 8
    """For one peer: of each topic the latest message alone waits."""
    crowded_share: float = 0.8
    """Of `network.connections_max`: above it no stream stands, so that connections can be told apart by use."""


@dataclass(frozen=True, slots=True)
class Said:
    topic: str
    data: bytes


def encode_said(said: Said) -> bytes:
    """Raises LocalProtocolError (TOO_LARGE)."""
    if len(said.topic.encode()) > TOPIC_BYTES_MAX or len(said.data) > DATA_BYTES_MAX:
        message = f"a topic has at most {TOPIC_BYTES_MAX} bytes and what is said on it at most {DATA_BYTES_MAX}"
        raise LocalProtocolError(message, code="TOO_LARGE")
    return codec.pack([said.topic, said.data])


def decode_said(payload: bytes) -> Said:
    """Raises RemoteProtocolError: BAD_MESSAGE or TOO_LARGE."""
    value = codec.unpack(payload, _UNPACK)
    if type(value) is not list or not _ITEMS_MIN <= len(value) <= _ITEMS_MAX:
        raise RemoteProtocolError(f"a message must be an array of {_ITEMS_MIN} to {_ITEMS_MAX} items: topic and data")
    topic, data = value[0], value[1]
    if type(topic) is not str or type(data) is not bytes:
        raise RemoteProtocolError("a message must begin with a topic as text and data as bytes")
    if len(topic.encode()) > TOPIC_BYTES_MAX:
        raise RemoteProtocolError(f"a topic is over {TOPIC_BYTES_MAX} bytes", code="TOO_LARGE")
    if len(data) > DATA_BYTES_MAX:
        raise RemoteProtocolError(f"what is said on a topic is over {DATA_BYTES_MAX} bytes", code="TOO_LARGE")
    return Said(topic, data)
