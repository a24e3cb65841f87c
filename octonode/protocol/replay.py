"""What was already asked: requests by (sender, message id), so that none runs twice.

The same bytes again mean that an asker lost its stream and wants its task back; other bytes under the same id are an
attack or a bug. Memory is bounded per peer and in peers.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

from octonode.errors import RemoteProtocolError
from octonode.ids import PeerId
from octonode.protocol.limits import DEFAULT_LIMITS, Limits
from octonode.protocol.messages import Header


class Verdict(Enum):
    NEW = "new"
    AGAIN = "again"
    """The same bytes: attach the stream to the task that runs, or give the stored answer."""


class _Seen:
    """The requests of one peer."""

    __slots__ = ("floor_ms", "messages")

    def __init__(self) -> None:
        self.messages: OrderedDict[bytes, tuple[bytes, int, int]] = OrderedDict()
        """id: (sha256 of the header bytes, sent at, expires at), oldest first."""
        self.floor_ms = -1
        """The latest time of sending among the forgotten ones that had not expired."""


class ReplayWindow:
    """Remembers every accepted request until it expires.

    At `replay_messages_per_peer_max` the oldest one of that peer is forgotten, and from then on whatever that peer
    sent at or before it is refused as REPLAY: nothing runs twice, and memory stays bounded. At `replay_peers_max`
    the peer that was quiet for longest is forgotten; a request can only be replayed by its own sender, since the
    transport authenticates it, so that peer could at worst have its own work done twice.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._peers: OrderedDict[PeerId, _Seen] = OrderedDict()

    @property
    def peers(self) -> int:
        return len(self._peers)

    def messages(self, peer: PeerId) -> int:
        """Requests of `peer` that are remembered now."""
        seen = self._peers.get(peer)
        return len(seen.messages) if seen else 0

    def admit(self, header: Header, header_sha256: bytes, now_ms: int) -> Verdict:
        """Remember this request. Raises RemoteProtocolError (REPLAY) for its id with other bytes.

        Call it once the signature holds: what is not proven must not fill the window.
        """
        seen = self._peers.get(header.sender)
        if seen is None:
            seen = self._peers[header.sender] = _Seen()
            if len(self._peers) > self._limits.replay_peers_max:
                self._peers.popitem(last=False)
        else:
            self._peers.move_to_end(header.sender)
        known = seen.messages.get(header.id)
        if known is not None and known[2] > now_ms:
            if known[0] != header_sha256:
                raise RemoteProtocolError("another request came under this id; use a new id", code="REPLAY")
            return Verdict.AGAIN
        if header.sent_at_ms <= seen.floor_ms:
            raise RemoteProtocolError("this request is older than what is remembered; send a new one", code="REPLAY")
        seen.messages.pop(header.id, None)  # an expired one: the new one goes to the young end
        seen.messages[header.id] = (header_sha256, header.sent_at_ms, header.expires_at_ms)
        self._shrink(seen, now_ms)
        return Verdict.NEW

    def forget(self, peer: PeerId) -> None:
        """Drop what is remembered of `peer`, for example when it is banned."""
        self._peers.pop(peer, None)

    def _shrink(self, seen: _Seen, now_ms: int) -> None:
        """Expired requests at the old end go first; then the bound."""
        messages = seen.messages
        while messages:
            oldest = next(iter(messages.values()))
            expired = oldest[2] <= now_ms
            if not expired and len(messages) <= self._limits.replay_messages_per_peer_max:
                return
            messages.popitem(last=False)
            if not expired:
                seen.floor_ms = max(seen.floor_ms, oldest[1])
