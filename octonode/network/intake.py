"""What is done with an announcement, whoever brought it: verify, keep if newer, learn where its peer may be dialled."""

from __future__ import annotations

import logging
from collections import Counter

import trio

from octonode.errors import RemoteProtocolError
from octonode.ids import PeerId
from octonode.network.addresses import dialable
from octonode.network.clock import NowMs
from octonode.network.host import Host
from octonode.network.near import reached_ips
from octonode.network.peerbook import Peerbook, Verdict
from octonode.protocol.announcement import Announcement, open_announcement

log = logging.getLogger(__name__)


class Intake:
    """The one door into the peerbook."""

    def __init__(self, host: Host, peerbook: Peerbook, now_ms: NowMs) -> None:
        self._host = host
        self._peerbook = peerbook
        self._now_ms = now_ms
        self._news = trio.Event()
        self.counts: Counter[str] = Counter()
        """By verdict, or by the code of the fault: for `doctor` and for metrics."""

    def take(self, data: bytes, bringer: PeerId, *, must_be_own: bool = False) -> tuple[Announcement, Verdict]:
        """Open and keep what `bringer` sent. `must_be_own`: an announcement of anybody else is a fault.

        Raises RemoteProtocolError for what is not a valid, fresh, signed announcement. An older sequence is no fault:
        the verdict says so and the newer one stays.
        """
        try:
            announcement = self._peerbook.recognise(data) or open_announcement(data, self._now_ms())
            if must_be_own and announcement.peer_id != bringer:
                message = f"{bringer} sent an announcement of {announcement.peer_id} as its own"
                raise RemoteProtocolError(message, code="MISADDRESSED")
        except RemoteProtocolError as fault:
            self.counts[fault.code] += 1
            raise
        verdict = self._peerbook.add(announcement, data, self._now_ms(), self._host.connected)
        self.counts[verdict.name] += 1
        if verdict.taken:
            log.debug("%s: %s, sequence %d", announcement.peer_id, verdict.value, announcement.sequence)
            self._learn(announcement)
            self._news.set()
            self._news = trio.Event()
        return announcement, verdict

    async def wait_news(self) -> None:
        """Until the next announcement that changed the peerbook."""
        await self._news.wait()

    def _learn(self, announcement: Announcement) -> None:
        if announcement.state == "leaving":
            return
        observed = self._host.observed_ip(announcement.peer_id)
        addresses = dialable(announcement.peer_id, announcement.addresses, reached_ips(self._host), observed)
        if addresses:
            self._host.learn(announcement.peer_id, addresses)
