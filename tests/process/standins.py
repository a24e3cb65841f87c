"""Stand-ins of outside services beside real daemons, and a slow line to one of them, each in a thread of its own."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import TypeVar
from urllib.parse import urlsplit

import trio

T = TypeVar("T")
READY_SECONDS = 30.0


@contextmanager
def running(service: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """`service` entered in a loop of its own until the block ends."""
    made: queue.Queue[T] = queue.Queue()
    over = threading.Event()

    async def host() -> None:
        async with service as entered:
            made.put(entered)
            await trio.to_thread.run_sync(over.wait)

    thread = threading.Thread(target=trio.run, args=(host,), name="stand-in")
    thread.start()
    try:
        yield made.get(timeout=READY_SECONDS)
    finally:
        over.set()
        thread.join(READY_SECONDS)


@contextmanager
def slow_line(url: str, bytes_per_second: float) -> Iterator[str]:
    """A port of the kernel's choosing that leads to `url`; what goes there is slow, what comes back is not."""
    parts = urlsplit(url)
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets = [listener]

    def copy(source: socket.socket, target: socket.socket, pace: float) -> None:
        with suppress(OSError):
            while data := source.recv(64 * 1024):
                target.sendall(data)
                if pace:
                    time.sleep(len(data) / pace)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((parts.hostname, parts.port))
                open_sockets.extend((client, server))
                for arguments in ((client, server, bytes_per_second), (server, client, 0.0)):
                    threading.Thread(target=copy, args=arguments, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for each in open_sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
