"""Keeps the desired models resident: resolve, fetch, load, serve; what fails is tried again for ever."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

import trio

from octonode.engines.contract import Engine, LoadRequest
from octonode.errors import OctonodeError
from octonode.tasks.faults import told
from octonode.tasks.neighbours import Engines, FetchProgress, Gate, LoadRequestFor, ModelSource, open_gate
from octonode.tasks.resident import LoadedBefore, ModelState, ModelStatus, Resident, ResolvedModel
from octonode.tasks.room import NoRoom, Room, Use

__all__ = [
    "Engines",
    "FetchProgress",
    "Gate",
    "LoadRequestFor",
    "ModelSource",
    "ModelState",
    "ModelStatus",
    "Residency",
    "Resident",
    "ResolvedModel",
]

log = logging.getLogger(__name__)

MODELS_MAX = 64
"""Desired models at once; one more is refused."""
PROGRESS_SECONDS = 0.2
"""Fetch progress wakes watchers at most this often."""
ASK_AGAIN_SECONDS = 1.0
"""A model that found no room is tried again at most this often, however many ask for it."""


class _Wish:
    """One desired model: its status, and the scope and bell of the task that pursues it."""

    def __init__(self, reference: str) -> None:
        self.status = ModelStatus(reference, "resolving")
        self.scope = trio.CancelScope()
        self.hurry = trio.Event()
        self.retry_at = 0.0
        self.started = False
        self.asked = True
        """Somebody waits for it: others may be unloaded for it, once."""
        self.used_at = 0.0
        """Of the loop: the begin or the end of its last task, or its load."""
        self.no_room = False
        self.tried_at = 0.0
        """When room for it was looked for last."""


class Residency:
    """The desired models and how far each is. Constructor without I/O; `run` does the work."""

    def __init__(
        self,
        *,
        source: ModelSource,
        engines: Engines,
        load_request: LoadRequestFor,
        gate: Gate = open_gate,
        room: Room | None = None,
        keep_loaded: Collection[str] = (),
        retry_seconds: float = 2.0,
        retry_seconds_max: float = 300.0,
    ) -> None:
        """Without a `room`, memory is nobody's concern. References in `keep_loaded` are never unloaded for others."""
        self._source = source
        self._engines = engines
        self._load_request = load_request
        self._gate = gate
        self._room = room
        self._keep_loaded = frozenset(keep_loaded)
        self._retry_seconds = retry_seconds
        self._retry_seconds_max = retry_seconds_max
        self._wishes: dict[str, _Wish] = {}
        self._by_root: dict[str, _Wish] = {}
        self._desired: dict[str, LoadRequest] = {}
        self._changes = 0
        self._news = trio.lowlevel.ParkingLot()
        self._progress_at = 0.0
        self._nursery: trio.Nursery | None = None

    # What others read.

    @property
    def changes(self) -> int:
        """Grows with each change of any model's state."""
        return self._changes

    async def wait_changed(self, seen: int) -> int:
        """Returns `changes` as soon as it differs from `seen`."""
        while self._changes == seen:
            await self._news.park()
        return self._changes

    def status(self) -> Sequence[ModelStatus]:
        """Every desired model, in the order of being added."""
        return [self._shown(wish) for wish in self._wishes.values()]

    def model(self, root: str) -> ModelStatus | None:
        """The status of the desired model with this root; None when nobody desires it."""
        wish = self._by_root.get(root)
        return None if wish is None else self._shown(wish)

    def engine(self, root: str) -> Engine | None:
        """The loaded engine of a desired model, None while it is not ready."""
        return self._engines.engine(root) if root in self._by_root else None

    def _shown(self, wish: _Wish) -> ModelStatus:
        if wish.status.state != "failed" or self._nursery is None:
            return wish.status
        return replace(wish.status, retry_in_seconds=max(0.0, wish.retry_at - trio.current_time()))

    # What others wish.

    def add(self, reference: str) -> None:
        """Keep this model resident from now on. The same reference again tries at once what waits for a retry.

        Raises OctonodeError (OVERLOADED) at `MODELS_MAX`.
        """
        wish = self._wishes.get(reference)
        if wish is not None:
            wish.asked = True
            wish.hurry.set()
            return
        if len(self._wishes) >= MODELS_MAX:
            raise OctonodeError(f"{MODELS_MAX} models are kept here already; remove one first", code="OVERLOADED")
        wish = self._wishes[reference] = _Wish(reference)
        self._start(wish)
        self._changed()

    def ask(self, root: str) -> None:
        """A task wants to use it now: it counts as used, and comes back where it was unloaded to make room."""
        wish = self._by_root.get(root)
        if wish is None or self._nursery is None:
            return
        now = trio.current_time()
        late = now - wish.tried_at >= ASK_AGAIN_SECONDS
        if wish.status.state == "standby" or (wish.status.state == "failed" and wish.no_room and late):
            wish.hurry.set()
            self._set(wish, "loading")
        wish.asked = wish.asked or wish.status.state == "loading"
        wish.used_at = now

    def used(self, root: str) -> None:
        """A task that used it has ended."""
        wish = self._by_root.get(root)
        if wish is not None and wish.status.state == "serving":
            wish.used_at = trio.current_time()

    def remove(self, root: str) -> bool:
        """Unload it and want it no more; `root` may also be the reference. False when it was not desired."""
        gone = [wish for wish in self._wishes.values() if root in (wish.status.reference, _root(wish))]
        for wish in gone:
            del self._wishes[wish.status.reference]
            self._forget_root(wish)
            wish.scope.cancel()
        if gone:
            self._changed()
        return bool(gone)

    def rename(self, reference: str, to: str) -> None:
        """Keep a desired model under another reference from now on; it stays as it is. `to` must not be desired."""
        assert to not in self._wishes
        wish = self._wishes.pop(reference)
        wish.status = replace(wish.status, reference=to)
        self._wishes[to] = wish
        self._changed()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pursues every desired model until cancelled; models may be added before it runs."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for wish in self._wishes.values():
                    self._start(wish)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # The pursuit of one model.

    def _start(self, wish: _Wish) -> None:
        if self._nursery is not None and not wish.started:
            wish.started = True
            self._nursery.start_soon(self._pursue, wish)

    async def _pursue(self, wish: _Wish) -> None:
        with wish.scope:
            while True:
                try:
                    await self._bring_up(wish)
                    await self._watch(wish)
                except NoRoom as error:
                    await self._without_room(wish, error)
                except Exception as error:
                    if wish.status.state != "standby":  # it was unloaded for another one
                        await self._fail(wish, error)
                if wish.status.state == "standby":
                    await wish.hurry.wait()

    async def _without_room(self, wish: _Wish, error: NoRoom) -> None:
        """Failed, for whoever asks; else on standby where other models have the room."""
        self._unload(wish)
        wish.no_room = True
        if error.asked or not error.held:
            wish.asked = False
            await self._fail(wish, error)
        elif not wish.asked:  # else somebody asked meanwhile: try again
            self._to_standby(wish, error.message)

    def _to_standby(self, wish: _Wish, reason: str) -> None:
        """Until somebody asks for it, or other models leave."""
        wish.hurry = trio.Event()
        self._set(wish, "standby", reason=reason)

    async def _bring_up(self, wish: _Wish) -> None:
        """Resolve, fetch, load. Raises OctonodeError."""
        reference = wish.status.reference
        if wish.status.model is None:
            self._set(wish, "resolving")
            resolved = await self._source.resolve(reference)
            other = self._by_root.get(resolved.root)
            if other is not None and other is not wish:
                log.info("%s is the same model as %s, which is kept already", reference, other.status.reference)
                self.remove(reference)
                await trio.lowlevel.checkpoint()  # cancelled by now
            wish.status = replace(wish.status, model=resolved)
            self._by_root[resolved.root] = wish
        model = wish.status.model
        assert model is not None
        path = self._source.path(model.root)
        if path is None:
            self._set(wish, "fetching", total_bytes=model.size_bytes)
            await self._source.fetch(model.root, lambda done, total: self._fetched(wish, done, total))
            path = self._source.path(model.root)
            if path is None:
                raise OctonodeError("the fetch ended and the file is not whole; try again", code="MODEL_UNAVAILABLE")
        self._set(wish, "loading")
        admitted = await self._gate(model, path)
        request = self._load_request(*admitted)
        if self._room is not None:
            request = await self._make_room(self._room, wish, admitted[0], request)
        self._desired[model.root] = request
        self._engines.set_desired(dict(self._desired))
        await self._serve(wish)
        wish.used_at, wish.asked = trio.current_time(), False

    async def _serve(self, wish: _Wish) -> None:
        """Once its engine is ready. Raises what `wait_ready` raises."""
        began = trio.current_time()
        engine = await self._engines.wait_ready(_root(wish))
        wish.status = replace(wish.status, before=LoadedBefore(engine.facts, trio.current_time() - began))
        self._set(wish, "serving", failures=0)

    async def _make_room(self, room: Room, wish: _Wish, model: ResolvedModel, request: LoadRequest) -> LoadRequest:
        """The request with its devices, once those that had to leave for it are gone. Raises NoRoom."""
        while (taken := await room.take(model, request, asked=wish.asked, use=self._use)) is None:
            await self._until_gone(room)
        wish.asked = wish.no_room = False
        wish.tried_at = trio.current_time()
        for root in taken.evicted:
            other = self._by_root[root]
            log.info("%s is unloaded to make room for %s", other.status.reference, wish.status.reference)
            self._unload(other)
            self._to_standby(other, f"unloaded to make room for {wish.status.reference}, until it is asked for")
        if taken.evicted:
            await self._until_gone(room)
        return taken.request

    async def _until_gone(self, room: Room) -> None:
        """Those that lost their seats hold their memory until their processes have ended."""
        for root in room.leaving:
            await self._engines.wait_gone(root)
            room.gone(root)

    def _use(self, root: str) -> Use:
        wish, engine = self._by_root[root], self._engines.engine(root)
        reference = wish.status.reference
        busy = wish.status.state != "serving" or engine is None or engine.running > 0
        return Use(reference, busy, reference in self._keep_loaded, trio.current_time() - wish.used_at)

    def _unload(self, wish: _Wish) -> None:
        """It stays desired here, and not by the engines."""
        if self._desired.pop(_root(wish), None) is not None:
            self._engines.set_desired(dict(self._desired))

    async def _watch(self, wish: _Wish) -> None:
        """While it is served: a worker that dies makes it `loading` again. Raises what `wait_ready` raises."""
        root = _root(wish)
        while root in self._desired:
            seen = self._engines.changes
            if self._engines.engine(root) is None:
                self._set(wish, "loading")
                await self._serve(wish)
            await self._engines.wait_changed(seen)

    async def _fail(self, wish: _Wish, error: Exception) -> None:
        """Show why, then wait: longer with each failure in a row, until somebody hurries it."""
        known = told(error)
        if known is None:
            log.error("%s: a bug: %r", wish.status.reference, error, exc_info=error)
            known = OctonodeError("this node met a bug in itself; see its log", code="INTERNAL")
        failures = wish.status.failures + 1
        wait_seconds = min(self._retry_seconds_max, self._retry_seconds * 2 ** min(failures - 1, 20))
        wish.retry_at = trio.current_time() + wait_seconds
        self._set(wish, "failed", reason=known.message, code=known.code, failures=failures)
        log.warning("%s: %s; next try in %.0f s", wish.status.reference, known.message, wait_seconds)
        wish.hurry = trio.Event()
        self._leave_room(_root(wish))
        with trio.move_on_after(wait_seconds):
            await wish.hurry.wait()
        if wish.status.model is not None and known.code == "MODEL_NOT_FOUND":
            self._forget_root(wish)  # the name may mean another root by now
            wish.status = replace(wish.status, model=None)
        elif wish.status.model is not None and (wish.hurry.is_set() or wait_seconds >= self._retry_seconds_max):
            # The supervisor keeps a model that crashed too often in quarantine: it comes out when somebody asks, and
            # once in the longest pause.
            self._engines.release(wish.status.model.root)

    def _fetched(self, wish: _Wish, done: int, total: int) -> None:
        wish.status = replace(wish.status, done_bytes=done, total_bytes=total)
        now = trio.current_time()
        if now - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = now
            self._changed()

    def _set(
        self,
        wish: _Wish,
        state: ModelState,
        *,
        total_bytes: int = 0,
        reason: str = "",
        code: str = "",
        failures: int | None = None,
    ) -> None:
        if failures is None:
            failures = wish.status.failures
        wish.status = ModelStatus(
            wish.status.reference,
            state,
            wish.status.model,
            total_bytes=total_bytes,
            reason=reason,
            code=code,
            failures=failures,
            before=wish.status.before,
        )
        self._changed()

    def _forget_root(self, wish: _Wish) -> None:
        root = _root(wish)
        if self._by_root.get(root) is wish:
            del self._by_root[root]
            self._unload(wish)
            self._leave_room(root)

    def _leave_room(self, root: str) -> None:
        """Those on standby may fit now."""
        if self._room is None or not self._room.leave(root):
            return
        for other in self._by_root.values():
            if other.status.state == "standby":
                other.hurry.set()

    def _changed(self) -> None:
        self._changes += 1
        self._news.unpark_all()


def _root(wish: _Wish) -> str:
    return wish.status.model.root if wish.status.model is not None else ""
