"""A lean client of one llama.cpp server over its unix socket: one streamed chat completion a connection.

The server stops working on a request when its connection closes, in prefill too (between two chunks), which is the only
way to cancel there. HTTP/1.1 with chunked bodies, parsed just as far as this one server needs (RFC 9112 section 7.1).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import trio

from octonode.errors import OctonodeError

HEAD_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 4 * 1024 * 1024
"""Of an answer that is not streamed, and of one chunk or one event of a stream."""
RECEIVE_BYTES = 64 * 1024


class BodyReader:
    """Takes the bytes of a response apart: `status`, then the body freed of its transfer coding. Pure."""

    def __init__(self) -> None:
        self.status = 0
        self.complete = False
        self._buffer = b""
        self._chunked = False
        self._left = 0
        """Bytes of the body, or of the chunk, that are still to come."""

    def feed(self, data: bytes) -> bytes:
        """The part of the body that these bytes add. Raises ValueError for what is not such a response."""
        self._buffer += data
        if not self.status and not self._read_head():
            return b""
        if not self._chunked:
            body, self._buffer = self._buffer[: self._left], b""
            self._left -= len(body)
            self.complete = self._left == 0
            return body
        return self._read_chunks()

    def _read_head(self) -> bool:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise ValueError("the head of the response is too long")
            return False
        first, *lines = head.split(b"\r\n")
        version, _, status = first.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ValueError("not an HTTP/1 response")
        self.status = int(status[:3])
        headers = dict(line.lower().split(b": ", 1) for line in lines if b": " in line)
        self._chunked = headers.get(b"transfer-encoding") == b"chunked"
        self._left = int(headers.get(b"content-length", b"0"))
        if not 0 <= self._left <= BODY_BYTES_MAX:
            raise ValueError("the body of the response has a bad length")
        self._buffer = rest
        return True

    def _read_chunks(self) -> bytes:
        parts: list[bytes] = []
        while not self.complete:
            size_text, separator, rest = self._buffer.partition(b"\r\n")
            if not separator:
                break
            size = int(size_text, 16)
            if not 0 <= size <= BODY_BYTES_MAX:
                raise ValueError("a chunk has a bad length")
            if len(rest) < size + 2:
                break
            parts.append(rest[:size])
            self._buffer = rest[size + 2 :]
            self.complete = size == 0
        return b"".join(parts)


class Completions:
    """Requests to the server behind one unix socket."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path

    async def get(self, path: str) -> Any:
        """The JSON document at `path`. Raises OctonodeError as `stream` does."""
        body = b"".join([part async for part in self._exchange("GET", path, b"")])
        return _json(body)

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The events of a streamed chat completion, those of one read together. Closing the iterator cancels it.

        Raises OctonodeError: CONTEXT_EXCEEDED, BAD_REQUEST, OVERLOADED or ENGINE_FAILED, by what the server says.
        """
        pending = b""
        async with aclosing(self._exchange("POST", "/v1/chat/completions", json.dumps(body).encode())) as parts:
            async for part in parts:
                *whole, pending = (pending + part).split(b"\n\n")
                if len(pending) > BODY_BYTES_MAX:
                    raise OctonodeError("the engine sent an event without an end", code="ENGINE_FAILED")
                events = [event for event in map(_event, whole) if event is not None]
                if events:
                    yield events

    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        reader = BodyReader()
        try:
            async with await trio.open_unix_socket(self._socket_path) as stream:
                await stream.send_all(head.encode() + body)
                while not reader.complete:
                    data = await stream.receive_some(RECEIVE_BYTES)
                    if not data:
                        raise OctonodeError("the engine broke off its answer", code="ENGINE_FAILED")
                    part = reader.feed(data)
                    if reader.status not in (0, 200):
                        raise await _refusal(stream, reader, part)
                    if part:
                        yield part
        except (OSError, trio.BrokenResourceError, ValueError) as error:
            raise OctonodeError(f"the engine's server failed: {type(error).__name__}", code="ENGINE_FAILED") from None


async def _refusal(stream: trio.SocketStream, reader: BodyReader, body: bytes) -> OctonodeError:
    while not reader.complete:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            break
        body += reader.feed(data)
    document = _json(body)
    return refusal(document.get("error") if isinstance(document, dict) else None)


def refusal(error: Any) -> OctonodeError:
    """Our error for the `error` object of the server, whose texts are cut: they may quote what was asked."""
    fields = error if isinstance(error, dict) else {}
    kind, status = fields.get("type"), fields.get("code")
    if kind == "exceed_context_size_error":
        tokens, limit = fields.get("n_prompt_tokens"), fields.get("n_ctx")
        return OctonodeError(
            f"the prompt has {tokens} tokens and the context {limit}; shorten it", code="CONTEXT_EXCEEDED"
        )
    message = str(fields.get("message", "no reason given"))[:200]
    if status == 400 or kind == "invalid_request_error":
        return OctonodeError(f"the engine refused the request: {message}", code="BAD_REQUEST")
    if status == 503 or kind == "unavailable_error":
        return OctonodeError("the engine is busy", code="OVERLOADED", retry_after_seconds=1.0)
    return OctonodeError(f"the engine failed: {message}", code="ENGINE_FAILED")


def _event(text: bytes) -> dict[str, Any] | None:
    """One server-sent event; None for comments (keep-alives) and the end mark. Raises what the server reports."""
    text = text.strip()
    name, _, value = text.partition(b": ")
    if name not in (b"data", b"error") or value == b"[DONE]":
        return None
    event = _json(value)
    if not isinstance(event, dict):
        raise OctonodeError("the engine sent an event that is no object", code="ENGINE_FAILED")
    if name == b"error" or "error" in event:
        raise refusal(event.get("error", event))
    return event


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise OctonodeError("the engine's answer is not JSON", code="ENGINE_FAILED") from None
