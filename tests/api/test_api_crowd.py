"""The HTTP server with many clients at once: taken in together, and none of them holds the others up."""

from __future__ import annotations

import errno
import gc
import socket
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import trio

from octonode.api import server
from octonode.api.connection import WRITES_PER_PASS, Connection, ConnectionLimits
from octonode.api.server import Bound, serve

CLIENTS = 100

Receive = Callable[[], Any]


class Steps(trio.abc.Instrument):
    """Counts the turns of one task, by a part of its name."""

    def __init__(self, part: str) -> None:
        self._part = part
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += self._part in task.name


def connected(bound: Bound, count: int) -> list[socket.socket]:
    """Clients in the kernel's line: the server has not had a turn since."""
    return [socket.create_connection(bound) for _ in range(count)]


async def hello(scope: Any, receive: Receive, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def answer_of(client: socket.socket) -> bytes:
    client.setblocking(False)
    with trio.socket.from_stdlib_socket(client) as sock:
        await sock.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while part := await sock.recv(4096):
            answer += part
        return answer


async def test_clients_that_wait_together_are_taken_in_together() -> None:
    """A loaded loop turns a few times a second: at one client a turn the kernel's line would overflow and lose them."""
    shutdown, steps = trio.Event(), Steps("_Server._accept")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(_serve, hello, shutdown)
            clients = connected(bound, CLIENTS)
            trio.lowlevel.add_instrument(steps)
            answers: list[bytes] = []

            async def take(client: socket.socket) -> None:
                answers.append(await answer_of(client))

            async with trio.open_nursery() as asking:
                for client in clients:
                    asking.start_soon(take, client)
            trio.lowlevel.remove_instrument(steps)
            shutdown.set()
    assert [b" 200 " in each and b"hello" in each for each in answers] == [True] * CLIENTS
    assert steps.count <= 2 + CLIENTS // server.ACCEPTS_PER_PASS


async def test_clients_are_taken_in_again_once_there_are_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE_SECONDS", 0.01)
    faults = [OSError(errno.EMFILE, "too many"), OSError(errno.ECONNABORTED, "left"), OSError(errno.ENFILE, "full")]
    bind = server._bind

    class Short(socket.socket):
        def accept(self) -> Any:
            if faults:
                raise faults.pop()
            return super().accept()

    async def bind_short(*arguments: Any) -> socket.socket:
        plain = await bind(*arguments)
        return Short(plain.family, plain.type, plain.proto, fileno=plain.detach())

    monkeypatch.setattr(server, "_bind", bind_short)
    shutdown = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(_serve, hello, shutdown)
            (client,) = connected(bound, 1)
            assert b"hello" in await answer_of(client)
            shutdown.set()
    assert faults == []


async def test_an_answer_that_its_reader_takes_at_once_lets_the_others_run() -> None:
    turns = 0
    writes = 20 * WRITES_PER_PASS

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    seen: list[int] = []

    async def talkative(scope: Any, receive: Receive, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        before = turns
        for _ in range(writes):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        seen.append(turns - before)
        await send({"type": "http.response.body"})

    shutdown = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(_serve, talkative, shutdown)
            nursery.start_soon(count)
            (client,) = connected(bound, 1)
            assert (await answer_of(client)).count(b"1\r\nx\r\n") == writes
            shutdown.set()
            nursery.cancel_scope.cancel()
    assert seen[0] >= 10


async def test_what_a_connection_held_is_free_once_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the collector next passes: a loaded node would stop for that."""
    seen: list[weakref.ref[Connection]] = []

    class Seen(Connection):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append(weakref.ref(self))

    monkeypatch.setattr(server, "Connection", Seen)
    shutdown = trio.Event()
    gc.disable()
    try:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                bound = await nursery.start(_serve, hello, shutdown)
                for client in connected(bound, 5):
                    assert b"hello" in await answer_of(client)
                shutdown.set()
        assert [each() for each in seen] == [None] * 5
    finally:
        gc.enable()


async def _serve(app: Any, shutdown: trio.Event, task_status: trio.TaskStatus[Bound]) -> None:
    limits = ConnectionLimits()
    await serve(app, "127.0.0.1:0", shutdown_event=shutdown, limits=limits, task_status=task_status)
