"""A lean client of one llama.cpp server over its unix socket: one completion a connection.

The server stops working on a request when its connection closes, in prefill too (between two chunks), which is the only
way to cancel there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import trio

from octonode.engines.http_response import EventReader, ResponseReader
from octonode.errors import OctonodeError

RECEIVE_BYTES = 64 * 1024


class Completions:
    """Requests to the server behind one unix socket."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path

    async def get(self, path: str) -> Any:
        """The JSON document at `path`. Raises OctonodeError as `stream` does."""
        return await self._whole("GET", path, b"")

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON document that answers `body`. Raises OctonodeError as `stream` does."""
        return await self._whole("POST", path, json.dumps(body).encode())

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The events of a streamed answer, those of one read together. Closing the iterator cancels it.

        Raises OctonodeError: CONTEXT_EXCEEDED, BAD_REQUEST, OVERLOADED or ENGINE_FAILED, by what the server says.
        """
        reader = EventReader()
        async with aclosing(self._exchange("POST", path, json.dumps(body).encode())) as parts:
            async for part in parts:
                try:
                    values = reader.feed(part)
                except ValueError as error:
                    raise OctonodeError(f"the engine's answer is malformed: {error}", code="ENGINE_FAILED") from None
                events = [_event(value) for value in values if value != b"[DONE]"]
                if events:
                    yield events

    async def _whole(self, method: str, path: str, body: bytes) -> Any:
        return _json(b"".join([part async for part in self._exchange(method, path, body)]))

    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        reader = ResponseReader()
        try:
            async with await trio.open_unix_socket(self._socket_path) as stream:
                await stream.send_all(head.encode() + body)
                while not reader.complete:
                    data = await stream.receive_some(RECEIVE_BYTES)
                    if not data and not reader.end():
                        raise OctonodeError("the engine broke off its answer", code="ENGINE_FAILED")
                    part = reader.feed(data)
                    if reader.status not in (0, 200):
                        raise await _refusal(stream, reader, part)
                    if part:
                        yield part
        except (OSError, trio.BrokenResourceError, ValueError) as error:
            raise OctonodeError(f"the engine's server failed: {type(error).__name__}", code="ENGINE_FAILED") from None


async def _refusal(stream: trio.SocketStream, reader: ResponseReader, body: bytes) -> OctonodeError:
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


def _event(value: bytes) -> dict[str, Any]:
    """One server-sent event. Raises what the server reports."""
    event = _json(value)
    if not isinstance(event, dict):
        raise OctonodeError("the engine sent an event that is no object", code="ENGINE_FAILED")
    if "error" in event or ("code" in event and "message" in event):  # bare in an event that is named error
        raise refusal(event.get("error", event))
    return event


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise OctonodeError("the engine's answer is not JSON", code="ENGINE_FAILED") from None
