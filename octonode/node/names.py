"""The name records of this node: those that it signs, those that it has heard, and what they say of a version.

The book on disk (`models.names`) is the truth here; `network.name_keeping` keeps what stands in it alive out there.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping

import trio

from octonode.errors import OctonodeError
from octonode.identity import Signer
from octonode.ids import PeerId
from octonode.models import naming
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest
from octonode.network.clock import Chance, wall_clock_ms
from octonode.network.host import Host, ValueStore
from octonode.network.keys import name_record_key
from octonode.network.name_keeping import NameKeeper
from octonode.node.shelf import Shelf
from octonode.protocol.name_record import NameRecord, sign_name_record

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0
"""How long the network is asked for one record; what was found by then counts."""


class Names:
    """Signs our records and remembers those of others. `connect` it to the network before asking."""

    def __init__(self, library: Library, shelf: Shelf, signer: Signer) -> None:
        self._library = library
        self._shelf = shelf
        self._signer = signer
        self._book = library.catalogue.names
        self._values: ValueStore | None = None
        self._keeper: NameKeeper | None = None
        self._signing = trio.Lock()

    def connect(self, host: Host, values: ValueStore, random: Chance) -> None:
        self._values = values
        self._keeper = NameKeeper(
            host=host, values=values, records=self.records, heard=self._heard, renew=self.renew, random=random
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the records alive until cancelled."""
        assert self._keeper is not None
        await self._keeper.run(task_status=task_status)

    # What is known.

    def known(self, publisher: str, name: str) -> NameRecord | None:
        """The newest record seen, expired or not."""
        return self._book.record(publisher, name)

    async def ask(self, publisher: PeerId, name: str) -> NameRecord | None:
        """The newest record that the network or we ourselves have; None where there is none that is valid by now.

        An older one than we have seen is not believed.
        """
        if self._values is not None:
            try:
                found = await self._values.get(name_record_key(publisher, name), ASK_SECONDS)
                if found is not None:
                    await self._remember(found)
            except OctonodeError as error:
                log.debug("the name record of %s/%s could not be asked for: %s", publisher, name, error.message)
        record = await trio.to_thread.run_sync(self._book.record, publisher, name)
        return record if record is not None and record.expires_at_ms > wall_clock_ms() else None

    async def _remember(self, data: bytes) -> None:
        try:
            await trio.to_thread.run_sync(self._book.keep, data, wall_clock_ms())
        except OctonodeError as error:
            # An older one is common while a new one still travels, and harmless: it is not believed.
            log.log(logging.DEBUG if error.code == "ROLLBACK" else logging.WARNING, "passed over: %s", error.message)

    # What is kept alive.

    def records(self) -> Mapping[str, bytes]:
        """{key: data}: ours first, then those of names of which we hold a public model; b"" where none is known."""
        now_ms = wall_clock_ms()
        own = [record for record in self._book.all() if record.publisher == self._signer.peer_id]
        names = {(record.publisher, record.name) for record in own}
        held = [each.signed.manifest for each in self._shelf.public() if each.signed]
        wanted = [*sorted(names), *sorted({(each.publisher, each.name) for each in held} - names)]
        found = {}
        for publisher, name in wanted:
            record, data = self._book.record(publisher, name), self._book.data(publisher, name)
            valid = record is not None and record.expires_at_ms > now_ms
            found[name_record_key(PeerId(publisher), name)] = data if valid and data is not None else b""
        return found

    async def _heard(self, key: str, data: bytes) -> None:
        await self._remember(data)

    # What we say.

    async def renew(self) -> None:
        """Sign a record of each name of ours that says something new, or that is soon to expire. Call after every
        change of what is public here."""
        async with self._signing:
            by_name: defaultdict[str, list[SignedManifest]] = defaultdict(list)
            for held in self._shelf.public():
                if held.complete and held.signed and held.signed.manifest.publisher == self._signer.peer_id:
                    by_name[held.signed.manifest.name].append(held.signed)
            records = await trio.to_thread.run_sync(self._book.all)
            names = {record.name for record in records if record.publisher == self._signer.peer_id}
            for name in sorted(names | by_name.keys()):
                try:
                    await trio.to_thread.run_sync(self._renew_one, name, by_name[name])
                except OctonodeError as error:  # a full disk, say: what is published is still found by its manifests
                    log.warning("the record of %s could not be signed anew: %s", name, error.message)
        if self._keeper is not None:
            self._keeper.changed()

    def _renew_one(self, name: str, manifests: list[SignedManifest]) -> None:
        own, now_ms = self._signer.peer_id, wall_clock_ms()
        seqs = {each.cid.raw: each.manifest.seq for each in self._library.catalogue.named(own, name)}
        record = naming.published(own, name, self._book.record(own, name), manifests, now_ms, seqs=seqs)
        if record is not None:
            self._sign(record)

    def _sign(self, record: NameRecord) -> bytes:
        data = sign_name_record(self._signer, record)
        self._book.keep(data, wall_clock_ms())
        return data

    async def deprecate(self, name: str, version: str, *, reason: str, replaced_by: str, undo: bool) -> bool:
        """Say it, on disk and in the network. True when a peer took the record. Raises NotFound, Refused."""
        own = self._signer.peer_id

        def act() -> bytes:
            return self._sign(
                naming.deprecated(
                    self._book.record(own, name), f"{name}@{version}", version, reason=reason, replaced_by=replaced_by,
                    undo=undo, now_ms=wall_clock_ms(),
                )
            )  # fmt: skip

        async with self._signing:
            data = await trio.to_thread.run_sync(act)
        if self._keeper is None:
            return False
        self._keeper.changed()
        return await self._keeper.put(name_record_key(own, name), data)
