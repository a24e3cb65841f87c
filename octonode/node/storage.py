"""Keeping models for others, and asking others to keep ours: the room of pins, and its verbs over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import trio

from octonode.api.ports import Report
from octonode.api.schema import ModelProgress
from octonode.api.schema.facts import StorageFacts
from octonode.api.schema.pins import PinList, PinModel, PinRow, UnpinModel
from octonode.config import Config
from octonode.errors import ConfigError, NotFound, OctonodeError, Refused, printable
from octonode.ids import PeerId, public_key_from_peer_id
from octonode.ipfs.cid import Cid
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest
from octonode.network.clock import wall_clock_ms
from octonode.node.resolving import Resolver
from octonode.node.shelf import Shelf
from octonode.protocol.announcement import StorageRoom
from octonode.protocol.pins import MANIFEST_BYTES_MAX, PinFacts, PinRequest, PinResult, Room
from octonode.tasks.keeping import Keeping
from octonode.tasks.pin_asking import PinAsker
from octonode.tasks.pin_ports import Keeper, PinStore
from octonode.tasks.pinning import Pinning
from octonode.tasks.pins import DAY_MS, Quotas

DAYS_MAX = 36_500


@dataclass(frozen=True, slots=True)
class Storage:
    """What keeps models here, and who may ask for it."""

    keeping: Keeping
    pinning: Pinning
    offered: bool
    """Whether peers are told that there is room."""

    def room(self, disk_free_bytes: int) -> StorageRoom | None:
        """For the announcement; None where nobody may pin."""
        if not self.offered:
            return None
        room = self.keeping.book.room(self.keeping.book.owner, disk_free_bytes)
        return StorageRoom(room.total_bytes, room.used_bytes, room.free_bytes)


def build_storage(config: Config, own: PeerId, keeper: Keeper, store: PinStore, changed: Callable[[], None]) -> Storage:
    """Raises ConfigError for peer ids that are none, and for a role that does not go with other settings."""
    settings = config.storage
    if config.node.role == "storage" and config.models.serve:
        raise ConfigError(
            "a node with node.role = storage runs no engine: leave models.serve (--model) out, and pin what it is to "
            "keep with octonode models pin MODEL, or start it with --role full"
        )
    for peer in settings.allowed_peers:
        _peer(peer, "storage.allowed_peers")
    quotas = Quotas(settings.bytes_max, settings.bytes_per_peer_max, settings.days_max)
    keeping = Keeping(own=own, quotas=quotas, keeper=keeper, store=store, changed=changed)
    pinning = Pinning(keeping, own=own, allowed=[PeerId(peer) for peer in settings.allowed_peers])
    return Storage(keeping, pinning, config.node.role == "storage" or bool(settings.allowed_peers))


def to_serve(config: Config, wishes: Collection[str]) -> tuple[str, ...]:
    """References of what is loaded at the start: nothing in a node that runs no engine, whatever it ran before."""
    return (*config.models.serve, *wishes) if config.node.role == "full" else ()


def _peer(text: str, where: str) -> PeerId:
    try:
        public_key_from_peer_id(text)
    except ValueError:
        raise ConfigError(f"{where}: {text!r} is not a peer id; octonode id prints one, 12D3KooW...") from None
    return PeerId(text)


class Pins:
    """`api.ports.Pins`."""

    def __init__(
        self, storage: Storage, asker: PinAsker, *, own: PeerId, library: Library, shelf: Shelf, resolver: Resolver
    ) -> None:
        self._keeping = storage.keeping
        self._pinning = storage.pinning
        self._asker = asker
        self._own = own
        self._library = library
        self._shelf = shelf
        self._resolver = resolver

    async def list(self, on: str) -> PinList:
        if on and on != self._own:
            answer = await self._asker.ask(_on(on), PinRequest("list"), lambda done, total: None)
            return self._list(PeerId(on), answer.result.pins, answer.result.room)
        book = self._keeping.book
        rows = [self._row(self._keeping.facts(pin)) for pin in book.all()]
        for held in self._shelf.all():  # pinned by a fetch, which leaves no row
            if held.entry.row.pinned and not book.of(held.root):
                size_bytes = held.entry.row.size_bytes
                state = "kept" if held.complete else "fetching"
                facts = PinFacts(held.root, self._own, 0, 0, size_bytes, held.held_bytes, state)  # type: ignore[arg-type]
                rows.append(self._row(facts))
        rows.sort(key=lambda row: (row.reference, row.asker))
        return PinList(self._own, tuple(rows), _room(await self._keeping.room(self._own), len(rows)))

    async def pin(self, request: PinModel, report: Report) -> PinList:
        until_ms = 0
        if not 0 <= request.days <= DAYS_MAX:
            raise OctonodeError(f"days is from 1 to {DAYS_MAX}, or 0: for good", code="BAD_REQUEST")
        if request.days:
            until_ms = wall_clock_ms() + request.days * DAY_MS
        report(ModelProgress("find"))
        root, signed = await self._resolver.root_and_manifest(request.reference)
        if not request.on or request.on == self._own:
            return await self._pin_here(root, request.reference, until_ms)
        keeper = _on(request.on)
        held = self._shelf.get(root.text)
        if held is not None and held.complete and not held.public:
            raise Refused(
                f"{request.reference} is not public, so nobody can fetch it from here; first run: octonode models "
                f"publish {request.reference}",
                code="FORBIDDEN",
            )
        size_bytes = held.entry.row.size_bytes if held else signed.manifest.size_bytes if signed else 0
        answer = await self._asker.ask(
            keeper,
            PinRequest("pin", root.v1.text, until_ms, size_bytes, _short(signed)),
            lambda done, total: report(ModelProgress("pin", done, total)),
        )
        return self._list(keeper, answer.result.pins, answer.result.room, answer.task)

    async def _pin_here(self, root: Cid, reference: str, until_ms: int) -> PinList:
        held = self._shelf.get(root.text)
        if held is None or not held.complete:
            raise NotFound(
                f"{reference} is not wholly here; fetch it first: octonode models fetch {reference} --pin",
                code="MODEL_NOT_FOUND",
            )
        request = PinRequest("pin", held.root, until_ms, held.entry.row.size_bytes)
        result = await self._pinning.ask(request, self._own, lambda done, total: None)
        return self._list(self._own, result.pins, result.room)

    async def unpin(self, request: UnpinModel) -> PinList:
        root, _ = await self._resolver.root_and_manifest(request.reference)
        asked = PinRequest("unpin", root.v1.text)
        if request.on and request.on != self._own:
            keeper = _on(request.on)
            answer = await self._asker.ask(keeper, asked, lambda done, total: None)
            return self._list(keeper, (), answer.result.room, answer.task)
        others = {pin.asker for pin in self._keeping.book.of(root.v1.text)} - {self._own}
        for peer in (*others, self._own) if request.everybody else (self._own,):
            result: PinResult = await self._pinning.ask(asked, peer, lambda done, total: None)
        await trio.to_thread.run_sync(self._library.following.let_go, root.v1.text)  # nor as a previous version
        left = [self._keeping.facts(pin) for pin in self._keeping.book.of(root.v1.text)]
        return self._list(self._own, left, result.room)

    def _list(self, node: PeerId, pins: Sequence[PinFacts], room: Room, task: bytes = b"") -> PinList:
        return PinList(node, tuple(self._row(pin) for pin in pins), _room(room, len(pins)), task.hex())

    def _row(self, pin: PinFacts) -> PinRow:
        held = self._shelf.get(pin.root)
        return PinRow(
            root=pin.root,
            reference=(held.name if held else "") or f"cid:{pin.root}",
            asker=pin.asker,
            until_ms=pin.until_ms,
            since_ms=pin.since_ms,
            size_bytes=pin.size_bytes,
            have_bytes=pin.have_bytes,
            state=pin.state,
            reason=printable(pin.reason, len(pin.reason)),
        )


def _on(text: str) -> PeerId:
    try:
        return _peer(text, "on")
    except ConfigError as error:
        raise OctonodeError(error.message, code="BAD_REQUEST") from None


def _short(signed: SignedManifest | None) -> bytes:
    """The manifest for the keeper to show, where it fits."""
    data = signed.encode() if signed is not None else b""
    return data if len(data) <= MANIFEST_BYTES_MAX else b""


def _room(room: Room, pins: int) -> StorageFacts:
    return StorageFacts(room.total_bytes, room.used_bytes, room.free_bytes, room.peer_bytes_max, room.peer_bytes, pins)
