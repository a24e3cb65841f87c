"""What this node says of itself: facts of the other rooms, signed with the next sequence number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from octonode.config import NetworkConfig
from octonode.errors import ConfigError
from octonode.identity import Signer
from octonode.network.addresses import AddressError, announceable
from octonode.network.clock import NowMs
from octonode.network.host import Host
from octonode.network.sequence import Sequence as Numbers
from octonode.protocol.announcement import (
    Announcement,
    HardwareValue,
    Holding,
    Serving,
    StorageRoom,
    fit,
    sign_announcement,
)

Model = TypeVar("Model", Serving, Holding)

LEAVING_TTL_FACTOR = 2
"""A leaving announcement outlives every active one before it, so that none of those can come back."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """All that is announced and that the network does not know by itself."""

    tier: str = "edge"
    hardware: dict[str, HardwareValue] = field(default_factory=dict)
    engines: tuple[str, ...] = ()
    serving: tuple[Serving, ...] = ()
    """Loaded models, with measured figures."""
    holding: tuple[Holding, ...] = ()
    """Public models with blocks on disk."""
    gateway_port: int = 0
    access: str = "token"
    region: str = ""
    agent_version: str = ""
    role: str = "full"
    storage: StorageRoom | None = None
    names: tuple[str, ...] = ()
    """`<publisher>/<name>` of signed manifests that we can show, beyond those of `serving` and `holding`."""

    @property
    def material(self) -> object:
        """What peers must hear of at once when it changes: all but the figures that move with every task."""
        serving = tuple(replace(s, running=0, tokens_per_second=0.0, first_token_ms=0) for s in self.serving)
        return replace(self, serving=serving, storage=None)


Facts = Callable[[], NodeFacts]
"""Asked for every announcement; must not block."""


@dataclass(frozen=True, slots=True)
class Signed:
    announcement: Announcement
    data: bytes


class OwnAnnouncement:
    """Makes and keeps our announcement. No task of its own. Raises ConfigError for a malformed announce address."""

    def __init__(
        self,
        *,
        signer: Signer,
        host: Host,
        facts: Facts,
        sequence: Numbers,
        settings: NetworkConfig,
        now_ms: NowMs,
    ) -> None:
        try:
            announceable((), settings.announce_addresses, signer.peer_id)
        except AddressError as error:
            raise ConfigError(f"network.announce_addresses: {error.message}") from None
        self._signer = signer
        self._host = host
        self._facts = facts
        self._sequence = sequence
        self._settings = settings
        self._now_ms = now_ms
        self._last: Signed | None = None
        self._leaving = False

    @property
    def last(self) -> Signed | None:
        """What stands for us in the network, if it has not expired."""
        return self._last

    def facts(self) -> NodeFacts:
        return self._facts()

    async def renew(self, state: Literal["active", "leaving"] = "active") -> Signed:
        """A new announcement with what is true now. After one that says `leaving` all are."""
        self._leaving = self._leaving or state == "leaving"
        self._last = await self._make(self._facts())
        return self._last

    async def current(self) -> Signed:
        """The last one while half its life is left, else a new one."""
        last = self._last
        if last is None or last.announcement.expires_at_ms - self._now_ms() < self._ttl_ms // 2:
            return await self.renew()
        return last

    async def about(self, root: str) -> Signed | None:
        """One that lists `root`, or None when we neither serve nor hold it.

        A node with more models than fit one announcement leaves some out; who asks for one of those gets an
        announcement made for the question, with that model first.
        """
        facts = self._facts()
        if not _lists(facts.serving, root) and not _lists(facts.holding, root):
            return None
        current = await self.current()
        if _lists(current.announcement.serving, root) or _lists(current.announcement.holding, root):
            return current
        return await self._make(
            replace(facts, serving=_first(facts.serving, root), holding=_first(facts.holding, root))
        )

    @property
    def _ttl_ms(self) -> int:
        return int(self._settings.announcement_ttl_seconds * 1000)

    async def _make(self, facts: NodeFacts) -> Signed:
        now_ms = self._now_ms()
        life_ms = self._ttl_ms * (LEAVING_TTL_FACTOR if self._leaving else 1)
        announcement = Announcement(
            peer_id=self._signer.peer_id,
            sequence=await self._sequence.next(now_ms),
            issued_at_ms=now_ms,
            expires_at_ms=now_ms + min(life_ms, 3_600_000),
            state="leaving" if self._leaving else "active",
            addresses=announceable(self._host.addresses, self._settings.announce_addresses, self._signer.peer_id),
            gateway_port=0 if self._leaving else facts.gateway_port,
            tier=facts.tier,
            hardware=facts.hardware,
            engines=facts.engines,
            serving=() if self._leaving else facts.serving,
            holding=() if self._leaving else facts.holding,
            access=facts.access,
            region=facts.region,
            agent_version=facts.agent_version,
            role=facts.role,
            storage=None if self._leaving else facts.storage,
        )
        fitted = fit(announcement)
        return Signed(fitted, sign_announcement(self._signer, fitted))


def _lists(items: Sequence[Serving | Holding], root: str) -> bool:
    return any(item.root == root for item in items)


def _first(items: tuple[Model, ...], root: str) -> tuple[Model, ...]:
    return tuple(sorted(items, key=lambda item: item.root != root))
