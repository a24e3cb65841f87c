"""The value records of the network, and what a node keeps and passes on of them. Page: protocols/discovery.md.

`/octo/<peer id>` is that peer's signed announcement; `/octo-model/<publisher>/<name>` is that publisher's signed record
of all versions of a model.
"""

from __future__ import annotations

from octonode.errors import RemoteProtocolError
from octonode.network.clock import NowMs
from octonode.network.keys import NAME_NAMESPACE, VALUE_NAMESPACE, name_record_key, record_key
from octonode.protocol.announcement import open_announcement
from octonode.protocol.name_record import open_name_record

Rank = tuple[int, int]
NO_RANK: Rank = (-1, -1)
"""Of a value that is not, or no longer, valid: it loses to every other."""


class RecordRules:
    """`validate` and `select` for the value store of the network: only a key's owner can write what stands for it."""

    def __init__(self, now_ms: NowMs) -> None:
        self._now_ms = now_ms

    def validate(self, key: str, value: bytes) -> None:
        """Raises RemoteProtocolError unless `value` is a fresh record, signed by the peer that `key` names."""
        self._rank(key, value)

    def _rank(self, key: str, value: bytes) -> Rank:
        namespace = key[1:].partition("/")[0] if key.startswith("/") else ""
        if namespace == VALUE_NAMESPACE:
            announcement = open_announcement(value, self._now_ms())
            if key != record_key(announcement.peer_id):
                raise RemoteProtocolError(f"an announcement of {announcement.peer_id} under {key}", code="MISADDRESSED")
            return announcement.sequence, announcement.issued_at_ms
        if namespace == NAME_NAMESPACE:
            record = open_name_record(value, self._now_ms())
            if key != name_record_key(record.publisher, record.name):
                message = f"a record of {record.publisher}/{record.name} under {key}"
                raise RemoteProtocolError(message, code="MISADDRESSED")
            return record.rank
        raise RemoteProtocolError(f"no records are kept under {key[:64]!r}", code="MISADDRESSED")

    def select(self, key: str, values: list[bytes]) -> int:
        """Index of the value that stands: the highest sequence, else the later issue, else the greater bytes; so every
        node chooses the same. Of equal ones the last, so that a value that comes again counts as taken."""
        return max(range(len(values)), key=lambda index: (self._judged(key, values[index]), values[index], index))

    def _judged(self, key: str, value: bytes) -> Rank:
        try:
            return self._rank(key, value)
        except RemoteProtocolError:
            return NO_RANK
