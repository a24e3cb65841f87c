"""Who is there: the newest signed announcement of each peer, until it expires. Pure; time is `now_ms`.

Bounded by `peers_max`: at the bound expired entries go first, then the one heard of longest ago that we are not
connected to; when all are connected the new one is refused (FULL). A peer that leaves is kept as a tombstone until its
last announcement expires, so that an older one which still travels does not bring it back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from octonode.ids import PeerId
from octonode.protocol.announcement import Announcement, Holding, Serving

PEERS_MAX = 4096
SAMPLE_MAX = 16


class Verdict(Enum):
    """What became of an announcement. The value is the text for logs and for `doctor`."""

    NEW = "a peer we did not know"
    NEWER = "newer than the one known"
    LEFT = "the peer says that it leaves"
    SAME = "known already"
    OLDER = "older than the one known"
    EXPIRED = "expired"
    OURS = "our own"
    FULL = "the peerbook is full of connected peers"

    @property
    def taken(self) -> bool:
        return self in (Verdict.NEW, Verdict.NEWER, Verdict.LEFT)


class Shuffler(Protocol):
    """What is used of `random.Random`."""

    def sample(self, population: Sequence[bytes], k: int) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class Entry:
    announcement: Announcement
    data: bytes
    """As signed: what is handed on to others."""
    heard_at_ms: int


class Peerbook:
    """Announcements by peer. Every one given here was opened before (`protocol.announcement.open_announcement`)."""

    def __init__(self, own: PeerId, peers_max: int = PEERS_MAX) -> None:
        assert peers_max > 0
        self._own = own
        self._peers_max = peers_max
        # In the order of hearing: the first is the one heard of longest ago.
        self._entries: dict[PeerId, Entry] = {}
        self._by_data: dict[bytes, PeerId] = {}
        self._index: dict[tuple[str, str], set[PeerId]] = {}
        self._expiry_before_ms = 0
        self.evicted = 0

    def __len__(self) -> int:
        """Entries in memory, tombstones and expired ones among them."""
        return len(self._entries)

    def add(self, announcement: Announcement, data: bytes, now_ms: int, connected: Collection[PeerId] = ()) -> Verdict:
        """Take an announcement if it is news. `connected` peers are never evicted for it."""
        peer_id = announcement.peer_id
        if peer_id == self._own:
            return Verdict.OURS
        if announcement.expires_at_ms <= now_ms:
            return Verdict.EXPIRED
        known = self._entries.get(peer_id)
        if known is not None and announcement.sequence <= known.announcement.sequence:
            return Verdict.SAME if data == known.data else Verdict.OLDER
        if known is None and len(self._entries) >= self._peers_max and not self._make_room(now_ms, connected):
            return Verdict.FULL
        was_here = (
            known is not None and known.announcement.state == "active" and known.announcement.expires_at_ms > now_ms
        )
        self._put(Entry(announcement, data, now_ms))
        if announcement.state == "leaving":
            return Verdict.LEFT
        return Verdict.NEWER if was_here else Verdict.NEW

    def get(self, peer_id: PeerId, now_ms: int) -> Announcement | None:
        """The fresh announcement of an active peer."""
        entry = self._entry(peer_id, now_ms)
        return entry.announcement if entry else None

    def signed(self, peer_id: PeerId, now_ms: int) -> bytes | None:
        """The same as signed bytes, to hand on."""
        entry = self._entry(peer_id, now_ms)
        return entry.data if entry else None

    def recognise(self, data: bytes) -> Announcement | None:
        """The announcement that stands for exactly these signed bytes, so that they need not be verified again."""
        peer_id = self._by_data.get(data)
        return self._entries[peer_id].announcement if peer_id is not None else None

    def peers(self, now_ms: int) -> list[Announcement]:
        """All active peers with a fresh announcement, heard of longest ago first."""
        return [entry.announcement for entry in self._entries.values() if _active(entry, now_ms)]

    def serving(self, root: str, now_ms: int) -> list[Announcement]:
        """Active peers that announce a loaded model with this root CID."""
        return self._found("serving", root, now_ms)

    def holding(self, root: str, now_ms: int) -> list[Announcement]:
        """Active peers that announce blocks of this root CID, all or some of them."""
        return self._found("holding", root, now_ms)

    def named(self, publisher: PeerId, name: str, now_ms: int) -> list[Announcement]:
        """Active peers that serve or hold a model which `publisher` signed under `name`."""
        return self._found("named", f"{publisher}/{name}", now_ms)

    def manifest(self, cid: str, now_ms: int) -> list[Announcement]:
        """Active peers that serve or hold the model of this manifest CID."""
        return self._found("manifest", cid, now_ms)

    def sample(
        self, count: int, random: Shuffler, now_ms: int, *, root: str = "", without: Collection[PeerId] = ()
    ) -> list[bytes]:
        """At most `count` (16) signed announcements drawn at random; with `root`, of its servers and holders alone."""
        if root:
            peers: Iterable[PeerId] = {*self._index.get(("serving", root), ()), *self._index.get(("holding", root), ())}
        else:
            peers = self._entries
        found = [e.data for peer in peers if peer not in without and (e := self._entry(peer, now_ms)) is not None]
        return random.sample(found, min(count, SAMPLE_MAX, len(found)))

    def forget(self, peer_id: PeerId) -> None:
        if (entry := self._entries.pop(peer_id, None)) is not None:
            del self._by_data[entry.data]
            self._unindex(entry.announcement)

    def expire(self, now_ms: int) -> list[PeerId]:
        """Drop what has expired; who that was."""
        if now_ms < self._expiry_before_ms:
            return []
        gone = [peer for peer, entry in self._entries.items() if entry.announcement.expires_at_ms <= now_ms]
        for peer in gone:
            self.forget(peer)
        self._expiry_before_ms = min((e.announcement.expires_at_ms for e in self._entries.values()), default=0)
        return gone

    def _entry(self, peer_id: PeerId, now_ms: int) -> Entry | None:
        entry = self._entries.get(peer_id)
        return entry if entry is not None and _active(entry, now_ms) else None

    def _found(self, kind: str, value: str, now_ms: int) -> list[Announcement]:
        peers = self._index.get((kind, value), ())
        return [entry.announcement for peer in peers if (entry := self._entry(peer, now_ms)) is not None]

    def _make_room(self, now_ms: int, connected: Collection[PeerId]) -> bool:
        if self.expire(now_ms):
            return True
        oldest = next((peer for peer in self._entries if peer not in connected), None)
        if oldest is None:
            return False
        self.forget(oldest)
        self.evicted += 1
        return True

    def _put(self, entry: Entry) -> None:
        peer_id = entry.announcement.peer_id
        self.forget(peer_id)
        self._entries[peer_id] = entry
        self._by_data[entry.data] = peer_id
        for key in _index_keys(entry.announcement):
            self._index.setdefault(key, set()).add(peer_id)
        self._expiry_before_ms = min(
            self._expiry_before_ms or entry.announcement.expires_at_ms, entry.announcement.expires_at_ms
        )

    def _unindex(self, announcement: Announcement) -> None:
        for key in _index_keys(announcement):
            peers = self._index.get(key)
            if peers is not None:
                peers.discard(announcement.peer_id)
                if not peers:
                    del self._index[key]


def _active(entry: Entry, now_ms: int) -> bool:
    return entry.announcement.state == "active" and entry.announcement.expires_at_ms > now_ms


def _index_keys(announcement: Announcement) -> set[tuple[str, str]]:
    keys = {("serving", item.root) for item in announcement.serving}
    keys |= {("holding", item.root) for item in announcement.holding}
    models: tuple[Serving | Holding, ...] = (*announcement.serving, *announcement.holding)
    keys |= {("named", item.name) for item in models if item.name}
    return keys | {("manifest", item.manifest) for item in models if item.manifest}
