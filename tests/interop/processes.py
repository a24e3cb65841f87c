"""Peers in processes of their own: started with their words kept, ended by pid, shown where a test fails."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import trio

STARTED: list[PeerProcess] = []
"""Those that run, for the report of a test that fails."""
TAIL_BYTES = 4000
END_SECONDS = 5


class PeerProcess:
    """A process with pipes to its standard input and output; its standard error goes to `log`."""

    def __init__(self, name: str, command: Sequence[str | Path], *, log: Path, folder: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [str(each) for each in command],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        STARTED.append(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """Kill it, stopped or not, and take it out of the books."""
        self._process.kill()
        self._process.wait(END_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        STARTED.remove(self)

    def read_line(self) -> str:
        """For its first words only: blocks, and raises where it ended without any."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        if not line:
            raise RuntimeError(f"{self.name} said nothing and ended:\n{self.last_words()}")
        return line.strip()

    def pipes(self) -> tuple[trio.lowlevel.FdStream, trio.lowlevel.FdStream]:
        """Its standard input and output for one trio run; to be closed, which leaves the pipes themselves open."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        stdin, stdout = (os.dup(pipe.fileno()) for pipe in (self._process.stdin, self._process.stdout))
        return trio.lowlevel.FdStream(stdin), trio.lowlevel.FdStream(stdout)

    def last_words(self) -> str:
        return self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace") or "(nothing)"
