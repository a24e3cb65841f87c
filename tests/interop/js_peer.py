"""js-libp2p as a peer: js/peer.mjs, told what to do by a JSON line, answering with one."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.interop.processes import PeerProcess

FOLDER = Path(__file__).resolve().parents[2] / "build" / "js"
NODE = FOLDER / "node_modules" / ".bin" / "node"
SCRIPT = Path(__file__).with_name("js") / "peer.mjs"


class Failed(Exception):
    """What the js peer said of a command that went wrong."""


class JsPeer:
    """A running js peer. Commands are given between `attached()`, which is of one test."""

    def __init__(self, log: Path, *, pause_ms: int) -> None:
        script = FOLDER / SCRIPT.name  # beside the packages that it imports
        shutil.copyfile(SCRIPT, script)
        self.process = PeerProcess("js-libp2p", [NODE, script, str(pause_ms)], log=log, folder=FOLDER)
        said = json.loads(self.process.read_line())
        self.peer_id: str = said["peer"]
        self._addresses: list[str] = said["addresses"]
        self._serial = itertools.count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._commands: trio.lowlevel.FdStream | None = None

    def address(self, transport: str) -> str:
        (found,) = [each for each in self._addresses if ("/ws/" in each) == (transport == "ws")]
        return found

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

    async def hang_up(self, peer_id: str) -> None:
        await self.tell("close", peer=peer_id)

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[JsPeer]:
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
