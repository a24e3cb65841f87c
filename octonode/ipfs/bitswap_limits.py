"""Bounds of the bitswap service; protocols/bitswap.md says what happens at each."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class BitswapLimits:
    """Of one node; those of messages stand in bitswap_messages.py."""

    # Asking.
    window_bytes_max: int = 16 * MIB
    """Asked of one peer and not yet here; the next wants wait. Helia drops its stream somewhere above."""
    block_bytes_guess: int = 256 * KIB
    """What a block counts in the window whose size the asker does not know."""
    wants_per_message_max: int = 1024
    stall_seconds: float = 5.0
    """Without bytes of the peer while something is asked of it."""
    bytes_per_second_min: int = 16 * KIB
    """Below this over all that is asked of it, a peer counts as stalled."""
    tries_max: int = 3
    """Streams that may be lost in a row, without one block in between, before the peer is given up."""
    remembered_max: int = 4096
    """Blocks that came or were cancelled lately: one that comes once more is late, and no fault."""
    idle_seconds: float = 5.0
    """A stream of ours on which nothing is left to say is finished after this. Helia resets one after ten."""

    # Serving.
    wants_per_peer_max: int = 8192
    """Wants of one peer that wait for an answer; more are answered DONT_HAVE, or not at all."""
    wants_max: int = 131_072
    """The same of all peers together."""
    batch_bytes: int = 1 * MIB
    """Blocks of one message, but for the last, which may reach beyond."""
    batch_wants_max: int = 256
    """Looked up in one go."""
    batches_max: int = 32
    """Messages in memory, of all peers; a peer has two at most. The next ones wait."""
    pressure_seconds: float = 5.0
    """A peer that has taken nothing for so long loses its stream once others wait for the memory."""
    small_block_bytes_max: int = 1024
    """Blocks up to this are sent where only their presence was asked."""
    send_timeout_seconds: float = 30.0
    """For one message, beside the time that its bytes take at `bytes_per_second_min`."""
    look_ups_max: int = 4
    """Threads that read and hash blocks at the same time."""

    # Reading, both for asking and serving.
    streams_per_peer_max: int = 32
    """That a peer opens to us; more are reset."""
    parts_per_second_max: int = 10_000
    """Of one peer: entries, presences and blocks; what comes faster is read later."""
    receiving_bytes_max: int = 24 * MIB
    """Messages of one peer that have begun, on all its streams; beyond it `unasked_bytes_max` holds."""
    unasked_bytes_max: int = 512 * KIB
    """A message of a peer of whom nothing is wanted; a longer one is read past and dropped."""
    message_seconds: float = 30.0
    """From the first byte of a message to its last, beside the time that its bytes take at `bytes_per_second_min`."""
