"""What waits to be sent: control frames first, then streams in turn, so that no stream waits for another's bulk.

A message is what one encryption and one send carry. Where several streams have something, each gives at most
`SHARE_BYTES` a turn; one alone fills the message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from octonode.network.libp2p.muxing.frames import ACK, DATA, FIN, HEADER_BYTES, SYN, WINDOW_UPDATE, MuxerError, header
from octonode.network.libp2p.muxing.streams import Step, YamuxStream

MESSAGE_BYTES_MAX = 65_519
"""What fits one Noise message beside its tag."""
SHARE_BYTES = 16 * 1024
HEADERS_BYTES = 3 * HEADER_BYTES
"""A turn of a stream takes three frames at most: an ACK with credit, data, a FIN."""


class Outbox:
    """Pure: `next_message` gives the bytes. `acknowledge(stream)` says how much credit goes with an ACK; `finished`
    is told of a stream whose FIN has gone.
    """

    def __init__(
        self,
        *,
        control_bytes_max: int,
        pending_bytes_max: int,
        acknowledge: Callable[[YamuxStream], int],
        finished: Callable[[YamuxStream], None],
    ) -> None:
        self._control_bytes_max = control_bytes_max
        self._pending_bytes_max = pending_bytes_max
        self._acknowledge = acknowledge
        self._finished = finished
        self._control = bytearray()
        self._ring: deque[YamuxStream] = deque()
        self.relieved: list[YamuxStream] = []
        """Streams whose writers may go on; whoever wakes them clears the list."""

    @property
    def is_empty(self) -> bool:
        return not (self._control or self._ring)

    @property
    def has_control(self) -> bool:
        return bool(self._control)

    def control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """A frame that goes before all data. What we say of our own accord is bounded by our streams and windows."""
        self._control += header(kind, flags, stream_id, value)

    def answer(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """The same for what the peer makes us say. Raises MuxerError when too much waits."""
        self.check_room()
        self.control(kind, flags, stream_id, value)

    def check_room(self) -> None:
        """Raises MuxerError when too much waits for the peer to make us say more."""
        if len(self._control) >= self._control_bytes_max:
            raise MuxerError("the peer makes us answer and does not read the answers")

    def credit(self, stream: YamuxStream, size: int) -> None:
        """A window update, which also carries a SYN or ACK that is due."""
        flags = stream.flags_due
        if flags & ACK:
            size += self._acknowledge(stream)
        stream.flags_due = 0
        self.control(WINDOW_UPDATE, flags, stream.id, size)

    def enqueue(self, stream: YamuxStream) -> None:
        if not stream.queued:
            stream.queued = True
            self._ring.append(stream)

    def withdraw(self, stream: YamuxStream) -> None:
        """Nothing of this stream goes any more: an empty outbox says so, and holds no row of what is over."""
        if stream.queued:
            stream.queued = False
            self._ring.remove(stream)

    def next_message(self, size_max: int = MESSAGE_BYTES_MAX) -> bytes:
        """Whole frames, at most `size_max` bytes of them; empty when nothing can go."""
        parts: list[bytes | memoryview] = []
        room = size_max
        if self._control:
            size = min(len(self._control), room - room % HEADER_BYTES)
            parts.append(bytes(self._control[:size]))
            del self._control[:size]
            room -= size
        ring = self._ring
        share = SHARE_BYTES if len(ring) > 1 else room
        while ring and room > HEADERS_BYTES:
            stream = ring.popleft()
            room -= self._frames(stream, min(share, room - HEADERS_BYTES), parts)
            if stream.sendable:
                ring.append(stream)
            else:
                stream.queued = False
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    def _frames(self, stream: YamuxStream, size_max: int, parts: list[bytes | memoryview]) -> int:
        """The next frames of a stream, at most `size_max` bytes of data in them; how many bytes were added."""
        added, flags = 0, stream.flags_due
        pending = stream.pending_bytes
        size = min(pending, stream.send_window, size_max)
        if flags:
            stream.flags_due = 0
            credit = self._acknowledge(stream) if flags & ACK else 0
            if credit or not size:
                parts.append(header(WINDOW_UPDATE, flags, stream.id, credit))
                added, flags = HEADER_BYTES, 0
        if size:
            parts.append(header(DATA, flags, stream.id, size))
            stream.take_pending(size, parts)
            stream.send_window -= size
            added += HEADER_BYTES + size
            if pending >= self._pending_bytes_max > stream.pending_bytes:
                self.relieved.append(stream)
        if stream.finishing and size == pending and stream.move(Step.SENT_FIN):
            # By itself: js-libp2p drops the data beside a FIN, and py-libp2p reads no FIN beside an ACK.
            parts.append(header(WINDOW_UPDATE, FIN, stream.id, 0))
            added += HEADER_BYTES
            self._finished(stream)
        return added

    def announce(self, stream: YamuxStream) -> None:
        """Let the peer know of a stream on which nothing is sent yet."""
        if stream.flags_due & SYN:
            self.enqueue(stream)
