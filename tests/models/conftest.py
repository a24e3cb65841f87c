"""A small valid GGUF, libraries with keys of their own, and gateways that serve their stores."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from octonode.identity import NodeKey
from octonode.ipfs.gateway import Gateway, GatewayLimits
from octonode.ipfs.gateway_client import GatewayAddress
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable

MIB = 1024 * 1024


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def make_gguf(size: int = 4096, seed: int = 1, **more: str) -> bytes:
    """A GGUF v3 whose header parses, with one tensor of random bytes: `size` bytes in all."""
    texts = {"general.architecture": "llama", "general.name": "Tiny Test", "general.license": "mit", **more}
    texts["tokenizer.chat_template"] = "{{ messages }}"
    body = b"".join(_text(key) + struct.pack("<I", 8) + _text(value) for key, value in texts.items())
    body += _text("llama.context_length") + struct.pack("<II", 4, 2048)
    body += _text("general.file_type") + struct.pack("<II", 4, 3)
    body += _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("b")
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(texts) + 3) + body
    head += _text("tensor") + struct.pack("<IQIQ", 1, 32, 0, 0)
    assert size >= len(head)
    return head + random.Random(seed).randbytes(size - len(head))


@pytest.fixture(scope="session")
def gguf() -> Callable[..., bytes]:
    return make_gguf


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """Ten and a bit leaves."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(make_gguf(10 * MIB + 333))
    return path


@pytest.fixture
def make_library(tmp_path: Path) -> Callable[..., Library]:
    """`make_library("a")` is a library with its own home and key; `trust_all` for those who only receive."""

    def make(name: str, *, trust_all: bool = False, disk_bytes_max: int = 0) -> Library:
        home = tmp_path / f"home-{name}"
        home.mkdir(exist_ok=True)
        key = NodeKey(name.encode().ljust(32, b"."))
        return Library(ModelStore(home, disk_bytes_max=disk_bytes_max), TrustTable(home, trust_all=trust_all), key)

    return make


@pytest.fixture
def serve_store() -> Callable[..., contextlib.AbstractAsyncContextManager[GatewayAddress]]:
    @contextlib.asynccontextmanager
    async def serving(store: ModelStore, limits: GatewayLimits | None = None) -> AsyncIterator[GatewayAddress]:
        gateway = Gateway("127.0.0.1:0", store, limits)
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            yield GatewayAddress("127.0.0.1", gateway.port)
            nursery.cancel_scope.cancel()

    return serving
