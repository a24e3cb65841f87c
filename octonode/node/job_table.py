"""The jobs of a node in its state file, what is large of them in files beside it: `tasks.job.JobStore`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import trio

from octonode.errors import NotFound, OctonodeError
from octonode.state import State
from octonode.tasks.job import Job, is_job_id

INLINE_BYTES_MAX = 1024 * 1024
"""A larger input or result is a file of its own."""

_COLUMNS = tuple(each.name for each in fields(Job))
_NAMES = ", ".join(_COLUMNS)
_MARKS = ", ".join("?" * (len(_COLUMNS) + 1))
_INPUT, _RESULT = "input", "result"


class JobTable:
    """Every change is on disk, synced, when its call returns. Raises OctonodeError (DISK_FULL)."""

    def __init__(self, state: State, folder: Path) -> None:
        self._state = state
        self._folder = folder

    async def load(self) -> Sequence[Job]:
        rows = await self._state.select(f"SELECT {_NAMES} FROM jobs ORDER BY id")
        jobs = [Job(*row) for row in rows]
        await trio.to_thread.run_sync(self._sweep, {job.id for job in jobs})
        return jobs

    async def add(self, job: Job, work: bytes) -> None:
        inline = await self._put(job.id, _INPUT, work)
        try:
            await self._state.change(
                (f"INSERT INTO jobs ({_NAMES}, input) VALUES ({_MARKS})", (*_values(job), inline)), durable=True
            )
        except OctonodeError:
            await trio.to_thread.run_sync(self._remove, (job.id,))  # a full disk shall not fill further
            raise

    async def save(self, job: Job, result: bytes | None = None) -> None:
        """A result goes to its file first: a row that says `completed` always has one."""
        changes = f"UPDATE jobs SET ({_NAMES}) = ({', '.join('?' * len(_COLUMNS))})"
        values: tuple[Any, ...] = _values(job)
        if result is not None:
            values += (await self._put(job.id, _RESULT, result),)
            changes += ", result = ?"
        await self._state.change((f"{changes} WHERE id = ?", (*values, job.id)), durable=True)

    async def drop(self, *jobs: str) -> None:
        if not jobs:
            return
        try:
            await self._state.change(*(("DELETE FROM jobs WHERE id = ?", (job,)) for job in jobs))
        finally:  # also where the disk is too full for that: their files are what fills it
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._remove, jobs)

    async def work(self, job: str) -> bytes:
        found = await self._get(job, _INPUT)
        if found is None:
            raise NotFound(f"what job {job} asks for is not on disk any more; submit it again")
        return found

    async def result(self, job: str) -> bytes | None:
        return await self._get(job, _RESULT)

    async def _put(self, job: str, what: str, data: bytes) -> bytes | None:
        """`data` for the row; None when it stands in a file instead."""
        if len(data) <= INLINE_BYTES_MAX:
            return data
        try:
            await trio.to_thread.run_sync(self._write, job, what, data)
        except OSError as error:
            raise OctonodeError(
                f"{self._folder} cannot be written: {error}; free disk space", code="DISK_FULL"
            ) from None
        return None

    async def _get(self, job: str, what: str) -> bytes | None:
        rows = await self._state.select(f"SELECT {what} FROM jobs WHERE id = ?", (job,))
        if rows and rows[0][0] is not None:
            return bytes(rows[0][0])
        path = self._path(job, what)
        try:
            return await trio.to_thread.run_sync(path.read_bytes) if rows else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OctonodeError(f"{path} cannot be read: {error}", code="DISK_FAILED") from None

    def _path(self, job: str, what: str) -> Path:
        assert is_job_id(job), "names of files are ours alone"
        return self._folder / f"{job}.{what}"

    def _write(self, job: str, what: str, data: bytes) -> None:
        """The file appears whole, and stays after a power cut, or not at all."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._path(job, what)
        fresh = path.with_suffix(f".{what}.part")
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except OSError:
            fresh.unlink(missing_ok=True)  # half a file on a full disk
            raise
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _remove(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            for what in (_INPUT, _RESULT):
                with contextlib.suppress(OSError):
                    self._path(job, what).unlink()

    def _sweep(self, known: set[str]) -> None:
        """Files of jobs that are gone, and halves that a kill left."""
        if not self._folder.is_dir():
            return
        for each in self._folder.iterdir():
            job, _, what = each.name.partition(".")
            if job not in known or what not in (_INPUT, _RESULT):
                with contextlib.suppress(OSError):
                    each.unlink()


def _values(job: Job) -> tuple[Any, ...]:
    return tuple(getattr(job, name) for name in _COLUMNS)
