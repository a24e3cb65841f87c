"""A client of /v1/chat/completions that costs little beside what it measures: one connection a question, raw sockets.

The moment of the first text is taken when its bytes arrive; everything is parsed after the end.
"""

from __future__ import annotations

import json
import re
import socket
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trio

FIRST_TEXT = re.compile(rb'"content": ?"[^"]')
RECEIVE_BYTES = 65536
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One streamed answer; times count from before the connection was made."""

    status: int
    first_seconds: float
    """To the first text; 0 where there was none."""
    seconds: float
    text: str
    tokens_out: int
    finish_reason: str
    """Empty where the stream did not come to its end."""

    @property
    def whole(self) -> bool:
        return self.status == 200 and bool(self.finish_reason)


def body(model: str, prompt: str, max_tokens: int, more: Mapping[str, Any] | None = None) -> bytes:
    """A greedy request, streamed, with usage; `more` are further fields."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **(more or {}),
    }
    return json.dumps(request).encode()


async def ask(
    api: str,
    model: str,
    prompt: str,
    max_tokens: int,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    more: Mapping[str, Any] | None = None,
) -> Reply:
    """Ask once. Never raises for what the other side does: a broken answer is a Reply that is not whole."""
    url = urllib.parse.urlsplit(api)
    assert url.hostname is not None
    assert url.port is not None
    content = body(model, prompt, max_tokens, more)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url.hostname}:{url.port}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    data, first, begun = bytearray(), 0.0, trio.current_time()
    with trio.move_on_after(timeout_seconds), socket.socket() as sock:
        sock.setblocking(False)
        try:
            await _send(sock, (url.hostname, url.port), head.encode() + content)
            while received := await _receive(sock):
                data += received
                if not first and FIRST_TEXT.search(data):
                    first = trio.current_time() - begun
        except OSError:
            pass
    return _parse(bytes(data), first, trio.current_time() - begun)


async def _send(sock: socket.socket, place: tuple[str, int], data: bytes) -> None:
    """Connect, and send as the kernel takes it. Raises OSError."""
    try:
        sock.connect(place)
    except BlockingIOError:
        await trio.lowlevel.wait_writable(sock)
        if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "no connection") from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def _receive(sock: socket.socket) -> bytes:
    """One pass of the loop for each read: trio's own sockets take two. Raises OSError."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            continue


def _parse(data: bytes, first: float, seconds: float) -> Reply:
    head, _, rest = data.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    chunked = re.search(rb"(?im)^transfer-encoding: *chunked", head)
    content = _dechunked(rest) if chunked else rest
    pieces: list[str] = []
    tokens, finish, ended = 0, "", False
    for line in content.split(b"\n"):
        if line.strip() == b"data: [DONE]":
            ended = True
        elif line.startswith(b"data: {"):
            event: dict[str, Any] = json.loads(line[6:])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event.get("choices", []):
                pieces.append(choice.get("delta", {}).get("content") or "")
                finish = choice.get("finish_reason") or finish
    return Reply(status, first, seconds, "".join(pieces), tokens, finish if ended else "")


def _dechunked(data: bytes) -> bytes:
    """The content of a chunked body, as far as it came."""
    content, at = bytearray(), 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].split(b";")[0] or b"0", 16)
        if size == 0:
            break
        content += data[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return bytes(content)
