"""Keeps name records alive in the network: puts ours and those of models that we hold again and again.

Spec: protocols/discovery.md, "Name records". Records are lost with the nodes that keep them. So each is put at once
when it is new, again every ten minutes, and soon when a small network grows. Before one is put the network is asked for
it: a holder hears of a newer one this way, of a deprecation say, and passes that one on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from octonode.errors import OctonodeError
from octonode.ids import PeerId
from octonode.network.clock import Chance
from octonode.network.host import Host, ValueStore

log = logging.getLogger(__name__)

RECORDS_MAX = 256
"""Kept alive by one node; the rest is left to others that hold them."""
REPEAT_SECONDS = 600.0
RETRY_FIRST_SECONDS = 2.0
RETRY_LAST_SECONDS = 60.0
GROWTH_PAUSE_SECONDS = 10.0
"""When a small network grows a record is put again, so long after the last time."""
SMALL_NETWORK_PEERS = 20
ASK_SECONDS = 8.0
PUT_SECONDS = 20.0
PAUSE_SECONDS = 0.25
"""After each record: a node with many must not flood its neighbours."""
LOOK_SECONDS = 1.0
RENEW_SECONDS = 3600.0


@dataclass(slots=True)
class KeptRecord:
    """One key and how it stands; shown by `octonode models versions`."""

    key: str
    data: bytes
    due: float
    put_at: float | None = None
    """When a peer last took it, by the monotonic clock; None: never yet."""
    failures: int = 0
    """In a row."""
    reason: str = ""


class NameKeeper:
    """A service: constructor without I/O, then `run`. Faults of the network make it try again; they are not raised."""

    def __init__(
        self,
        *,
        host: Host,
        values: ValueStore,
        records: Callable[[], Mapping[str, bytes]],
        heard: Callable[[str, bytes], Awaitable[None]],
        renew: Callable[[], Awaitable[None]],
        random: Chance,
    ) -> None:
        """`records`: {key: the newest record that we know, or nothing where we know none yet}, of those to keep alive,
        the most important first, from memory. `heard`: the network has another one under a key. `renew`: time to sign
        ours anew where they are old."""
        self._host = host
        self._values = values
        self._records = records
        self._heard = heard
        self._renew = renew
        self._random = random
        self._kept: dict[str, KeptRecord] = {}
        self._woken = trio.Event()

    def changed(self) -> None:
        """`records` gives something else now. Cheap."""
        self._woken.set()

    def standing(self, key: str) -> KeptRecord | None:
        return self._kept.get(key)

    async def put(self, key: str, data: bytes) -> bool:
        """Put one now. False when nobody took it in time."""
        try:
            with trio.move_on_after(PUT_SECONDS):
                return await self._values.put(key, data)
        except OctonodeError as error:
            log.debug("the name record %s was not put: %s", key, error.message)
        return False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. `started` at once: nobody need be there yet."""
        task_status.started()
        renewed_at, seen = trio.current_time(), frozenset[PeerId]()
        while True:
            self._woken = trio.Event()
            if trio.current_time() - renewed_at > RENEW_SECONDS:
                renewed_at = trio.current_time()
                await self._renew()
            self._want()
            seen = self._watch_growth(seen)
            record = self._next_due()
            if record is not None and self._host.connected:
                await self._look_after(record)
                await trio.sleep(PAUSE_SECONDS)
            else:
                with trio.move_on_after(LOOK_SECONDS):
                    await self._woken.wait()

    def _want(self) -> None:
        wanted = dict(list(self._records().items())[:RECORDS_MAX])
        for key in self._kept.keys() - wanted.keys():
            del self._kept[key]
        for key, data in wanted.items():
            known = self._kept.get(key)
            if known is None or known.data != data:
                self._kept[key] = KeptRecord(key, data, due=trio.current_time())

    def _watch_growth(self, seen: frozenset[PeerId]) -> frozenset[PeerId]:
        connected, now = self._host.connected, trio.current_time()
        if connected - seen and len(connected) <= SMALL_NETWORK_PEERS:
            for record in self._kept.values():
                after = now if record.put_at is None else max(now, record.put_at + GROWTH_PAUSE_SECONDS)
                record.due = min(record.due, after)
        return connected

    def _next_due(self) -> KeptRecord | None:
        due = [record for record in self._kept.values() if record.due <= trio.current_time()]
        return min(due, key=lambda record: (record.put_at is not None, record.due), default=None)

    async def _look_after(self, record: KeptRecord) -> None:
        try:
            found = await self._values.get(record.key, ASK_SECONDS)
            if found is not None and found != record.data:
                await self._heard(record.key, found)
        except OctonodeError as error:
            log.debug("the name record %s could not be asked for: %s", record.key, error.message)
        record.data = self._records().get(record.key, record.data)
        now = trio.current_time()
        if not record.data:
            record.due, record.reason = now + REPEAT_SECONDS, "nobody has it"
        elif await self.put(record.key, record.data):
            record.put_at, record.failures, record.reason = now, 0, ""
            record.due = now + REPEAT_SECONDS * (0.9 + 0.2 * self._random.random())
        else:
            record.failures += 1
            record.reason = "no peer took it"
            wait_seconds = min(RETRY_LAST_SECONDS, RETRY_FIRST_SECONDS * 2 ** min(record.failures - 1, 8))
            record.due = now + wait_seconds * (0.75 + 0.5 * self._random.random())
