"""One POST to an address that was chosen before: the name is not looked up again, and no redirect is followed."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

import httpcore
import httpx
import trio

from octonode.errors import Unreachable
from octonode.tasks.webhook_rule import ADDRESSES_MAX, Target

ANSWER_BYTES_MAX: Final = 64 * 1024
"""Of what a receiver says; it is read so far that it sees no broken connection, and dropped."""
ANSWER_SECONDS_MAX: Final = 2.0
"""And for so long after the status, which is all that counts."""
_LOST = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError)


class _Pinned(httpcore.TrioBackend):
    """Connects to the one address, whatever name it is asked for; TLS still asks for a certificate of the name."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        return await super().connect_tcp(self._address, port, timeout, local_address, socket_options)


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


async def post(target: Target, address: str, headers: dict[str, str], body: bytes) -> int:
    """The status. Raises Unreachable; brings no deadline of its own."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    usual = 443 if target.secure else 80
    shown = host if target.port == usual else f"{host}:{target.port}"
    url = httpcore.URL(
        scheme=b"https" if target.secure else b"http", host=target.host.encode(), port=target.port,
        target=target.path.encode(),
    )  # fmt: skip
    sent = {"host": shown, "content-length": str(len(body)), "connection": "close", **headers}
    try:
        async with (
            httpcore.AsyncConnectionPool(ssl_context=_tls(), network_backend=_Pinned(address)) as pool,
            pool.stream(
                "POST", url, headers=[(k.encode(), v.encode()) for k, v in sent.items()], content=body
            ) as answer,
        ):
            with trio.move_on_after(ANSWER_SECONDS_MAX), contextlib.suppress(*_LOST):
                await _read(answer)
            return int(answer.status)
    except _LOST as error:
        raise Unreachable(f"{target.host} ({address}): {error or type(error).__name__}") from None


async def _read(answer: httpcore.Response) -> None:
    read_bytes = 0
    async for piece in answer.aiter_stream():
        read_bytes += len(piece)
        if read_bytes > ANSWER_BYTES_MAX:
            break


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, the usual order; an address is its own. Raises OSError."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))[:ADDRESSES_MAX]
