"""A small HTTP/1.1 server on loopback for stand-ins of outside services: h11 on trio, streamed both ways, with faults.

async with HttpService(answer) as service:      # a port of the kernel's choosing
    ask(service.url)
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import h11
import trio
import trio.abc

READ_BYTES: Final = 64 * 1024
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of a request that is read as a whole."""


class Cut(Exception):
    """Raised by an answer: the connection is closed at once, in the middle of whatever it was."""


@dataclass
class Asked:
    """One request. Its body is read as it comes; what is left is dropped."""

    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case."""
    _next: Callable[[], Awaitable[Any]]
    parameters: dict[str, list[str]] = field(default_factory=dict)
    path: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        self.path = unquote(parts.path)
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            self.parameters.setdefault(name, []).append(value)

    def parameter(self, name: str, default: str = "") -> str:
        return self.parameters.get(name, [default])[-1]

    async def pieces(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    async def body(self, bytes_max: int = BODY_BYTES_MAX) -> bytes:
        whole = bytearray()
        async for piece in self.pieces():
            whole += piece
            if len(whole) > bytes_max:
                raise Cut
        return bytes(whole)


class Reply:
    """The answer to one request: `send` for a whole one, or `head`, `write` and `end`."""

    def __init__(self, stream: trio.abc.Stream, machine: h11.Connection, asked: Asked) -> None:
        self._stream = stream
        self._machine = machine
        self._asked = asked
        self.started = False

    async def send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        await self.head(status, {"content-length": str(len(body)), **(headers or {})})
        await self.write(body)
        await self.end()

    async def head(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        self.started = True
        given = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        await self._out(h11.Response(status_code=status, headers=given))

    async def write(self, data: bytes) -> None:
        if data and self._asked.method != "HEAD":
            await self._out(h11.Data(data=data))

    async def end(self, trailers: Mapping[str, str] | None = None) -> None:
        given = [(name.encode(), value.encode()) for name, value in (trailers or {}).items()]
        try:
            data = self._machine.send(h11.EndOfMessage(headers=given))
        except h11.LocalProtocolError:  # the answer to a HEAD has the length of what it does not send
            raise Cut from None
        await self._stream.send_all(data or b"")

    async def _out(self, event: Any) -> None:
        await self._stream.send_all(self._machine.send(event) or b"")


Answer = Callable[[Asked, Reply], Awaitable[None]]


class HttpService:
    """Serves `answer` until the block ends, which cuts every connection; over TLS where a context is given."""

    def __init__(self, answer: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._tls = tls
        self._host = host
        self._stack = AsyncExitStack()
        self.port = 0
        self.connections = 0
        """Accepted so far."""

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://{self._host}:{self.port}"

    async def __aenter__(self) -> Self:
        nursery = await self._stack.enter_async_context(trio.open_nursery())
        serve = partial(trio.serve_tcp, self._take, self.port, host=self._host)
        listeners = await nursery.start(serve)
        self.port = listeners[0].socket.getsockname()[1]
        self._stack.callback(nursery.cancel_scope.cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _take(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        if self._tls is None:
            await self._serve(stream)
        else:
            await self._serve(trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True))

    async def _serve(self, stream: trio.abc.Stream) -> None:
        machine = h11.Connection(h11.SERVER)

        async def next_event() -> Any:
            while (event := machine.next_event()) is h11.NEED_DATA:
                if machine.they_are_waiting_for_100_continue:
                    informed = machine.send(h11.InformationalResponse(status_code=100, headers=[]))
                    await stream.send_all(informed or b"")
                machine.receive_data(await stream.receive_some(READ_BYTES))
            return event

        try:
            while isinstance(request := await next_event(), h11.Request):
                await self._one(stream, machine, request, next_event)
                while machine.their_state is h11.SEND_BODY:  # what the answer did not read
                    await next_event()
                if machine.our_state is not h11.DONE or machine.their_state is not h11.DONE:
                    return
                machine.start_next_cycle()
        except (Cut, OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            return

    async def _one(
        self, stream: trio.abc.Stream, machine: h11.Connection, request: Any, next_event: Callable[[], Awaitable[Any]]
    ) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        asked = Asked(request.method.decode(), request.target.decode("latin-1"), headers, next_event)
        await self._answer(asked, Reply(stream, machine, asked))
