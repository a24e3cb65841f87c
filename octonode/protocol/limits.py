"""Every bound of the protocol, in one place. The table in protocols/agent.md lists these fields and their values.

A limit that both ends must share is a default here and changes with the protocol's version; a node may only be
stricter. What an operator sets for one node (rates, open tasks) is in `config.TasksConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a peer may send, and the times a stream lives by. Beyond a bound the message is refused."""

    # Bytes and shapes.
    frame_bytes_max: int = MIB
    """Payload of one frame, without its length prefix."""
    header_bytes_max: int = 16 * KIB
    """The header map as bytes; eight signed headers of a hire path fit."""
    depth_max: int = 16
    """Containers inside containers, in a header and in a body."""
    header_keys_max: int = 32
    map_keys_max: int = 1024
    """Keys of any map in a body."""
    values_max: int = 65_536
    """Values of one header or body in all; bounds what a frame may grow to in memory."""
    pieces_max: int = 4096
    """Pieces of text in one STATUS_UPDATE."""
    error_text_bytes_max: int = 4 * KIB
    announcement_bytes_max: int = 4 * KIB
    receipt_bytes_max: int = 16 * KIB
    checkpoint_bytes_max: int = KIB

    # Artifacts: inputs and outputs above one frame.
    artifact_chunk_bytes_max: int = 256 * KIB
    artifact_bytes_max: int = 16 * MIB
    """One artifact, and all the unfinished artifacts of a stream together."""
    artifacts_open_max: int = 4
    """Unfinished artifacts of one sender on one stream."""
    artifacts_max: int = 64
    """Artifacts of one sender on one stream."""
    input_inline_bytes_max: int = 512 * KIB
    """A TASK_REQUEST whose body is larger sends its input as an artifact."""

    # Time.
    clock_skew_ms_max: int = 60_000
    expiry_ahead_ms_max: int = 3_600_000
    request_ttl_ms: int = 600_000
    """Expiry of a request that names none."""
    message_ttl_ms: int = 60_000
    """Expiry of every message that is not a request."""
    request_wait_ms: int = 10_000
    """A stream whose request has not arrived by then is reset by the provider."""
    heartbeat_ms: int = 1000
    silence_ms_max: int = 3000
    drain_ms: int = 2000
    """From a cancel to the terminal frame."""
    checkpoint_pieces: int = 64
    checkpoint_ms: int = 1000
    announcement_ttl_ms_max: int = 3_600_000

    # Memory of what was seen.
    replay_peers_max: int = 256
    replay_messages_per_peer_max: int = 2048
    hops_max: int = 8
    frames_buffered_max: int = 256
    """Frames an asker may lag behind before its task ends with SLOW_READER."""


DEFAULT_LIMITS = Limits()
