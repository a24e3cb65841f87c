"""Two ends of an agent stream joined by a link that loses nothing, and a forge for what no honest end would send."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgpack
import pytest

from octonode.identity import NodeKey
from octonode.ids import AGENT_DOMAIN
from octonode.protocol.exchange import Exchange, Received
from octonode.protocol.framing import encode_frame
from octonode.protocol.limits import DEFAULT_LIMITS, Limits
from octonode.protocol.messages import Message
from octonode.protocol.replay import ReplayWindow

NOW_MS = 1_800_000_000_000
TASK = b"the only task..."


def ids() -> Callable[[], bytes]:
    numbers = itertools.count(1)
    return lambda: next(numbers).to_bytes(16, "big")


@dataclass
class Forge:
    """Makes payloads of one peer with any header and body, signed unless told otherwise."""

    key: NodeKey
    to: NodeKey
    domain: bytes = AGENT_DOMAIN

    def payload(self, type_name: str, body: Any = b"\x80", *, sign: bool | NodeKey = True, **changes: Any) -> bytes:
        raw = body if isinstance(body, bytes) else msgpack.packb(body)
        header = {
            "v": 1,
            "t": type_name,
            "id": bytes(15) + b"\x63",
            "task": TASK,
            "from": self.key.peer_id,
            "to": self.to.peer_id,
            "seq": 0,
            "ts": NOW_MS,
            "exp": NOW_MS + 60_000,
            "hash": sha256(raw).digest(),
            "len": len(raw),
            **changes,
        }
        header_bytes = msgpack.packb({key: item for key, item in header.items() if item is not None})
        signer = sign if isinstance(sign, NodeKey) else self.key
        return msgpack.packb((header_bytes, signer.sign(self.domain + header_bytes) if sign else b"", raw))

    def frame(self, type_name: str, body: Any = b"\x80", **changes: Any) -> bytes:
        return encode_frame(self.payload(type_name, body, **changes))


@dataclass
class Link:
    """An asker and a provider. `say` pushes one message from one end through to the other."""

    limits: Limits = DEFAULT_LIMITS
    chunk_bytes: int = 0
    """Where not 0, bytes arrive in pieces of this size."""
    now_ms: int = NOW_MS
    window: ReplayWindow = field(default_factory=ReplayWindow)
    asker_key: NodeKey = field(default_factory=lambda: NodeKey(b"a" * 32))
    provider_key: NodeKey = field(default_factory=lambda: NodeKey(b"p" * 32))
    stranger_key: NodeKey = field(default_factory=lambda: NodeKey(b"s" * 32))

    def __post_init__(self) -> None:
        self.asker = self.new_asker()
        self.provider = self.new_provider()
        self.as_asker = Forge(self.asker_key, self.provider_key)
        self.as_provider = Forge(self.provider_key, self.asker_key)

    def new_asker(self) -> Exchange:
        return Exchange("asker", self.asker_key, self.provider_key.peer_id, self.limits, new_id=ids())

    def new_provider(self) -> Exchange:
        return Exchange(
            "provider", self.provider_key, self.asker_key.peer_id, self.limits, new_id=ids(), replay=self.window
        )

    def say(self, sender: Exchange, message: Message, **options: Any) -> list[Received]:
        receiver = self.provider if sender is self.asker else self.asker
        data = sender.send(message, self.now_ms, **options)
        step = self.chunk_bytes or len(data)
        events: list[Received] = []
        for start in range(0, len(data), step):
            events += receiver.receive(data[start : start + step], self.now_ms)
        return events

    def ask(self, message: Message, **options: Any) -> list[Received]:
        return self.say(self.asker, message, task=TASK, **options)


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture(scope="session")
def new_link() -> type[Link]:
    return Link


@pytest.fixture
def now_ms() -> int:
    return NOW_MS


@pytest.fixture
def task() -> bytes:
    return TASK
