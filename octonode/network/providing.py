"""Which provider records we keep in the DHT, and when each is due. Pure; time is `now_ms`.

Records are lost with the nodes that hold them and expire there, so each is provided again and again; peers drop what
comes faster than about one a second from one node, so they go one by one, new ones first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octonode.ids import PeerId, public_key_from_peer_id
from octonode.network import keys
from octonode.network.clock import Chance
from octonode.network.own_announcement import NodeFacts
from octonode.network.roots import RootError, root_digest
from octonode.protocol.announcement import Holding, Serving

RETRY_FIRST_MS = 1000
RETRY_LAST_MS = 30_000
RECORDS_MAX = 1024
"""Beyond it the last names and manifests are left out: at one a second their round would take longer than they live."""
_ORDER = ("serve", "blocks", "name", "manifest", "tier")
"""Of two records due, the one whose kind stands first goes first; new ones before all that were provided before."""


@dataclass(slots=True)
class ProviderRecord:
    """One key and how it stands; shown by `doctor`."""

    kind: str
    label: str
    key: bytes
    due_ms: int
    provided_at_ms: int = 0
    """0: never yet."""
    failures: int = 0
    """In a row."""
    reason: str = ""
    """Of the last failure."""


def wanted(facts: NodeFacts, own: PeerId) -> dict[bytes, tuple[str, str]]:
    """{key: (kind, label)} for all that `facts` say we can be asked for. What is no CID or name is left out."""
    found: dict[bytes, tuple[str, str]] = {}
    for serving in facts.serving:
        _add_root(found, "serve", serving.root)
    held: list[Serving | Holding] = [*facts.holding]
    for item in held:
        _add_root(found, "blocks", item.root)
    models = [*facts.serving, *held]
    for name in dict.fromkeys([*(item.name for item in models), *facts.names]):
        _add_name(found, name)
    for cid in dict.fromkeys(item.manifest for item in models):
        _add_root(found, "manifest", cid)
    tier = keys.tier_key(facts.tier, keys.tier_bucket(own))
    kept = dict(list(found.items())[: RECORDS_MAX - 1])
    return {**kept, tier: ("tier", facts.tier)}


def _add_root(found: dict[bytes, tuple[str, str]], kind: str, cid: str) -> None:
    if not cid:
        return
    try:
        digest = root_digest(cid)
    except RootError:
        return
    key = keys.serve_key(digest) if kind == "serve" else keys.blocks_key(digest)
    found.setdefault(key, (kind, cid))


def _add_name(found: dict[bytes, tuple[str, str]], name: str) -> None:
    publisher, slash, short = name.partition("/")
    if not slash or not short:
        return
    try:
        public_key_from_peer_id(publisher)
    except ValueError:
        return
    found.setdefault(keys.name_key(PeerId(publisher), short), ("name", name))


class ProvidingTable:
    """The records and their times."""

    def __init__(self, interval_ms: int, random: Chance) -> None:
        self._interval_ms = interval_ms
        self._random = random
        self._records: dict[bytes, ProviderRecord] = {}

    @property
    def records(self) -> tuple[ProviderRecord, ...]:
        return tuple(self._records.values())

    def want(self, found: dict[bytes, tuple[str, str]], now_ms: int) -> None:
        """Keep exactly these keys: new ones are due now, those no longer wanted are dropped and expire out there."""
        for key in self._records.keys() - found.keys():
            del self._records[key]
        for key, (kind, label) in found.items():
            if key not in self._records:
                self._records[key] = ProviderRecord(kind, label, key, due_ms=now_ms)

    def next_due(self, now_ms: int) -> ProviderRecord | None:
        """The one to provide now."""
        due = [record for record in self._records.values() if record.due_ms <= now_ms]
        return min(due, key=_rank) if due else None

    def wait_ms(self, now_ms: int) -> int:
        """Until the next one is due; the whole interval when there is none."""
        return max(0, min((r.due_ms for r in self._records.values()), default=now_ms + self._interval_ms) - now_ms)

    def done(self, record: ProviderRecord, now_ms: int) -> None:
        record.provided_at_ms, record.failures, record.reason = now_ms, 0, ""
        record.due_ms = now_ms + int(self._interval_ms * (0.9 + 0.2 * self._random.random()))

    def failed(self, record: ProviderRecord, reason: str, now_ms: int) -> None:
        """Again after 1, 2, 4 ... 30 s, with jitter."""
        record.failures += 1
        record.reason = reason
        wait_ms = min(RETRY_LAST_MS, RETRY_FIRST_MS << min(record.failures - 1, 8))
        record.due_ms = now_ms + int(wait_ms * (0.75 + 0.5 * self._random.random()))

    def hurry(self, now_ms: int, older_than_ms: int) -> None:
        """Make all due that failed, or were provided `older_than_ms` ago: the network around us has grown."""
        for record in self._records.values():
            if record.failures or now_ms - record.provided_at_ms >= older_than_ms:
                record.due_ms = min(record.due_ms, now_ms)


def _rank(record: ProviderRecord) -> tuple[bool, bool, int, int]:
    return (record.provided_at_ms > 0, record.failures > 0, _ORDER.index(record.kind), record.due_ms)


def failing(records: Iterable[ProviderRecord]) -> tuple[ProviderRecord, ...]:
    """Those that the DHT did not take at the last try."""
    return tuple(record for record in records if record.failures)
