"""The sequence number of our announcements: it rises for ever, over restarts and crashes too."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Protocol

import trio

log = logging.getLogger(__name__)

RESERVE = 60_000
"""How far ahead the file is written, so that it is written about once a minute and not for every announcement."""


class Sequence(Protocol):
    async def next(self, now_ms: int) -> int:
        """A number above every one given out before."""
        ...


class SequenceFile:
    """`OCTONODE_HOME/announcement_sequence`: a number that no announcement of this node has reached yet.

    A number is given out only while it is below the one on disk, so a crash cannot make us repeat one. The clock's
    milliseconds are the floor: a home that was lost with its file still goes on above what was announced from it.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "announcement_sequence"
        self._lock = trio.Lock()
        self._last: int | None = None
        self._reserved = 0

    async def next(self, now_ms: int) -> int:
        """A number above every one given out before.

        When the reserve cannot be written (a full disk) it is given out all the same: the clock is floor enough
        unless it is set back, and a node that falls silent helps nobody.
        """
        async with self._lock:
            if self._last is None:
                self._last = self._reserved = await trio.to_thread.run_sync(self._read)
            number = max(self._last + 1, now_ms)
            if number >= self._reserved:
                reserved = number + RESERVE
                try:
                    await trio.to_thread.run_sync(self._write, reserved)
                except OSError as error:
                    log.warning("%s cannot be written: %s", self._path, error)
                self._reserved = reserved
            self._last = number
            return number

    def _read(self) -> int:
        try:
            return int(self._path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0
        except (ValueError, OSError) as error:
            log.warning("%s cannot be read (%s); the sequence goes on from the clock", self._path, error)
            return 0

    def _write(self, number: int) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
