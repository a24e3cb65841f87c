"""A real daemon in a process of its own: started, watched, asked, killed. For testnets, the demo, tests and benchmarks.

async with Daemon(home) as node:            # octonode start --json, ports chosen by the kernel
    ask(node.api, ...)
    node.kill()                             # kill -9
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from octonode.errors import OctonodeError

EVENTS_MAX = 10_000
LINE_BYTES_MAX = 1024 * 1024
READY_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 15.0
LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Ready:
    """The first line of `octonode start --json`."""

    peer_id: str
    addresses: tuple[str, ...]
    api: str
    gateway: str
    join: str
    pid: int


class Daemon:
    """One `octonode start --json` process. The block ends it: SIGTERM, then SIGKILL after 15 s."""

    def __init__(
        self,
        home: Path,
        *flags: str,
        name: str = "",
        environment: Mapping[str, str] | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "octonode.cli.main"),
    ) -> None:
        self.home = home
        self.name = name or home.name
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self._flags = flags
        self._environment = dict(environment or {})
        self._on_event = on_event
        self._command = tuple(command)
        self._process: trio.Process | None = None
        self._ready: Ready | None = None
        self._news = trio.Condition()
        self._lines = bytearray()
        self._reading = False
        self._stack = AsyncExitStack()

    @property
    def ready(self) -> Ready:
        assert self._ready is not None, f"{self.name} is not running"
        return self._ready

    @property
    def started(self) -> bool:
        """True once the ready line was read."""
        return self._ready is not None

    @property
    def api(self) -> str:
        return self.ready.api

    @property
    def peer_id(self) -> str:
        return self.ready.peer_id

    @property
    def pid(self) -> int:
        return self.ready.pid

    @property
    def address(self) -> str:
        return self.ready.addresses[0]

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        return None if self._process is None else self._process.poll()

    async def __aenter__(self) -> Daemon:
        try:
            nursery = await self._stack.enter_async_context(trio.open_nursery())
            await self.start(nursery)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def start(self, nursery: trio.Nursery, *flags: str) -> None:
        """Start, or start again after `kill`; returns once the ready line is there.

        Raises OctonodeError with the log's tail. `flags` are added to those of the constructor, for this start and
        later ones.
        """
        self._flags = (*self._flags, *flags)
        assert self._process is None or self.exit_status is not None, f"{self.name} runs already"
        self.home.mkdir(parents=True, exist_ok=True)
        self._ready = None
        loopback = ("--api", "127.0.0.1:0", "--p2p", "127.0.0.1:0", "--gateway", "127.0.0.1:0")
        listening = [
            part
            for flag, value in zip(loopback[::2], loopback[1::2], strict=True)
            if flag not in self._flags
            for part in (flag, value)
        ]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("OCTONODE_")}
        environ |= {"OCTONODE_HOME": str(self.home), "PYTHONUNBUFFERED": "1", **self._environment}
        with open(self.home / "stderr.log", "ab") as stderr:  # noqa: ASYNC230  # a handle for the child
            self._process = await trio.lowlevel.open_process(
                [*self._command, "start", "--json", *listening, *self._flags],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environ,
            )  # fmt: skip
        nursery.start_soon(self._read, self._process)
        with trio.move_on_after(READY_TIMEOUT_SECONDS):
            async with self._news:
                while not self.started and self.running:
                    await self._news.wait()
        if not self.started:
            raise OctonodeError(f"{self.name} did not start (status {self.exit_status}): {self.stderr_tail()}")

    async def _read(self, process: trio.Process) -> None:
        self._lines.clear()
        self._reading = True
        try:
            await self._read_lines(process)
        finally:
            self._reading = False
        await process.wait()
        async with self._news:
            self._news.notify_all()

    async def _read_lines(self, process: trio.Process) -> None:
        assert process.stdout is not None
        async for data in process.stdout:
            self._lines += data
            while (end := self._lines.find(b"\n")) >= 0:
                self._take(bytes(self._lines[:end]))
                del self._lines[: end + 1]
                async with self._news:
                    self._news.notify_all()
            assert len(self._lines) < LINE_BYTES_MAX

    def _take(self, line: bytes) -> None:
        event = json.loads(line)
        if self._ready is None and "peer_id" in event and "api" in event:
            self._ready = Ready(
                **{name: event[name] for name in Ready.__slots__ if name != "addresses"},
                addresses=tuple(event["addresses"]),
            )
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(self.name, event)

    async def wait_for(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first event of that name with those fields, past or to come. Bring your own deadline."""
        async with self._news:
            while True:
                for each in self.events:
                    if each.get("event") == event and all(each.get(k) == v for k, v in fields.items()):
                        return each
                if not self.running:
                    raise OctonodeError(
                        f"{self.name} ended (status {self.exit_status}) before {event}: {self.stderr_tail()}"
                    )
                await self._news.wait()

    def stderr_tail(self, size_bytes: int = 2000) -> str:
        path = self.home / "stderr.log"
        return path.read_bytes()[-size_bytes:].decode(errors="replace") if path.exists() else ""

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM and the drain; SIGKILL after 15 s. Returns the exit status."""
        if self._process is None:
            return 0
        self.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_TIMEOUT_SECONDS, shield=True):
            await self._process.wait()
        self.kill()  # does nothing to a process that has ended
        with trio.CancelScope(shield=True):
            await self._process.wait()
            if not self._reading:  # its reader was cancelled before the last words
                with trio.move_on_after(LAST_WORDS_SECONDS):
                    await self._read_lines(self._process)
        return int(self._process.returncode or 0)

    async def _end(self) -> None:
        await self.stop()
        await self._stack.aclose()
