"""The value record `/octo/<peer id>`: that peer's signed announcement. What a node keeps and passes on of them."""

from __future__ import annotations

from octonode.errors import RemoteProtocolError
from octonode.network.clock import NowMs
from octonode.network.keys import record_key
from octonode.protocol.announcement import open_announcement


class RecordRules:
    """`validate` and `select` for the value store of the network: only a peer itself can write what stands for it."""

    def __init__(self, now_ms: NowMs) -> None:
        self._now_ms = now_ms

    def validate(self, key: str, value: bytes) -> None:
        """Raises RemoteProtocolError unless `value` is a fresh announcement, signed by the peer that `key` names."""
        announcement = open_announcement(value, self._now_ms())
        if key != record_key(announcement.peer_id):
            raise RemoteProtocolError(f"an announcement of {announcement.peer_id} under {key}", code="MISADDRESSED")

    def select(self, key: str, values: list[bytes]) -> int:
        """Index of the value with the highest sequence; a value that is no longer valid loses to every other."""
        return max(range(len(values)), key=lambda index: self._sequence(values[index]))

    def _sequence(self, value: bytes) -> int:
        try:
            return open_announcement(value, self._now_ms()).sequence
        except RemoteProtocolError:
            return -1
