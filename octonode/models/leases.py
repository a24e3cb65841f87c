"""Who has a model's files open: an engine, a fetch, a check, a peer that is handed blocks. What is held is not removed.

Two things in a model's directory. `use.lock` is held shared (flock) by every user for as long as it uses the model,
and exclusively by who removes it, so other octonode processes respect it, and the kernel lets go when a user dies,
however it dies. `use-<pid>-<n>.json` says for people who that is; it is believed only while its process lives. A peer
that is handed a block holds the lock for that block alone and leaves no note.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from octonode.errors import NotFound, Refused
from octonode.models.disk import NO_SPACE, READ_ONLY

Kind = Literal["engine", "fetch", "verify", "upload", "quantize", "stream"]

LOCK: Final = "use.lock"
NOTES_MAX: Final = 64
"""Notes that are read; more users than that are there, unnamed."""
SHARED_TRIES: Final = 500
SHARED_PAUSE_SECONDS: Final = 0.001
_NOTE: Final = "use-"
_NOTE_BYTES_MAX: Final = 4096
_WHAT: Final[dict[str, tuple[str, str]]] = {
    "engine": ("runs it", "stop serving it: octonode models serve NAME --stop, or use --force, which unloads it first"),
    "fetch": ("writes it", "wait for the fetch, or end it where it was begun"),
    "verify": ("checks it", "wait for the check, or end it where it was begun"),
    "upload": ("takes it in", "wait for the upload, or end it where it was begun"),
    "quantize": ("makes a smaller one of it", "wait for that, or end it where it was begun"),
    "stream": ("hands its blocks to a peer", "try again in a moment, or use --force: that peer still gets its block"),
}
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Holder:
    """One user of a model's files."""

    kind: Kind
    owner: str
    """For people: `engine scripted`, `a fetch`."""
    pid: int
    since_ms: int

    @property
    def text(self) -> str:
        return f"{self.owner} (process {self.pid}) {_WHAT[self.kind][0]}" if self.pid else f"{self.owner} reads it"


class Lease:
    """While it is open the model stays. Closing is idempotent. `descriptor` is -1 where the disk takes no lock file."""

    def __init__(self, descriptor: int, note: Path | None, holder: Holder) -> None:
        self.descriptor = descriptor
        self.holder = holder
        self._note = note

    def hand_to(self, pid: int) -> None:
        """A child that inherited the descriptor uses the model now: it stays until the child's end, even past ours."""
        self._drop_note()
        self.holder = Holder(self.holder.kind, self.holder.owner, pid, self.holder.since_ms)
        if self._note is not None:
            self._note = _write_note(self._note.parent, self.holder)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        self._drop_note()
        if descriptor >= 0:
            os.close(descriptor)  # not LOCK_UN: a child that inherited the lock keeps it

    def _drop_note(self) -> None:
        if self._note is not None:
            with contextlib.suppress(OSError):
                self._note.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ModelLeases:
    """The leases of the model in `directory`. Every method takes microseconds; safe from threads and processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    def take(self, kind: Kind, owner: str) -> Lease:
        """Raises NotFound (MODEL_NOT_FOUND) when the model is being removed, or gone."""
        descriptor = self.hold_open()
        if descriptor is None:
            raise NotFound(f"{self._directory.name} was removed from the store meanwhile", code="MODEL_NOT_FOUND")
        holder = Holder(kind, owner, os.getpid(), time.time_ns() // 1_000_000)
        return Lease(descriptor, _write_note(self._directory, holder) if descriptor >= 0 else None, holder)

    def hold_open(self) -> int | None:
        """A descriptor that keeps the model until it is closed; None when the model is being removed, or gone.

        -1 where the disk takes no lock file, being read-only or full: there nothing is removed, or nothing else helps.
        """
        try:
            descriptor = self._open()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in READ_ONLY | NO_SPACE:
                return -1
            raise
        try:
            _lock_shared(descriptor)
            if os.fstat(descriptor).st_ino == os.stat(self._directory / LOCK).st_ino:
                return descriptor
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):  # a network disk without locks
                return descriptor
        os.close(descriptor)
        return None

    def _open(self) -> int:
        path = self._directory / LOCK
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def holders(self) -> tuple[Holder, ...]:
        """Who uses it now, in this process and in others; empty when it may be removed."""
        with self._exclusively() as alone:
            return () if alone else self._named()

    @contextmanager
    def removing(self, what: str, *, force: bool = False) -> Iterator[None]:
        """Nobody can take a lease inside the block. Raises Refused (IN_USE) that says who holds it and what to do.

        With `force` peers that are handed blocks are no reason: they read their open file to its end.
        """
        with self._exclusively() as alone:
            if not alone:
                holders = self._named()
                if not force or any(holder.kind != "stream" for holder in holders):
                    raise in_use(what, holders)
            yield

    @contextmanager
    def _exclusively(self) -> Iterator[bool]:
        try:
            descriptor = self._open()
        except FileNotFoundError:
            yield True
            return
        except OSError as error:
            if error.errno in READ_ONLY | NO_SPACE:  # no lock file was ever made, and none can be
                yield True
                return
            raise
        try:
            yield self._alone(descriptor)
        finally:
            os.close(descriptor)

    def _alone(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.ENOLCK, errno.ENOTSUP)
        for note in self._notes():  # of users that died
            with contextlib.suppress(OSError):
                note.unlink(missing_ok=True)
        return True

    def _notes(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(self._directory.glob(f"{_NOTE}*.json"))[:NOTES_MAX]
        return []

    def _named(self) -> tuple[Holder, ...]:
        found = [holder for note in self._notes() if (holder := _read_note(note)) is not None]
        return tuple(found) or (Holder("stream", "a peer, or another octonode process,", 0, 0),)


def in_use(what: str, holders: tuple[Holder, ...]) -> Refused:
    """The refusal to remove `what`: who holds it, and what to do."""
    names = "; ".join(holder.text for holder in holders[:4])
    advice = _WHAT[holders[0].kind][1]
    return Refused(
        f"{what} is in use: {names}. To remove it, {advice}",
        code="IN_USE",
        detail={"holders": [{"kind": each.kind, "owner": each.owner, "pid": each.pid} for each in holders]},
    )


def _lock_shared(descriptor: int) -> None:
    """Raises OSError. Who only looks whether somebody holds it has it exclusively for microseconds: that is waited
    for, a removal is not."""
    for _ in range(SHARED_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        time.sleep(SHARED_PAUSE_SECONDS)
    raise BlockingIOError(errno.EWOULDBLOCK, "it is being removed")


def _write_note(directory: Path, holder: Holder) -> Path | None:
    """Only people need it, so a full disk is no reason to fail."""
    path = directory / f"{_NOTE}{holder.pid}-{os.getpid()}-{next(_numbers)}.json"
    said = {"kind": holder.kind, "owner": holder.owner, "pid": holder.pid, "since_ms": holder.since_ms}
    try:
        path.write_text(json.dumps(said), encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return path


def _read_note(path: Path) -> Holder | None:
    """None for a note that cannot be read, or whose process is gone."""
    try:
        with open(path, "rb") as file:
            said = json.loads(file.read(_NOTE_BYTES_MAX))
        holder = Holder(said["kind"], str(said["owner"]), int(said["pid"]), int(said["since_ms"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return holder if holder.kind in _WHAT and alive(holder.pid) else None


def alive(pid: int) -> bool:
    """False for a zombie too: it holds nothing any more."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except ProcessLookupError:
        return False
    except OSError:
        return True
