"""Pins on real stores and a real state file: what is brought, kept, shown and let go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.config import Config, ModelsConfig, NodeConfig, StorageConfig
from octonode.errors import ConfigError, OctonodeError
from octonode.identity import NodeKey
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway import Gateway
from octonode.ipfs.gateway_client import GatewayAddress
from octonode.models.fetch import fetch
from octonode.models.fetching import FetchProgress, FetchReport
from octonode.models.library import Library, ModelEntry
from octonode.models.sources.gateway import GatewaySource
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.node.keeper import NodeKeeper
from octonode.node.pin_table import PinTable
from octonode.node.shelf import Shelf
from octonode.node.storage import build_storage, to_serve
from octonode.protocol.pins import PinRequest
from octonode.state import State
from octonode.tasks.keeping import Keeping
from octonode.tasks.pinning import Pinning
from octonode.tasks.pins import Pin, Quotas, Released
from octonode.testing.testnet import write_scripted_model

PUBLISHER, US, ASKER = NodeKey(b"p" * 32), NodeKey(b"u" * 32), NodeKey(b"a" * 32)


class Shop:
    """A library with a shelf, a stand-in for `node.source.Source`, which needs the whole network."""

    def __init__(self, home: Path, key: NodeKey, *, disk_bytes_max: int = 0) -> None:
        home.mkdir(exist_ok=True)
        self.library = Library(ModelStore(home, disk_bytes_max=disk_bytes_max), TrustTable(home), key)
        self.shelf = Shelf(self.library)

    async def refresh(self) -> None:
        await self.shelf.refresh()


class OneSource:
    """`node.fetches.Fetches` that takes everything from one gateway."""

    def __init__(self, store: ModelStore, port: int) -> None:
        self._store = store
        self._port = port
        self.roots: list[str] = []

    async def fetch(self, root: Cid, progress: Callable[[FetchProgress], None], *, priority: int = 0) -> FetchReport:
        self.roots.append(root.text)
        source = GatewaySource(GatewayAddress("127.0.0.1", self._port))
        return await fetch(root, self._store, sources=[source], progress=progress)


class Served(dict[str, Any]):
    """`tasks.residency.Residency`, as far as it is asked."""

    def model(self, root: str) -> Any:
        return self.get(root)


class Keeper:
    def __init__(self, home: Path, port: int, **quotas: int) -> None:
        self.shop = Shop(home, US)
        self.served = Served()
        self.holders: dict[str, int] = {}
        self.fetches = OneSource(self.shop.library.store, port)
        self.state = State(home / "state.sqlite", receipts_max=10)
        self.node = NodeKeeper(
            own=US.peer_id, library=self.shop.library, shelf=self.shop.shelf, source=self.shop,  # type: ignore[arg-type]
            fetches=self.fetches, residency=self.served, others=lambda root: self.holders.get(root, 0),  # type: ignore[arg-type]
        )  # fmt: skip
        self.keeping = Keeping(own=US.peer_id, quotas=Quotas(**quotas), keeper=self.node, store=PinTable(self.state))
        self.pinning = Pinning(self.keeping, own=US.peer_id, allowed=[ASKER.peer_id])

    async def ask(self, verb: Any, root: str = "", asker: PeerId = ASKER.peer_id, **fields: Any) -> Any:
        return await self.pinning.ask(PinRequest(verb, root, **fields), asker, lambda done, total: None)

    async def code(self, verb: Any, root: str, **fields: Any) -> str:
        with pytest.raises(OctonodeError) as caught:
            await self.ask(verb, root, **fields)
        return caught.value.code


@asynccontextmanager
async def running(home: Path, port: int, **quotas: int) -> AsyncIterator[Keeper]:
    keeper = Keeper(home, port, **quotas)
    await keeper.shop.refresh()
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.state.run)
        await nursery.start(keeper.keeping.run)
        yield keeper
        nursery.cancel_scope.cancel()
    keeper.shop.library.store.close()


@pytest.fixture
def publisher(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "publisher", PUBLISHER)


@pytest.fixture
def model(publisher: Shop, tmp_path: Path) -> ModelEntry:
    return publisher.library.add(write_scripted_model(tmp_path / "words.model", seed=1), name="words")


@pytest.fixture
async def port(publisher: Shop, nursery: trio.Nursery) -> int:
    gateway = Gateway("127.0.0.1:0", publisher.library.store)
    await nursery.start(gateway.run)
    return gateway.port


async def test_a_pin_brings_keeps_and_shows_the_model(tmp_path: Path, model: ModelEntry, port: int) -> None:
    root = model.root.text
    assert model.manifest is not None
    async with running(tmp_path / "keeper", port) as keeper:
        answer = await keeper.ask("pin", root, manifest=model.manifest.encode())
        assert answer.pins[0].state == "kept"
        assert answer.pins[0].size_bytes == model.row.size_bytes == answer.room.peer_bytes
        held = keeper.shop.shelf.get(root)
        assert held is not None
        assert (held.complete, held.entry.row.pinned, held.public) == (True, True, True)
        assert held.name == f"{PUBLISHER.peer_id}/words"
        assert keeper.shop.shelf.manifest(PUBLISHER.peer_id, "words") == model.manifest.encode()
        assert keeper.shop.library.publishers() == ()  # a pin makes nobody trusted
        with pytest.raises(OctonodeError, match="pinned"):
            keeper.shop.library.remove(f"cid:{root}")
        keeper.holders[root] = 1
        assert (await keeper.ask("unpin", root)).room.peer_bytes == 0
        with trio.fail_after(60):
            while keeper.shop.shelf.get(root) is not None:
                await trio.sleep(0.01)


async def test_pins_are_there_after_a_restart(tmp_path: Path, model: ModelEntry, port: int) -> None:
    root, home = model.root.text, tmp_path / "keeper"
    async with running(home, port) as keeper:
        before = (await keeper.ask("pin", root, until_ms=2**60)).pins
    async with running(home, port) as keeper:
        assert (await keeper.ask("list")).pins == before
        assert keeper.fetches.roots == []
        await keeper.ask("unpin", root)
        assert keeper.keeping.book.released.keys() == {root}
    async with running(home, port) as keeper:
        assert (await keeper.ask("list")).pins == ()
        assert keeper.keeping.book.released.keys() == {root}
        assert (await keeper.ask("pin", root)).pins[0].state == "kept"
        assert keeper.keeping.book.released == {}


async def test_what_cannot_be_pinned(tmp_path: Path, publisher: Shop, model: ModelEntry, port: int) -> None:
    assert model.manifest is not None
    other = publisher.library.add(write_scripted_model(tmp_path / "other.model", seed=2), name="other")
    assert other.manifest is not None
    async with running(tmp_path / "keeper", port) as keeper:
        for root in ("nonsense", str(model.manifest.cid), "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"):
            assert await keeper.code("pin", root) == "BAD_MESSAGE"
        root = model.root.text
        for manifest in (b"junk", other.manifest.encode()):
            assert await keeper.code("pin", root, manifest=manifest) == "BAD_MESSAGE"
        own = keeper.shop.library.add(write_scripted_model(tmp_path / "own.model", seed=3), name="own", public=False)
        await keeper.shop.refresh()
        assert await keeper.code("pin", own.root.text) == "FORBIDDEN"
        assert (await keeper.ask("pin", own.root.text, asker=US.peer_id)).pins[0].state == "kept"
        assert keeper.fetches.roots == []


async def test_a_model_that_is_served_is_not_removed_with_its_last_pin(
    tmp_path: Path, model: ModelEntry, port: int
) -> None:
    root = model.root.text
    async with running(tmp_path / "keeper", port) as keeper:
        await keeper.ask("pin", root)
        keeper.served[root], keeper.holders[root] = object(), 1
        await keeper.ask("unpin", root)
        await trio.sleep(0.1)
        assert keeper.shop.shelf.get(root) is not None


async def test_the_free_disk_is_what_the_quota_of_models_leaves(tmp_path: Path, model: ModelEntry, port: int) -> None:
    async with running(tmp_path / "keeper", port) as keeper:
        whole = await keeper.node.disk_free_bytes()
        assert whole > 0
        keeper.shop.library.store.disk_bytes_max = 10 * model.row.size_bytes
        assert await keeper.node.disk_free_bytes() == 10 * model.row.size_bytes
        await keeper.ask("pin", model.root.text)
        assert await keeper.node.disk_free_bytes() == 9 * model.row.size_bytes


async def test_rows(tmp_path: Path, nursery: trio.Nursery) -> None:
    state = State(tmp_path / "state.sqlite", receipts_max=10)
    await nursery.start(state.run)
    table = PinTable(state)
    one = Pin("root", ASKER.peer_id, 5, 4, 3, True, False)
    two = Pin("root", US.peer_id, 0, 6)
    await table.save(one, b"manifest")
    await table.save(two)
    await table.save(Pin("root", ASKER.peer_id, 9, 4, 3, True, True))
    assert await table.load() == ([Pin("root", ASKER.peer_id, 9, 4, 3, True, True), two], [])
    assert await table.manifest("root") == b"manifest"
    await table.drop(one, None)
    assert await table.manifest("root") == b"manifest"
    await table.drop(two, Released("root", 3, 7))
    assert await table.manifest("root") == b""
    assert await table.load() == ([], [Released("root", 3, 7)])
    await table.save(one)
    assert await table.load() == ([one], [])
    await table.drop(one, Released("root", 3, 7))
    await table.forget("root")
    assert await table.load() == ([], [])


def _storage(home: Path, *, role: Any = "full", allowed: tuple[str, ...] = (), serve: tuple[str, ...] = ()) -> Any:
    config = Config(
        home, node=NodeConfig(role), models=ModelsConfig(serve=serve), storage=StorageConfig(allowed_peers=allowed)
    )
    return config, build_storage(config, US.peer_id, None, None, lambda: None)  # type: ignore[arg-type]


def test_the_role_and_its_settings(tmp_path: Path) -> None:
    _, storage = _storage(tmp_path)
    assert storage.room(100) is None  # nobody may pin here, so nothing is said
    assert storage.pinning.refusal(ASKER.peer_id).code == "FORBIDDEN"
    assert storage.pinning.refusal(US.peer_id) is None
    _, storage = _storage(tmp_path, allowed=(ASKER.peer_id,))
    assert storage.room(100).free_bytes == 100
    assert storage.pinning.refusal(ASKER.peer_id) is None
    config, storage = _storage(tmp_path, role="storage")
    assert storage.room(100).total_bytes == 100
    assert to_serve(config, ["cid:x"]) == ()
    assert to_serve(Config(tmp_path, models=ModelsConfig(serve=("a/b",))), ["cid:x"]) == ("a/b", "cid:x")
    with pytest.raises(ConfigError, match=r"storage\.allowed_peers"):
        _storage(tmp_path, allowed=("nobody",))
    with pytest.raises(ConfigError, match="models pin"):
        _storage(tmp_path, role="storage", serve=("a/b",))
