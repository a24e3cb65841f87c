"""HTTP to services outside of the network of octonodes: IPFS gateways and the RPC of a Kubo node. httpx on trio.

No redirect is followed, no proxy of the environment is read, every answer has a bound in bytes and in time, and a
client closes at once: a lane of a fetch ends in a `finally` that cannot wait.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Final, Self, cast

import httpcore
import httpx
import trio

from octonode.errors import ConfigError, RemoteProtocolError, Unreachable, printable
from octonode.ipfs.gateway_client import Stalled

READ_BYTES: Final = 64 * 1024
WORDS_BYTES_MAX: Final = 4096
"""Of an answer that is an error: what is read for its words."""


@dataclass(frozen=True, slots=True)
class OutsideTimeouts:
    """Gateways of strangers look a block up before they answer, so the first byte may take its time."""

    connect_seconds: float = 10.0
    head_seconds: float = 30.0
    """From the request to the end of the response head, and for each write of a body."""
    stall_seconds: float = 10.0
    """Without a single byte while a body is due."""
    bytes_per_second_min: int = 16 * 1024
    """Below this over a whole answer it counts as stalled: a slow drip."""


class OutsideHttp:
    """A client of one service. `what` is how errors name it; `url` is its base. Close it in the end, or use `with`.

    Raises Unreachable (refused, lost, a status that says so), Stalled, RemoteProtocolError (a redirect, more bytes than
    due, a coding that was not asked for).
    """

    def __init__(self, url: str, what: str, timeouts: OutsideTimeouts | None = None) -> None:
        self.what = what
        self._timeouts = timeouts or OutsideTimeouts()
        self._transport = _Transport()
        self._http = httpx.AsyncClient(
            base_url=url,
            transport=self._transport,
            follow_redirects=False,
            trust_env=False,
            headers={"user-agent": "octonode", "accept-encoding": "identity"},
            # Reads have our own deadlines: the head may take longer than a pause in a body.
            timeout=httpx.Timeout(
                None, connect=self._timeouts.connect_seconds, write=self._timeouts.head_seconds, pool=None
            ),
        )

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        head_seconds: float | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The response once its head is there; leave the block when its body is read. Any status but a redirect."""
        with self._named_faults():
            request = self._http.build_request(method, path, params=params, headers=headers, content=content)
            with trio.move_on_after(head_seconds or self._timeouts.head_seconds) as scope:
                response = await self._http.send(request, stream=True)
            if scope.cancelled_caught:
                raise Stalled(f"{self.what} does not answer")
            try:
                self._check_head(response)
                yield response
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await response.aclose()

    def _check_head(self, response: httpx.Response) -> None:
        if 300 <= response.status_code < 400 and response.status_code != 304:
            raise RemoteProtocolError(f"{self.what} redirects {_whither(response)}; redirects are not followed")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise RemoteProtocolError(f"{self.what} compresses its answer, which was not asked for")

    async def chunks(self, response: httpx.Response, bytes_max: int) -> AsyncGenerator[bytes, None]:
        """The body, piece by piece. More than `bytes_max` is TOO_LARGE, less than a due length is Unreachable."""
        stall_seconds = self._timeouts.stall_seconds
        deadline = trio.current_time() + stall_seconds + bytes_max / self._timeouts.bytes_per_second_min
        pieces = response.aiter_raw(READ_BYTES)
        received_bytes = 0
        while True:
            with self._named_faults(), trio.move_on_at(min(deadline, trio.current_time() + stall_seconds)) as scope:
                piece = await anext(pieces, None)
            if scope.cancelled_caught:
                raise Stalled(f"{self.what} stopped sending, or is too slow: {received_bytes} bytes came")
            if piece is None:
                return
            received_bytes += len(piece)
            if received_bytes > bytes_max:
                raise RemoteProtocolError(f"{self.what} sends more than the {bytes_max} bytes due", code="TOO_LARGE")
            yield piece

    async def read(self, response: httpx.Response, bytes_max: int) -> bytearray:
        """The whole body, of `bytes_max` at most."""
        whole = bytearray()
        async with aclosing(self.chunks(response, bytes_max)) as pieces:
            async for piece in pieces:
                whole += piece
        return whole

    async def words(self, response: httpx.Response) -> str:
        """What an error answer says, printable and short; empty where it cannot be read."""
        text = ""
        with suppress(RemoteProtocolError, Unreachable):
            text = (await self.read(response, WORDS_BYTES_MAX)).decode("utf-8", "replace")
        return printable(text, 300).strip()

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TimeoutException, httpcore.TimeoutException) as error:
            raise Stalled(f"{self.what} stopped sending ({type(error).__name__})") from error
        except (httpx.HTTPError, httpx.StreamError, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise Unreachable(f"{self.what}: {_reason(error)}") from error
        except httpx.InvalidURL as error:
            raise ConfigError(f"{self.what}: {error}") from error


def _reason(error: BaseException) -> str:
    """In words; what TLS has against a certificate lies deep in the chain of causes."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {each.verify_message}"
        each = each.__cause__ or each.__context__
    return str(error) or type(error).__name__


def _whither(response: httpx.Response) -> str:
    """Where a redirect leads, for a person: another host is what must be seen."""
    here = response.request.url
    try:
        there = here.join(response.headers.get("location", ""))
    except (httpx.InvalidURL, ValueError):
        return "to nowhere"
    if there.host == here.host and there.port == here.port:
        return f"to {there.path[:100]}"
    kind = "a subdomain of its own" if there.host.endswith(f".{here.host}") else "another host"
    return f"to {kind}, {there.host[:100]}"


@cache
def _tls() -> ssl.SSLContext:
    """One for all: reading the certificates takes 20 ms. SSL_CERT_FILE names others than the usual ones."""
    return httpx.create_ssl_context()


class _Sockets(httpcore.TrioBackend):
    """Remembers the sockets it opened, so that they can be closed without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[trio.socket.SocketType] = []

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        stream = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        self.open = [each for each in self.open if each.fileno() >= 0]
        self.open.append(cast(trio.socket.SocketType, stream.get_extra_info("socket")))
        return stream


class _Transport(httpx.AsyncBaseTransport):
    """httpx over one pool of httpcore, of which one connection is used at a time."""

    def __init__(self) -> None:
        self._sockets = _Sockets()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=1,
            keepalive_expiry=60.0,
            network_backend=self._sockets,
        )

    def close(self) -> None:
        for each in self._sockets.open:
            each.close()
        self._sockets.open.clear()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        answer = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=cast(AsyncIterable[bytes], request.stream),
                extensions=request.extensions,
            )
        )
        stream = _Body(cast(AsyncIterable[bytes], answer.stream), answer.aclose)
        return httpx.Response(answer.status, headers=answer.headers, stream=stream, extensions=answer.extensions)


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: AsyncIterable[bytes], aclose: Any) -> None:
        self._stream = stream
        self._aclose = aclose

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece

    async def aclose(self) -> None:
        await self._aclose()
