"""How much a peer may have us hold: limits of a session, and the budget that windows grow from. Sans-IO."""

from __future__ import annotations

from dataclasses import dataclass

from octonode.network.libp2p.muxing.frames import INITIAL_WINDOW_BYTES
from octonode.network.libp2p.muxing.streams import YamuxStream

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection."""

    streams_max: int = 4096
    """Of both ends together. A stream that the peer opens above it is reset; one that we open is refused."""
    unaccepted_max: int = 1024
    """Streams of the peer that have not chosen a protocol yet; one more is reset."""
    ack_backlog_max: int = 256
    """Streams of ours that the peer has not acknowledged, by the specification; to open one more waits."""
    received_bytes_max: int = 32 * MIB
    """Received and not yet read, of all streams. Above it the stream that holds most is reset: its reader stopped."""
    window_bytes_max: int = 4 * MIB
    """Of one stream. All growth beyond the initial windows together stays within `received_bytes_max` as well."""
    pending_bytes_max: int = 256 * KIB
    """Accepted from the writer of one stream and not yet sent; the writer waits."""
    control_bytes_max: int = 256 * KIB
    """Answers to pings and refusals that wait because the peer does not read; above it the connection ends."""

    def __post_init__(self) -> None:
        assert self.received_bytes_max >= INITIAL_WINDOW_BYTES
        assert self.window_bytes_max >= INITIAL_WINDOW_BYTES


ACK_CREDIT_BYTES = 768 * KIB
"""Granted with the ACK of a stream that the peer opened, within the budget: stock writers give up after five seconds
of a closed window, and so have a megabyte to go before that."""
GROW_WITHIN_ROUND_TRIPS = 4
ROUND_TRIP_MIN_SECONDS = 0.010


class WindowBudget:
    """What all windows of a session may grow by, in bytes."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.left_bytes = total_bytes

    def grow(self, stream: YamuxStream, wanted_bytes: int, window_bytes_max: int) -> int:
        """Widen the window of a stream by at most so much; returns by how much."""
        granted = max(0, min(wanted_bytes, window_bytes_max - stream.window, self.left_bytes))
        self.left_bytes -= granted
        stream.window += granted
        return granted

    def give_back(self, stream: YamuxStream) -> None:
        """The stream is over."""
        self.left_bytes += stream.window - INITIAL_WINDOW_BYTES
        stream.window = INITIAL_WINDOW_BYTES


def is_held_back(stream: YamuxStream, now: float, round_trip_seconds: float) -> bool:
    """Whether half a window was read in so few round trips that the window, not the reader, sets the pace.

    The rule of autotuning in go-yamux and rust-yamux: a window that empties within four round trips doubles.
    """
    return now - stream.credited_at < GROW_WITHIN_ROUND_TRIPS * max(round_trip_seconds, ROUND_TRIP_MIN_SECONDS)
