"""Looking for damage on the disk, a few leaves at a time, and what was found when: `OCTONODE_HOME/scrub.json`."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from octonode.errors import OctonodeError
from octonode.ipfs.layout import Leaf
from octonode.models.held import HeldModel
from octonode.models.placing import write_atomically

log = logging.getLogger(__name__)

NOTES_MAX: Final = 8192
"""Models that are remembered; those checked longest ago are forgotten first."""
LEAVES_IN_ONE: Final = 64
"""Rows of the index read at a time."""


@dataclass(frozen=True, slots=True)
class ScrubNote:
    """What is known of one model from its checks."""

    checked_ms: int = 0
    """When a check last came to its end; 0: never."""
    next_leaf: int = 0
    """Where the check that is under way goes on."""
    damaged: int = 0
    """Blocks found damaged by the last check, or so far by the one under way."""


class ScrubLog:
    """Safe from threads. A file that is damaged is begun anew: it only costs checks that were done already."""

    def __init__(self, home: Path) -> None:
        self._path = home / "scrub.json"
        self._lock = threading.Lock()
        self._notes: dict[str, ScrubNote] | None = None

    def note(self, root: str) -> ScrubNote:
        with self._lock:
            return self._read().get(root, ScrubNote())

    def set(self, root: str, note: ScrubNote) -> None:
        """Keep it, on disk too where that can be written."""
        with self._lock:
            notes = self._read()
            notes[root] = note
            while len(notes) > NOTES_MAX:
                del notes[min(notes, key=lambda each: notes[each].checked_ms)]
            try:
                write_atomically(self._path, json.dumps({name: asdict(each) for name, each in notes.items()}).encode())
            except OSError as error:
                log.info("%s cannot be written: %s", self._path, error)
            except OctonodeError as error:
                log.info("%s", error.message)

    def forget(self, root: str) -> None:
        with self._lock:
            self._read().pop(root, None)

    def _read(self) -> dict[str, ScrubNote]:
        if self._notes is None:
            self._notes = {}
            try:
                said = json.loads(self._path.read_bytes())
                for root, each in said.items():
                    self._notes[str(root)] = ScrubNote(**{name: int(value) for name, value in each.items()})
            except FileNotFoundError:
                pass
            except (OSError, ValueError, TypeError, AttributeError) as error:
                log.warning("%s is damaged and begun anew: %s", self._path, error)
        return self._notes


@dataclass(frozen=True, slots=True)
class Checked:
    """A stretch of leaves that was hashed."""

    next_leaf: int
    """0: the end was reached."""
    size_bytes: int
    bad: tuple[int, ...]
    """Marked as held and not what they should be; they are unmarked by now."""


def check_some(model: HeldModel, first_leaf: int, bytes_max: int) -> Checked:
    """Hash the held leaves from `first_leaf` on, about `bytes_max` of them. Raises FileNotFoundError when it is gone.

    What it reads is dropped from the page cache again: a look at everything must not push out what is in use.
    """
    marked, number, read_bytes = model.have_bits(), first_leaf, 0
    bad: list[int] = []
    files: dict[int, int] = {}
    try:
        while read_bytes < bytes_max:
            with model.lock:
                leaves = model.index.leaves_from(number, LEAVES_IN_ONE)
            if not leaves:
                number = 0
                break
            for leaf in leaves:
                number = leaf.number + 1
                if marked >> leaf.number & 1:
                    read_bytes += leaf.size_bytes
                    if not _holds(model, files, leaf):
                        bad.append(leaf.number)
                if read_bytes >= bytes_max:
                    break
    finally:
        for descriptor in files.values():
            if descriptor >= 0:
                os.close(descriptor)
    if bad:
        model.unmark(sum(1 << leaf for leaf in bad))
    return Checked(number, read_bytes, tuple(bad))


def _holds(model: HeldModel, files: dict[int, int], leaf: Leaf) -> bool:
    if leaf.file not in files:
        try:
            files[leaf.file] = os.open(model.path_of(model.files[leaf.file]), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            files[leaf.file] = -1
    descriptor = files[leaf.file]
    if descriptor < 0:
        return False
    try:
        data = os.pread(descriptor, leaf.size_bytes, leaf.offset_bytes)
    except OSError as error:  # a bad sector
        log.warning("%s: %s", model.path_of(model.files[leaf.file]), error.strerror)
        return False
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, leaf.offset_bytes, leaf.size_bytes, os.POSIX_FADV_DONTNEED)
    return leaf.holds(data)


def done(note: ScrubNote, checked: Checked, now_ms: int) -> ScrubNote:
    """The note after a stretch."""
    damaged = len(checked.bad) + (note.damaged if note.next_leaf else 0)
    if checked.next_leaf:
        return replace(note, next_leaf=checked.next_leaf, damaged=damaged)
    return ScrubNote(now_ms, 0, damaged)
