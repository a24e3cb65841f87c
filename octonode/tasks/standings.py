"""What an asker remembers of its providers for a while: who failed lately, and who asked to be left alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from octonode.errors import OctonodeError, RemoteProtocolError
from octonode.ids import PeerId
from octonode.tasks.routing import Standing

PEERS_MAX = 4096
"""At the bound the one that failed longest ago is forgotten."""
PAUSE_MS_LEAST = 1000
PAUSE_MS_MOST = 30_000

MOVES_ON_TOO = frozenset(
    {"MODEL_NOT_FOUND", "UNAUTHORIZED", "FORBIDDEN", "UNSUPPORTED", "CONTEXT_EXCEEDED", "EXTENSION_REQUIRED"}
    | {"BAD_MESSAGE", "BAD_SEQUENCE", "BAD_SIGNATURE", "MISADDRESSED", "CLOCK_SKEW", "TASK_NOT_FOUND", "REPLAY"}
    | {"INTERNAL", "CANCELED", "PRIVACY_UNAVAILABLE", "LOOP", "EXPIRED"}
)
"""Codes, beside the retryable ones, that are about one provider: another one may well answer."""


def moves_on(error: OctonodeError) -> bool:
    """True when the next candidate is asked after this: for whatever one provider says or does, another may not."""
    return error.row.retryable or error.code in MOVES_ON_TOO or is_theirs(error)


def is_theirs(error: OctonodeError) -> bool:
    """True for a provider's own words and for what breaks the protocol, false for what we found out ourselves."""
    return isinstance(error, RemoteProtocolError) or "provider" in error.detail


class Standings:
    """Failures in a row by peer; a success wipes them out."""

    def __init__(self) -> None:
        self._by_peer: OrderedDict[PeerId, Standing] = OrderedDict()

    def all(self) -> Mapping[PeerId, Standing]:
        return self._by_peer

    def succeeded(self, peer: PeerId) -> None:
        self._by_peer.pop(peer, None)

    def failed(self, peer: PeerId, now_ms: int, retry_after_seconds: float | None = None) -> None:
        """It stands behind the others until the time it named, or for a pause that doubles with each failure."""
        before = self._by_peer.pop(peer, Standing())
        failures = before.failures + 1
        pause_ms = min(PAUSE_MS_MOST, PAUSE_MS_LEAST << min(failures - 1, 5))
        if retry_after_seconds is not None:
            pause_ms = int(retry_after_seconds * 1000)
        self._by_peer[peer] = Standing(failures, now_ms + pause_ms)
        if len(self._by_peer) > PEERS_MAX:
            self._by_peer.popitem(last=False)
