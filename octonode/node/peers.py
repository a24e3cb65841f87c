"""The peers of a node for its HTTP faces, and joining by a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import trio

from octonode.api.schema import Joined, PeerFacts
from octonode.ids import PeerId
from octonode.models.placing import write_atomically
from octonode.network.access import Access, TokenFiles
from octonode.network.clock import wall_clock_ms
from octonode.network.host import Host
from octonode.network.joinline import parse_line
from octonode.network.membership import Membership
from octonode.network.peerbook import Peerbook
from octonode.protocol.announcement import Announcement

JOINED_FILE = "joined.json"
JOINED_MAX = 64
"""Addresses remembered from join lines; the oldest go."""


def remembered(home: Path) -> tuple[str, ...]:
    """Addresses of earlier joins. A damaged file is as good as none: joining again mends it."""
    try:
        return tuple(str(each) for each in json.loads((home / JOINED_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return ()


class Peers:
    """`api.ports.Peers`. Joined addresses are kept in `OCTONODE_HOME/joined.json` and dialled at every start."""

    def __init__(
        self, *, home: Path, host: Host, peerbook: Peerbook, membership: Membership, access: Access, tokens: TokenFiles
    ) -> None:
        self._path = home / JOINED_FILE
        self._host = host
        self._peerbook = peerbook
        self._membership = membership
        self._access = access
        self._tokens = tokens

    async def join(self, address: str) -> Joined:
        """Dial first: a line that leads nowhere is not remembered."""
        line = parse_line(address)
        peer_id = await self._membership.join(address)
        if line.token:
            joined = await trio.to_thread.run_sync(self._tokens.adopt, line.token)
            self._access.use((self._tokens.own(), *joined))
        kept = list(dict.fromkeys((*line.addresses, *remembered(self._path.parent))))[:JOINED_MAX]
        await trio.to_thread.run_sync(lambda: write_atomically(self._path, json.dumps(kept).encode(), 0o600))
        return Joined(peer_id=peer_id, address=line.addresses[0])

    async def list(self) -> Sequence[PeerFacts]:
        connected = self._host.connected
        known = {announcement.peer_id: announcement for announcement in self._peerbook.peers(wall_clock_ms())}
        order = sorted({*known, *connected}, key=lambda peer: (peer not in connected, peer))
        return [_facts(peer, peer in connected, known.get(peer)) for peer in order]


def _facts(peer_id: PeerId, connected: bool, announcement: Announcement | None) -> PeerFacts:
    if announcement is None:
        return PeerFacts(peer_id=peer_id, connected=connected)
    return PeerFacts(
        peer_id=peer_id,
        connected=connected,
        addresses=announcement.addresses,
        tier=announcement.tier,
        region=announcement.region,
        state=announcement.state,
        engines=announcement.engines,
        serving=tuple(each.name or each.root for each in announcement.serving),
        holding=tuple(each.name or each.root for each in announcement.holding),
        role=announcement.role,
        storage_free_bytes=announcement.storage.free_bytes if announcement.storage else 0,
        seen_at_ms=announcement.issued_at_ms,
        expires_at_ms=announcement.expires_at_ms,
        agent_version=announcement.agent_version,
    )
