"""A lean client of one OpenAI-compatible server, on a unix socket or TCP: one request a connection.

A server stops working on a request when its connection closes, which is how ours are cancelled.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import trio

from octonode.engines.http_response import BODY_BYTES_MAX, EventReader, ResponseReader
from octonode.errors import OctonodeError, printable

RECEIVE_BYTES = 64 * 1024
NOT_FOUND = 404
REASON_CHARACTERS_MAX = 200
"""Of a server's own words: they may quote what was asked."""
_CONTEXT_WORDS = ("maximum context length", "context size", "maximum model length", "max_model_len", "max_seq_len")
_CONTEXT_PARAMETERS = ("input_tokens", "max_tokens")


class ServerLost(OctonodeError):
    """The server cannot be reached, broke off, or says itself that it failed: only its health tells what that means."""

    code = "ENGINE_FAILED"
    status = 0
    """Of the server's answer; 0: it was none."""


Health = Literal["well", "ill", "silent"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is: `socket_path`, or host and port."""

    socket_path: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False
    prefix: str = ""
    """Of every path, such as `/llm`."""

    def __str__(self) -> str:
        if self.socket_path:
            return f"unix:{self.socket_path}"
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}{self.prefix}"


class OpenAiServer:
    """Requests to one server. Holds no connection between them."""

    def __init__(self, address: Address, *, key: str = "") -> None:
        """`key` is sent as a bearer token; empty: none."""
        self.address = address
        self._key = key

    async def health(self) -> Health:
        """What `/health` says, or the list of models where there is no such page: `ill` by any answer but 200, `silent`
        without one. The caller sets a deadline."""
        try:
            try:
                await self._document("/health")
            except ServerLost as error:
                if error.status != NOT_FOUND:
                    raise
                await self._document("/v1/models")
        except ServerLost as error:
            return "ill" if error.status else "silent"
        except OctonodeError:
            return "ill"
        return "well"

    async def get(self, path: str) -> Any:
        """The JSON document at `path`. Raises OctonodeError as `stream` does."""
        return _json(await self._document(path))

    async def get_text(self, path: str) -> str:
        """What stands at `path`. Raises OctonodeError as `stream` does."""
        return (await self._document(path)).decode("utf-8", "replace")

    async def _document(self, path: str) -> bytes:
        body = b""
        async with aclosing(self._exchange("GET", path, b"")) as parts:
            async for part in parts:
                body += part
                if len(body) > BODY_BYTES_MAX:
                    raise ServerLost(f"the server's answer to {path} is too long")
        return body

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The events of a streamed completion, those of one read together. Closing the iterator cancels it there.

        Raises OctonodeError: CONTEXT_EXCEEDED, BAD_REQUEST, OVERLOADED or CONFIG by what the server says; ServerLost.
        """
        try:
            data = json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise OctonodeError("the request holds half of a pair of surrogates", code="BAD_REQUEST") from None
        except RecursionError:  # a schema that could just be read
            raise OctonodeError("the request nests too deep", code="BAD_REQUEST") from None
        reader = EventReader()
        ended = False
        async with aclosing(self._exchange("POST", path, data)) as parts:
            async for part in parts:
                try:
                    values = reader.feed(part)
                except ValueError as error:
                    raise ServerLost(f"the server broke the rules of its stream: {error}") from None
                ended = ended or b"[DONE]" in values
                events = [_event(value) for value in values if value != b"[DONE]"]
                if events:
                    yield events
        if not ended:
            raise ServerLost("the server broke off its answer")

    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        reader = ResponseReader()
        try:
            async with await self._connect() as stream:
                await stream.send_all(self._head(method, path, len(body)) + body)
                refused = b""
                while not reader.complete:
                    data = await stream.receive_some(RECEIVE_BYTES)
                    part = reader.feed(bytes(data))
                    if not data and not reader.end():
                        raise ServerLost("the server broke off its answer")
                    if reader.status not in (0, 200):
                        refused = (refused + part)[:BODY_BYTES_MAX]
                    elif part:
                        yield part
                if reader.status != 200:
                    raise refusal(reader.status, refused)
        except (OSError, trio.BrokenResourceError, ValueError, ssl.SSLError) as error:
            raise ServerLost(f"the server at {self.address} failed: {type(error).__name__}") from None

    async def _connect(self) -> trio.abc.Stream:
        address = self.address
        if address.socket_path:
            return await trio.open_unix_socket(address.socket_path)
        if address.tls:
            return await trio.open_ssl_over_tcp_stream(address.host, address.port, https_compatible=True)
        return await trio.open_tcp_stream(address.host, address.port)

    def _head(self, method: str, path: str, body_bytes: int) -> bytes:
        key = f"Authorization: Bearer {self._key}\r\n" if self._key else ""
        host = f"{self.address.host}:{self.address.port}" if self.address.host else "localhost"
        return (
            f"{method} {self.address.prefix}{path} HTTP/1.1\r\nHost: {host}\r\n{key}Content-Type: application/json\r\n"
            f"Content-Length: {body_bytes}\r\nConnection: close\r\n\r\n"
        ).encode()


def refusal(status: int, body: bytes) -> OctonodeError:
    """Our error for what a server answered instead of 200, or within a stream."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = {}
    fields = document if isinstance(document, dict) else {}
    error = fields.get("error", fields)
    error = error if isinstance(error, dict) else {"message": str(error)}
    reason = printable(str(error.get("message") or fields.get("detail") or f"status {status}"), REASON_CHARACTERS_MAX)
    if status in (400, 413, 422):
        return _bad_request(error, reason)
    if status in (401, 403):
        return OctonodeError(f"the server does not take our key: {reason}", code="ENGINE_FAILED")
    if status in (429, 503):
        return OctonodeError("the engine is busy", code="OVERLOADED", retry_after_seconds=1.0)
    lost = ServerLost(f"the engine failed: {reason}")
    lost.status = status
    return lost


def _bad_request(error: dict[str, Any], reason: str) -> OctonodeError:
    words = str(error.get("message", "")).lower()
    about_context = error.get("type") == "exceed_context_size_error" or error.get("param") in _CONTEXT_PARAMETERS
    if about_context or any(each in words for each in _CONTEXT_WORDS):
        return OctonodeError(f"the prompt is longer than the context: {reason}", code="CONTEXT_EXCEEDED")
    return OctonodeError(f"the engine refused the request: {reason}", code="BAD_REQUEST")


def _event(value: bytes) -> dict[str, Any]:
    """One event of a stream. Raises what the server reports in it."""
    event = _json(value)
    if not isinstance(event, dict):
        raise ServerLost("the server sent an event that is no object")
    error = event.get("error", event if event.get("object") == "error" else None)
    if error is not None:
        code = error.get("code") if isinstance(error, dict) else None
        raise refusal(code if isinstance(code, int) else 500, value)
    return event


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ServerLost("the server's answer is not JSON") from None
