"""A peer in a process of its own that is told what to do by a JSON line and answers with one, in any order.

It begins with {"peer": its id, "addresses": [where it listens]}; then {"id": 1, "do": "dial", ...} is answered by
{"id": 1, "ok": ...} or {"id": 1, "error": "..."}.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import trio

from tests.interop.processes import PeerProcess


class Failed(Exception):
    """What a peer said of a command that went wrong."""


class JsonPeer:
    """Started by the constructor. Commands are given between `attached()`, which is of one test."""

    def __init__(self, name: str, command: Sequence[str | Path], *, log: Path, folder: Path) -> None:
        self.process = PeerProcess(name, command, log=log, folder=folder)
        said = json.loads(self.process.read_line())
        self.peer_id: str = said["peer"]
        self.addresses: list[str] = said["addresses"]
        self._serial = itertools.count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._commands: trio.lowlevel.FdStream | None = None

    async def tell(self, what: str, **details: Any) -> Any:
        """Have it do `what`; its answer. Raises Failed."""
        assert self._commands is not None
        serial = next(self._serial)
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[serial] = send
        try:
            line = json.dumps({"id": serial, "do": what, **details}) + "\n"
            await self._commands.send_all(line.encode())
            answer = await receive.receive()
        finally:
            del self._answers[serial]
        if "error" in answer:
            raise Failed(f"{what}: {answer['error']}")
        return answer["ok"]

    async def dial(self, address: str) -> None:
        await self.tell("dial", address=address)

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[Self]:
        self._commands, said = self.process.pipes()
        async with self._commands, said, trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, said)
            yield self
            nursery.cancel_scope.cancel()

    async def _listen(self, said: trio.lowlevel.FdStream) -> None:
        rest = b""
        async for data in said:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if waiting := self._answers.get(answer["id"]):  # None: of a test that is over
                    waiting.send_nowait(answer)
