"""Keeps what is pinned: brings it here, looks at it now and then, and lets it go. Spec: protocols/pin.md.

What is decided stands in `pins`; here is what is done about it. A pin is written down before its fetch begins, so that
neither a lost stream nor a restart undoes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from octonode.errors import OctonodeError
from octonode.ids import PeerId
from octonode.network.clock import wall_clock_ms
from octonode.protocol.pins import PinFacts, PinRequest, PinState, Room
from octonode.tasks.admission import Refusal
from octonode.tasks.faults import told
from octonode.tasks.pin_ports import Keeper, PinStore, Progress
from octonode.tasks.pins import Pin, PinBook, Quotas, Released

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
RETRY_SECONDS_MAX = 300.0
LOOK_SECONDS = 30.0
"""Between two looks at what is kept, for models that lost blocks or were removed, and at what may be let go."""
REASON_CHARACTERS_MAX = 120
_FINAL = frozenset({"DISK_FULL", "READ_ONLY", "TOO_LARGE", "UNSUPPORTED", "BAD_REQUEST", "BAD_MESSAGE", "FORBIDDEN"})
"""Faults of a first fetch that trying again does not mend: the pin is forgotten."""


@dataclass(eq=False, slots=True)
class _Work:
    """How far one root is, and the scope of what is done for it."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done_bytes: int = 0
    total_bytes: int = 0
    failures: int = 0
    error: OctonodeError | None = None
    """Of the last try."""
    refused: dict[PeerId, Refusal] = field(default_factory=dict)
    """Whose pin cannot stand, as was found while fetching."""


class Keeping:
    """Constructor without I/O; `run` owns the work. `changed`: what is pinned here is different now."""

    def __init__(
        self,
        *,
        own: PeerId,
        quotas: Quotas,
        keeper: Keeper,
        store: PinStore,
        changed: Callable[[], None] = lambda: None,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._own = own
        self._keeper = keeper
        self._store = store
        self._tell_others = changed
        self._now_ms = now_ms
        self.book = PinBook(quotas, own)
        self._work: dict[str, _Work] = {}
        self._news = trio.lowlevel.ParkingLot()
        self._look_now = trio.Event()
        self._lock = trio.Lock()
        """One change of the book at a time, decision and row together."""
        self._nursery: trio.Nursery | None = None

    @property
    def running(self) -> bool:
        return self._nursery is not None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetches and keeps what is pinned until cancelled."""
        self.book = PinBook(self.book.quotas, self._own, *await self._store.load())
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for root in self.book.roots():
                    self._start(root)
                nursery.start_soon(self._look)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # What is kept.

    def facts(self, pin: Pin) -> PinFacts:
        held, work = self._keeper.held(pin.root), self._work.get(pin.root, _Work())
        state: PinState = "kept" if held and held.complete else "failed" if work.error else "fetching"
        have_bytes = held.have_bytes if held else 0
        return PinFacts(
            root=pin.root,
            asker=pin.asker,
            until_ms=pin.until_ms,
            since_ms=pin.since_ms,
            size_bytes=pin.size_bytes,
            have_bytes=have_bytes if state == "kept" else max(have_bytes, work.done_bytes),
            state=state,
            reason=work.error.message[:REASON_CHARACTERS_MAX] if work.error and state == "failed" else "",
        )

    async def room(self, asker: PeerId) -> Room:
        return self.book.room(asker, await self._keeper.disk_free_bytes())

    # Taking and undoing pins.

    async def take(self, request: PinRequest, asker: PeerId) -> None:
        """Write the pin down and begin with it. Raises OctonodeError with the refusal's code."""
        await self._keeper.check(request.root, request.manifest, asker)
        async with self._lock:
            held, now_ms = self._keeper.held(request.root), self._now_ms()
            if held is not None and held.complete:
                request = replace(request, size_bytes=held.size_bytes)
            refusal = self.book.decide(
                request,
                asker,
                have_bytes=held.have_bytes if held else 0,
                disk_free_bytes=await self._keeper.disk_free_bytes(),
                now_ms=now_ms,
            )
            if refusal is not None:
                raise _refused(refusal)
            if held is not None and held.pinned and asker != self._own and not self.book.of(request.root):
                await self._write(Pin(request.root, self._own, 0, now_ms, held.size_bytes, kept=held.complete))
            pin = self.book.granted(request, asker, brought=held is None and asker != self._own, now_ms=now_ms)
            if held is not None and held.complete:
                pin = replace(pin, kept=True)
            await self._write(pin, request.manifest)
            if pin.kept:
                await self._keeper.keep(request.root, True)
        self._start(request.root)
        self._look_now.set()

    async def until_kept(self, root: str, asker: PeerId, progress: Progress) -> None:
        """Returns once the model is here. Raises what keeps it from being kept; the pin may stand all the same."""
        work = self._work.get(root)
        if work is None:
            raise OctonodeError("this node is stopping; ask again", code="LEAVING", retry_after_seconds=5)
        seen = work.failures
        while True:
            pin = self.book.get(root, asker)
            if pin is None:
                unpinned = Refusal("CANCELED", "it was unpinned meanwhile")
                raise _refused(work.refused.get(asker, unpinned))
            if work.error is not None and work.failures > seen:
                message = f"{work.error.message} (it stays pinned, and is tried again; unpin it to end that)"
                raise OctonodeError(message, code=work.error.code)
            if pin.kept and work.error is None and (held := self._keeper.held(root)) is not None and held.complete:
                return
            progress(work.done_bytes, work.total_bytes or pin.size_bytes)
            await self._news.park()

    async def undo(self, root: str, asker: PeerId) -> None:
        """Nothing happens where it is not pinned."""
        async with self._lock:
            pin = self.book.get(root, asker)
            if pin is not None:
                await self._drop(pin)
            elif asker == self._own and not self.book.of(root):
                await self._keeper.keep(root, False)  # pinned by a fetch, which leaves no row
        self._look_now.set()

    async def _write(self, pin: Pin, manifest: bytes = b"") -> None:
        await self._store.save(pin, manifest)
        self.book.put(pin)
        self._tell()

    async def _drop(self, pin: Pin) -> None:
        """Under the lock. With the last pin of a model ends what is done for it, ourselves as the case may be."""
        last = len(self.book.of(pin.root)) == 1
        released = Released(pin.root, pin.size_bytes, self._now_ms()) if last and pin.brought else None
        await self._store.drop(pin, released)
        self.book.drop(pin.root, pin.asker)
        if released is not None:
            self.book.released[pin.root] = released
        if last:
            await self._keeper.keep(pin.root, False)
            work = self._work.pop(pin.root, None)
            if work is not None:
                work.scope.cancel()
        self._tell()

    def _tell(self) -> None:
        self._news.unpark_all()
        self._tell_others()

    # Keeping one model.

    def _start(self, root: str) -> None:
        if self._nursery is not None and root not in self._work:
            self._work[root] = _Work()
            self._nursery.start_soon(self._pursue, root, self._work[root])

    async def _pursue(self, root: str, work: _Work) -> None:
        """While anybody pins it: bring it here, and look at it now and then."""
        with work.scope:
            while True:
                wait_seconds = LOOK_SECONDS
                try:
                    await self._bring(root, work)
                    work.error = None
                except Exception as error:
                    wait_seconds = await self._failed(root, work, error)
                self._news.unpark_all()
                await trio.sleep(wait_seconds)

    async def _bring(self, root: str, work: _Work) -> None:
        held = self._keeper.held(root)
        if held is None and any(pin.kept for pin in self.book.of(root)):
            log.warning("%s was removed by force: it is pinned no more", root)
            await self._drop_all(root)
            return
        if held is None or not held.complete:
            await self._fetch(root, work)
            held = self._keeper.held(root)
        if held is None or not held.complete:
            raise OctonodeError("the fetch ended and the model is not whole", code="MODEL_UNAVAILABLE")
        async with self._lock:
            if not held.pinned:
                await self._keeper.keep(root, True)
            for pin in self.book.of(root):
                if pin.asker in work.refused:
                    await self._drop(pin)
                elif not pin.kept or pin.size_bytes != held.size_bytes:
                    await self._write(replace(pin, kept=True, size_bytes=held.size_bytes))

    async def _fetch(self, root: str, work: _Work) -> None:
        """Raises what the fetch raises; a refusal too where the model is larger than was said."""
        manifest = await self._store.manifest(root)
        while True:
            scope = trio.CancelScope()
            try:
                with scope:
                    await self._keeper.fetch(root, manifest, partial(self._came, root, work, scope))
            except OctonodeError as error:
                if error.code != "DISK_FULL" or not await self._make_room(root):
                    raise
                continue
            if scope.cancelled_caught:
                raise _refused(next(iter(work.refused.values())))
            return

    def _came(self, root: str, work: _Work, scope: trio.CancelScope, done: int, total: int) -> None:
        """Progress of a fetch; ends it where the model is too large for all who want it."""
        if total and total != work.total_bytes:
            work.total_bytes = total
            self._measure(root, work)
            if all(pin.asker in work.refused for pin in self.book.of(root)):
                scope.cancel()
        work.done_bytes = done
        self._news.unpark_all()

    def _measure(self, root: str, work: _Work) -> None:
        """Whose share does not hold the model as it turns out to be. The disk is the fetch's own to ask."""
        size_bytes = work.total_bytes
        for pin in self.book.of(root):
            refusal = self.book.fits(root, pin.asker, size_bytes, have_bytes=size_bytes, disk_free_bytes=0)
            if refusal is not None and not pin.kept:
                work.refused[pin.asker] = refusal

    async def _failed(self, root: str, work: _Work, error: Exception) -> float:
        """Seconds until the next try; what cannot succeed here is forgotten, and this ends."""
        known = told(error)
        if known is None:
            log.error("keeping %s met a bug: %r", root, error, exc_info=error)
            known = OctonodeError("this node met a bug in itself; see its log", code="INTERNAL")
        pins = self.book.of(root)
        if known.code in _FINAL and not any(pin.kept for pin in pins):
            log.warning("%s cannot be kept here: %s", root, known.message)
            for pin in pins:
                work.refused.setdefault(pin.asker, Refusal(known.code, known.message))
            with suppress(OctonodeError):  # the row cannot be written either: it is tried again with the fetch
                await self._drop_all(root)
        wait_seconds: float = min(RETRY_SECONDS_MAX, RETRY_SECONDS * 2 ** min(work.failures, 10))
        work.failures, work.error = work.failures + 1, known
        log.warning("%s is pinned and not here: %s; next try in %.0f s", root, known.message, wait_seconds)
        return wait_seconds

    async def _drop_all(self, root: str) -> None:
        async with self._lock:
            for pin in self.book.of(root):
                await self._drop(pin)
        self._look_now.set()
        await trio.lowlevel.checkpoint()  # cancelled by now, where this was the work for it

    # Letting go.

    async def _look(self) -> None:
        """Lets go, at every end of a pin and now and then."""
        while True:
            self._look_now = trio.Event()
            wait_seconds = LOOK_SECONDS
            try:
                await self._let_go()
                end_ms = self.book.next_end_ms()
                if end_ms:
                    wait_seconds = min(LOOK_SECONDS, max(0.01, (end_ms - self._now_ms()) / 1000))
            except OctonodeError as error:  # a full disk: the rows stay, and it is tried again
                log.warning("pins that have ended could not be let go: %s", error.message)
            except Exception:
                log.exception("looking after pins met a bug")
            with trio.move_on_after(wait_seconds):
                await self._look_now.wait()

    async def _let_go(self) -> None:
        """Drops pins when their time is over, and removes what nobody pins once others hold it."""
        async with self._lock:
            for pin in self.book.ended(self._now_ms()):
                log.info("the pin of %s by %s has ended", pin.root, pin.asker)
                await self._drop(pin)
        for root in tuple(self.book.released):
            held = self._keeper.held(root)
            if held is None or not held.complete or self._keeper.others(root):
                await self._remove_released(root)

    async def _make_room(self, root: str) -> bool:
        """Remove the model that was released longest ago. False when there is none."""
        for each in sorted(self.book.released.values(), key=lambda each: each.since_ms):
            if each.root != root and await self._remove_released(each.root):
                return True
        return False

    async def _remove_released(self, root: str) -> bool:
        async with self._lock:
            if root not in self.book.released:
                return False
            try:
                if self._keeper.held(root) is not None:
                    await self._keeper.remove(root)
            except OctonodeError as error:
                log.info("%s is pinned no more and stays for now: %s", root, error.message)
                return False
            del self.book.released[root]
            await self._store.forget(root)
        self._tell_others()
        return True


def _refused(refusal: Refusal) -> OctonodeError:
    return OctonodeError(refusal.message, code=refusal.code)
