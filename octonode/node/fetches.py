"""The fetches of this node: several at once, the most urgent first, paused and resumed, going on after a restart.

A fetch belongs to those who wait for it, and ends when the last of them leaves; one in the background belongs to
nobody and is written down in `OCTONODE_HOME/fetches.json`. Pausing ends the attempt: what came is kept in the store,
and no connection and no memory is held meanwhile.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import trio

from octonode.errors import NotFound, OctonodeError
from octonode.ipfs.cid import Cid
from octonode.models.fetching import FetchProgress, FetchReport
from octonode.models.placing import write_atomically
from octonode.node.events import Emit

log = logging.getLogger(__name__)

FETCHES_MAX: Final = 256
"""Running, waiting and paused; one more is refused."""
PRIORITY_MAX: Final = 100
EVENT_SECONDS: Final = 1.0
"""Between two progress events of one fetch."""
RETRY_SECONDS: Final = (5.0, 30.0, 120.0, 600.0)
"""A fetch in the background that failed is tried again after these, the last one for ever."""

State = Literal["queued", "running", "paused", "failed"]
OnProgress = Callable[[FetchProgress], None]
Act = Callable[["Fetch", OnProgress], Awaitable[FetchReport]]
"""(fetch, progress): one attempt. Cancelling it loses at most what was not synced."""
HINTS_MAX: Final = 16
FILE_HINT: Final = "file:"


@dataclass(eq=False, slots=True)
class Fetch:
    """One root that is being fetched or waits for it."""

    root: Cid
    order: int
    priority: int = 0
    background: bool = False
    hints: tuple[str, ...] = ()
    """Where it is said to be: multiaddrs of peers, `file:/path` of a file on this machine."""
    state: State = "queued"
    progress: FetchProgress | None = None
    reason: str = ""
    """Of the last failure."""
    failures: int = 0
    watchers: list[OnProgress] = field(default_factory=list)
    ended: trio.Event = field(default_factory=trio.Event)
    outcome: FetchReport | OctonodeError | None = None
    attempt: trio.CancelScope | None = None
    told_at: float = -math.inf

    @property
    def wanted(self) -> bool:
        return self.background or bool(self.watchers)


class Fetches:
    """`act` makes one attempt. At most `at_once_max` run at the same time; a more urgent one takes the place of a less
    urgent one, which goes on later from where it was."""

    def __init__(
        self,
        act: Act,
        *,
        home: Path,
        at_once_max: int,
        emit: Emit,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        self._act = act
        self._path = home / "fetches.json"
        self._at_once_max = at_once_max
        self._emit = emit
        self._retry_seconds = retry_seconds
        self._fetches: dict[Cid, Fetch] = {}
        self._count = 0
        self._nursery: trio.Nursery | None = None
        self._at_work: set[Cid] = set()
        """Roots with an attempt that has not come to its end, cancelled ones too: two never write the same model."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch until cancelled, what was in the background before the restart too."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for root, priority, paused, hints in await trio.to_thread.run_sync(self._read):
                    each = self._add(root, priority, hints)
                    each.background, each.state = True, "paused" if paused else "queued"
                self._schedule()
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def all(self) -> Sequence[Fetch]:
        """The most urgent first."""
        return sorted(self._fetches.values(), key=_urgency)

    # What others ask.

    async def fetch(
        self, root: Cid, progress: OnProgress, *, priority: int = 0, hints: tuple[str, ...] = ()
    ) -> FetchReport:
        """Wait until `root` is here, in a fetch of our own or in the one that runs. Raises what the attempt raises,
        CANCELED when somebody cancels it, OVERLOADED at FETCHES_MAX."""
        each = self._add(root.v1, priority, hints)
        each.watchers.append(progress)
        if each.progress is not None:
            progress(each.progress)
        try:
            self._schedule()
            await each.ended.wait()
        finally:
            each.watchers.remove(progress)
            if not each.wanted:
                self._end(each, OctonodeError("nobody waits for this fetch any more", code="CANCELED"))
        assert each.outcome is not None
        if isinstance(each.outcome, OctonodeError):
            raise each.outcome
        return each.outcome

    async def start(self, root: Cid, *, priority: int = 0, hints: tuple[str, ...] = ()) -> None:
        """Fetch `root` in the background, over restarts until it is here or cancelled."""
        each = self._add(root.v1, priority, hints)
        each.background = True
        self._schedule()
        await self._write()

    async def pause(self, root: Cid) -> Fetch:
        """Raises NotFound."""
        each = self._require(root)
        if each.state != "paused":
            self._set(each, "paused")
            self._schedule()
        await self._write()
        return each

    async def resume(self, root: Cid) -> Fetch:
        """From a pause, or at once after a failure. Raises NotFound."""
        each = self._require(root)
        if each.state in ("paused", "failed"):
            self._set(each, "queued")
            self._schedule()
        await self._write()
        return each

    async def prioritize(self, root: Cid, priority: int) -> Fetch:
        """Raises NotFound; BAD_REQUEST out of range."""
        each = self._require(root)
        each.priority = _checked(priority)
        self._schedule()
        await self._write()
        return each

    async def cancel(self, root: Cid) -> Fetch:
        """What came stays in the store as a part of the model. Raises NotFound."""
        each = self._require(root)
        each.background = False
        self._end(each, OctonodeError(f"the fetch of {root} was cancelled; what came is kept", code="CANCELED"))
        await self._write()
        return each

    # One fetch.

    def _add(self, root: Cid, priority: int, hints: tuple[str, ...]) -> Fetch:
        each = self._fetches.get(root)
        if each is not None:
            each.hints = tuple(dict.fromkeys((*each.hints, *hints)))[:HINTS_MAX]
            each.priority = max(each.priority, _checked(priority))
            if each.state == "failed":
                self._set(each, "queued")
            return each
        if len(self._fetches) >= FETCHES_MAX:
            raise OctonodeError(
                f"{FETCHES_MAX} fetches run or wait here already; see: octonode models fetches", code="OVERLOADED"
            )
        self._count += 1
        each = self._fetches[root] = Fetch(root, self._count, _checked(priority), hints=hints[:HINTS_MAX])
        return each

    def _require(self, root: Cid) -> Fetch:
        each = self._fetches.get(root.v1)
        if each is None:
            raise NotFound(f"{root} is not being fetched; see: octonode models fetches", code="MODEL_NOT_FOUND")
        return each

    def _schedule(self) -> None:
        """Start what may run now; end attempts that are paused, or that others come before."""
        if self._nursery is None:
            return
        may_run = [each for each in self.all() if each.state in ("queued", "running")][: self._at_once_max]
        for each in self._fetches.values():
            if each in may_run and each.attempt is None and each.root not in self._at_work:
                self._at_work.add(each.root)
                each.attempt = trio.CancelScope()
                self._set(each, "running")
                self._nursery.start_soon(self._attempt, each, each.attempt)
            elif each not in may_run and each.attempt is not None:
                each.attempt.cancel()
                if each.state == "running":
                    self._set(each, "queued")

    async def _attempt(self, each: Fetch, scope: trio.CancelScope) -> None:
        outcome: FetchReport | OctonodeError | None = None
        try:
            with scope:
                outcome = await self._act(each, lambda progress: self._show(each, progress))
        except OctonodeError as error:
            outcome = error
        except Exception:
            log.exception("%s: a bug", each.root)
            outcome = OctonodeError("this node met a bug in itself; see its log", code="INTERNAL")
        finally:
            self._at_work.discard(each.root)
            each.attempt = None
        failed = isinstance(outcome, OctonodeError)
        if outcome is None or self._fetches.get(each.root) is not each or (failed and each.state == "paused"):
            self._schedule()  # paused, or another one came before it
        elif isinstance(outcome, OctonodeError) and each.background and not each.watchers:
            self._fail(each, outcome)
        else:
            self._end(each, outcome)
            await self._write()

    def _fail(self, each: Fetch, error: OctonodeError) -> None:
        """One in the background is tried again by itself."""
        wait_seconds = self._retry_seconds[min(each.failures, len(self._retry_seconds) - 1)]
        each.failures += 1
        each.reason = error.message
        log.warning("%s: %s; next try in %.0f s", each.root, error.message, wait_seconds)
        self._set(each, "failed")
        assert self._nursery is not None
        self._nursery.start_soon(self._retry, each, each.failures, wait_seconds)
        self._schedule()

    async def _retry(self, each: Fetch, failures: int, wait_seconds: float) -> None:
        await trio.sleep(wait_seconds)
        if self._fetches.get(each.root) is each and each.state == "failed" and each.failures == failures:
            self._set(each, "queued")
            self._schedule()

    def _end(self, each: Fetch, outcome: FetchReport | OctonodeError) -> None:
        if self._fetches.get(each.root) is each:
            del self._fetches[each.root]
            failed = isinstance(outcome, OctonodeError)
            self._emit("fetch", root=each.root.text, state="ended" if failed else "done", **_facts(each))
        if each.attempt is not None:
            each.attempt.cancel()
        each.outcome = each.outcome or outcome
        each.ended.set()
        self._schedule()

    def _set(self, each: Fetch, state: State) -> None:
        each.state = state
        self._emit("fetch", root=each.root.text, state=state, **_facts(each))

    def _show(self, each: Fetch, progress: FetchProgress) -> None:
        each.progress = progress
        for watcher in tuple(each.watchers):
            watcher(progress)
        now = trio.current_time()
        if now - each.told_at >= EVENT_SECONDS:
            each.told_at = now
            self._emit("fetch", root=each.root.text, state=each.state, **_facts(each))

    # On disk.

    def _read(self) -> list[tuple[Cid, int, bool, tuple[str, ...]]]:
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            return [
                (Cid.parse(row["root"]), _checked(int(row["priority"])), bool(row["paused"]), tuple(row["hints"]))
                for row in rows
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, OctonodeError) as error:
            log.warning("%s cannot be read (%s): start those fetches again", self._path, error)
            return []

    async def _write(self) -> None:
        rows = [
            {
                "root": each.root.text,
                "priority": each.priority,
                "paused": each.state == "paused",
                "hints": each.hints,
            }
            for each in self._fetches.values()
            if each.background
        ]
        data = json.dumps(rows, indent=1).encode() + b"\n"
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(write_atomically, self._path, data, 0o600)
            except OctonodeError as error:  # a full disk: they run on, and are written down at the next change
                log.warning("fetches in the background are not written down: %s", error.message)


def _urgency(each: Fetch) -> tuple[int, int]:
    return -each.priority, each.order


def _checked(priority: int) -> int:
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
        raise OctonodeError(f"a priority is from {-PRIORITY_MAX} to {PRIORITY_MAX}", code="BAD_REQUEST")
    return priority


def _facts(each: Fetch) -> dict[str, int | float]:
    progress = each.progress
    if progress is None:
        return {"done_bytes": 0, "total_bytes": 0, "bytes_per_second": 0.0}
    return {
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "bytes_per_second": round(progress.bytes_per_second, 1),
    }
