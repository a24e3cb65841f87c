"""The HTTP server itself, by raw sockets: disconnects, slow readers, junk, bounds, drain."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import trio

from octonode.api.connection import ConnectionLimits
from octonode.api.server import Bound, serve
from octonode.errors import ConfigError
from octonode.tasks.asking import Ask, AskEvent, Pieces
from octonode.testing.faces import PlayedAsking, Stage

Receive = Callable[[], Any]
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def post(body: dict[str, Any], path: str = "/v1/chat/completions", head: bytes = b"") -> bytes:
    data = json.dumps(body).encode()
    start = b"POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n"
    return start % (path.encode(), head, len(data)) + data


async def never_ends(_: Ask) -> AsyncIterator[AskEvent]:
    for index in range(1_000_000_000):
        yield Pieces(("x" * 1000,), index)
        await trio.sleep(0.001)


async def says_nothing(_: Ask) -> AsyncIterator[AskEvent]:
    await trio.sleep_forever()
    yield Pieces(("never",))


@asynccontextmanager
async def served(app: Any, **limits: Any) -> AsyncIterator[tuple[Bound, trio.Event]]:
    """Any ASGI application on a loopback port."""
    shutdown = trio.Event()

    async def run(task_status: trio.TaskStatus[Bound]) -> None:
        await serve(
            app,
            "127.0.0.1:0",
            shutdown_event=shutdown,
            limits=ConnectionLimits(**limits),
            task_status=task_status,
        )

    async with trio.open_nursery() as nursery:
        yield await nursery.start(run), shutdown
        shutdown.set()


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([part async for part in stream])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_leaves_cancels_its_question(streamed: bool, leave: str) -> None:
    script = never_ends if streamed else says_nothing
    with trio.fail_after(30):
        async with Stage(asking=PlayedAsking(script)).run() as stage:
            stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            await stream.send_all(post({**ASK, "stream": streamed}))
            if streamed:
                await stream.receive_some(10)
            else:
                await stage.asking.began.wait()
            if leave == "reset":
                stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.aclose()
            await stage.asking.left.wait()
            assert stage.asking.open == 0


async def test_a_reader_that_stops_is_cut_and_its_question_cancelled() -> None:
    limits = ConnectionLimits(write_stall_timeout_seconds=0.5)
    with trio.fail_after(60):
        async with Stage(asking=PlayedAsking(never_ends), limits=limits).run() as stage:
            stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            async with stream:
                await stream.send_all(post({**ASK, "stream": True}))
                await stage.asking.left.wait()


async def test_a_reader_that_is_slow_but_reads_gets_everything() -> None:
    pieces = [str(index) * 200 for index in range(2000)]

    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        from octonode.testing.faces import answered

        for index, piece in enumerate(pieces):
            yield Pieces((piece,), index)
        yield answered(len(pieces))

    limits = ConnectionLimits(write_stall_timeout_seconds=5)
    with trio.fail_after(60):
        async with Stage(asking=PlayedAsking(script), limits=limits).run() as stage:
            stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 32768)
            async with stream:
                await stream.send_all(post({**ASK, "stream": True}, head=b"Connection: close\r\n"))
                received = bytearray()
                while part := await stream.receive_some(16384):
                    received += part
                    await trio.sleep(0.001)
    assert received.count(b'"content":"') == len(pieces) + 1
    assert b"data: [DONE]" in received


async def test_a_stalled_reader_does_not_hold_the_drain() -> None:
    """anycorn's own server shields its writes and hangs here for ever."""
    limits = ConnectionLimits(write_stall_timeout_seconds=600, drain_timeout_seconds=0.5)
    with trio.fail_after(30):
        async with Stage(asking=PlayedAsking(never_ends), limits=limits).run() as stage:
            stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            await stream.send_all(post({**ASK, "stream": True}))
            await stream.receive_some(10)
    await stream.aclose()


async def test_drain_lets_a_running_answer_end_and_takes_no_new_connection() -> None:
    go_on = trio.Event()

    async def app(scope: Any, receive: Receive, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begin ", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"end"})

    with trio.fail_after(30):
        async with served(app) as (bound, shutdown):
            idle = await trio.open_tcp_stream(*bound)
            stream = await trio.open_tcp_stream(*bound)
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while b"begin" not in await stream.receive_some(1000):
                pass
            shutdown.set()
            assert await read_all(idle) == b""  # closed at once, it was asking nothing
            with pytest.raises(OSError):
                await trio.open_tcp_stream(*bound)
            go_on.set()
            assert (await read_all(stream)).endswith(b"3\r\nend\r\n0\r\n\r\n")
            await idle.aclose()
            await stream.aclose()


async def test_connection_close_with_a_streamed_answer_ends_in_fin() -> None:
    """Regression: a stock Hypercorn on trio leaves the socket open here, and the client waits for ever."""
    with trio.fail_after(30):
        async with Stage().run() as stage:
            for _ in range(20):
                stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
                async with stream:
                    await stream.send_all(post({**ASK, "stream": True}, head=b"Connection: close\r\n"))
                    assert (await read_all(stream)).endswith(b"0\r\n\r\n")


async def test_fifty_websockets_close_while_the_server_closes_them() -> None:
    """Regression: a stock Hypercorn on trio ends the whole program here (BusyResourceError out of the nursery)."""

    async def app(scope: Any, receive: Receive, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.close", "code": 1000})

    async def client(bound: Bound) -> None:
        stream = await trio.open_tcp_stream(*bound)
        async with stream:
            await stream.send_all(
                b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert b" 101 " in await stream.receive_some(4096)
            # a text frame that makes the server close, and our own close right behind it, both masked with zeros
            await stream.send_all(b"\x81\x81\0\0\0\0x" + b"\x88\x82\0\0\0\0\x03\xe8")
            await read_all(stream)

    with trio.fail_after(60):
        async with served(app) as (bound, _):
            for _ in range(4):
                async with trio.open_nursery() as nursery:
                    for _ in range(50):
                        nursery.start_soon(client, bound)


@pytest.mark.parametrize(
    ("junk", "answers"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", b" 400 "),  # TLS hello
        (b"GARBAGE\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.1\r\n\r\n", b" 400 "),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b" 400 "),
        (b"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", b" 431 "),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b" 400 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), b"HTTP/1.1 4"),
        (b"", b""),
    ],
)
async def test_junk_is_answered_or_closed_and_the_server_lives(junk: bytes, answers: bytes) -> None:
    with trio.fail_after(30):
        async with Stage().run() as stage:
            stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            async with stream:
                await stream.send_all(junk)
                await stream.send_eof()
                assert answers in await read_all(stream)
            async with httpx.AsyncClient(base_url=stage.url) as client:
                assert (await client.get("/healthz")).status_code == 200


async def test_pipelined_requests_are_answered_in_order_and_junk_behind_them_ends_it() -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with trio.fail_after(30):
        async with Stage().run() as stage:
            stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            async with stream:
                await stream.send_all(request * 5 + b"\0junk\r\n\r\n")
                received = await read_all(stream)
    assert received.count(b'{"status":"ok"}') == 5
    assert received.count(b"HTTP/1.1 400 ") == 1


async def test_an_offer_of_http2_is_ignored() -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAAP__"}
        answer = await client.get("/healthz", headers=headers)
    assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")


async def test_a_client_that_never_finishes_its_headers_is_let_go() -> None:
    limits = ConnectionLimits(idle_timeout_seconds=0.3)
    with trio.fail_after(30):
        async with Stage(limits=limits).run() as stage:
            stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            async with stream:
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: loc")
                assert await read_all(stream) == b""


async def test_past_the_bound_a_connection_is_told_so() -> None:
    with trio.fail_after(30):
        async with Stage(limits=ConnectionLimits(connections_max=2)).run() as stage:
            held = [await trio.open_tcp_stream("127.0.0.1", stage.bound.port) for _ in range(2)]
            refused = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            async with refused:
                head, _, body = (await read_all(refused)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert json.loads(body)["error"]["code"] == "OVERLOADED"
            for stream in held:
                await stream.aclose()
            while True:  # the places are free again once the server has seen the ends
                with suppress(httpx.TransportError):  # of one that is refused: the end may come before the answer
                    async with httpx.AsyncClient(base_url=stage.url) as client:
                        if (await client.get("/healthz")).status_code == 200:
                            break


async def test_a_body_too_large_is_refused_while_it_is_still_coming() -> None:
    """The answer must arrive though the client is still sending: a reset would eat it."""
    size = 8 * 1024 * 1024
    with trio.fail_after(30):
        async with Stage().run() as stage:
            stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            async with stream:
                head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                await stream.send_all(head % size)
                await stream.send_all(bytes(size))
                assert b" 413 " in await read_all(stream)


async def test_a_busy_port_names_itself_and_the_flag() -> None:
    async with Stage().run() as stage:
        with pytest.raises(ConfigError, match=rf"port {stage.bound.port} on 127.0.0.1 is taken.*--api"):
            await serve(None, f"127.0.0.1:{stage.bound.port}", shutdown_event=trio.Event())
    with pytest.raises(ConfigError, match="--api"):
        await serve(None, "192.0.2.1:0", shutdown_event=trio.Event())
    with pytest.raises(ConfigError, match="HOST:PORT"):
        await serve(None, "8808", shutdown_event=trio.Event())


async def test_an_application_that_breaks_ends_its_own_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Any) -> None:
        if scope["path"] == "/before":
            raise RuntimeError("a bug")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        if scope["path"] == "/within":
            raise ExceptionGroup("bugs", [RuntimeError("a bug")])
        await send({"type": "http.response.body", "body": b"."})

    caplog.set_level(logging.CRITICAL)
    async with served(app) as (bound, _), httpx.AsyncClient(base_url=bound.url) as client:
        assert (await client.get("/before")).status_code == 500
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/within")
        assert (await client.get("/whole")).text == "so far."


async def test_a_server_that_fails_starts_again_on_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    from octonode.api import server

    monkeypatch.setattr(server, "RESTART_PAUSE_SECONDS", 0.01)
    accept, failures = server._Server._accept, [OSError(9999, "a fault nobody thought of"), KeyError("a bug")]

    async def failing(self: Any, *arguments: Any) -> None:
        if failures:
            raise failures.pop()
        await accept(self, *arguments)

    monkeypatch.setattr(server._Server, "_accept", failing)
    with trio.fail_after(30):
        async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
            assert (await client.get("/healthz")).status_code == 200
            assert failures == []
