"""Files of models by content path, through a gateway over the store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from octonode.ipfs.dagpb import DirectoryNode, interpret
from octonode.ipfs.gateway_client import GatewayAddress
from octonode.models.held import REHASH_BYTES_MAX
from octonode.models.library import Library, ModelEntry

MIB = 1024 * 1024


@pytest.fixture
def library(make_library: Callable[..., Library]) -> Library:
    return make_library("a")


@pytest.fixture
def folder(tmp_path: Path, gguf: Callable[..., bytes]) -> Path:
    folder = tmp_path / "folder"
    (folder / "deep down").mkdir(parents=True)
    (folder / "model.gguf").write_bytes(gguf(3 * MIB + 5))
    (folder / "deep down" / "notes é.txt").write_bytes(b"read me")
    (folder / "empty.txt").write_bytes(b"")
    return folder


@pytest.fixture
def model(library: Library, folder: Path) -> ModelEntry:
    return library.add(folder, name="whole")


async def _ask(address: GatewayAddress, target: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"http://{address}{target}"
        return await client.request(method, url, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_files_below_a_directory(library: Library, folder: Path, model: ModelEntry, serve_store: Any) -> None:
    store = library.store
    held = store.require(model.root)
    by_path = {file.path: file.root for file in held.files}
    top = interpret(held.index.node(model.root) or b"")
    assert isinstance(top, DirectoryNode)
    down = next(link.cid for link in top.entries if link.name == "deep down")
    async with serve_store(store) as address:
        for path, root in by_path.items():
            target = f"/ipfs/{model.root}/{quote(path)}"
            answer = await _ask(address, target)
            assert (answer.status_code, answer.content) == (200, (folder / path).read_bytes())
            assert answer.headers["etag"] == f'"{root}"'
            assert answer.headers["x-ipfs-path"] == target
            roots = [model.root, down, root] if "/" in path else [model.root, root]
            assert answer.headers["x-ipfs-roots"] == ",".join(map(str, roots))
            again = await _ask(address, target, if_none_match=f'W/"{root}"')
            assert (again.status_code, again.content) == (304, b"")
            assert (await _ask(address, f"/ipfs/{root}")).content == answer.content  # by its own root as well
        part = await _ask(address, f"/ipfs/{model.root}/model.gguf", range=f"bytes={MIB - 1}-{MIB}")
        assert part.content == (folder / "model.gguf").read_bytes()[MIB - 1 : MIB + 1]
        below = await _ask(address, f"/ipfs/{down}/{quote('notes é.txt')}")
        assert below.content == b"read me"
        empty = await _ask(address, f"/ipfs/{model.root}/empty.txt", range="bytes=0-")  # as caches that slice ask
        assert (empty.status_code, empty.content) == (200, b"")


@pytest.mark.parametrize(
    ("below", "status"),
    [
        ("", 501),
        ("/", 501),
        ("/deep%20down", 501),
        ("/deep%20down/", 501),
        ("/missing", 404),
        ("/model.gguf/", 404),
        ("/model.gguf/more", 404),
        ("/deep%20down/missing", 404),
        ("/model.gguf?format=raw", 400),
    ],
)
async def test_what_is_no_file(library: Library, model: ModelEntry, serve_store: Any, below: str, status: int) -> None:
    async with serve_store(library.store) as address:
        answer = await _ask(address, f"/ipfs/{model.root}{below}")
        assert (answer.status_code, answer.headers["cache-control"]) == (status, "no-store")
        assert answer.json()["error"]["message"]


async def test_private_models_are_not_told_apart_from_missing_ones(
    library: Library, model: ModelEntry, serve_store: Any
) -> None:
    library.publish(f"cid:{model.root}", public=False)
    file = library.store.require(model.root).files[-1].root
    async with serve_store(library.store) as address:
        for target in (f"/ipfs/{model.root}", f"/ipfs/{model.root}/model.gguf", f"/ipfs/{file}"):
            for said in ({}, {"if_none_match": "*"}):
                answer = await _ask(address, target, **said)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
        assert (await _ask(address, f"/ipfs/{model.root}/model.gguf", if_none_match=f'"{file}"')).status_code == 404


async def test_parts_that_are_held_of_a_file_that_is_not(
    library: Library, folder: Path, model: ModelEntry, serve_store: Any
) -> None:
    held, data = library.store.require(model.root), (folder / "model.gguf").read_bytes()
    number = next(file.first_leaf for file in held.files if file.path == "model.gguf")
    held.change_bits(drop=1 << (number + 1))
    target = f"/ipfs/{model.root}/model.gguf"
    async with serve_store(library.store) as address:
        assert (await _ask(address, target)).status_code == 404
        assert (await _ask(address, target, "HEAD")).status_code == 404
        assert (await _ask(address, target, range=f"bytes={MIB - 1}-{MIB}")).status_code == 404
        assert (await _ask(address, target, range=f"bytes={2 * MIB}-")).content == data[2 * MIB :]
        assert (await _ask(address, target, range="bytes=0-99")).content == data[:100]


async def test_another_model_that_holds_the_same_file_stands_in(
    library: Library, folder: Path, model: ModelEntry, serve_store: Any
) -> None:
    alone = library.add(folder / "model.gguf", name="alone")
    held = library.store.require(alone.root)
    held.change_bits(drop=1)
    async with serve_store(library.store) as address:
        assert (await _ask(address, f"/ipfs/{alone.root}")).content == (folder / "model.gguf").read_bytes()


async def test_a_file_that_was_changed_is_hashed_before_it_is_given(
    library: Library, folder: Path, model: ModelEntry, serve_store: Any
) -> None:
    held = library.store.require(model.root)
    path = next(held.path_of(file) for file in held.files if file.path == "model.gguf")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(path.read_bytes()[2 * MIB + 1 : 2 * MIB + 7], b"poison"))
    target = f"/ipfs/{model.root}/model.gguf"
    async with serve_store(library.store) as address:
        assert (await _ask(address, target, range="bytes=0-99")).status_code == 206  # hashed again, and right
        assert (await _ask(address, target)).status_code == 404
        assert (await _ask(address, target, range=f"bytes={2 * MIB}-")).status_code == 404


async def test_a_touched_file_is_not_hashed_without_end_for_an_asker(
    library: Library, tmp_path: Path, gguf: Callable[..., bytes], serve_store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "large.gguf"
    path.write_bytes(gguf(1 * MIB))
    os.truncate(path, REHASH_BYTES_MAX + 2 * MIB)
    entry = library.add(path, name="large")
    os.utime(library.store.require(entry.root).paths[0])
    async with serve_store(library.store) as address:
        assert (await _ask(address, f"/ipfs/{entry.root}")).status_code == 404
        assert "octonode models verify" in caplog.text
        assert (await _ask(address, f"/ipfs/{entry.root}", range="bytes=0-99")).status_code == 206
        library.verify(f"cid:{entry.root}")
        assert len((await _ask(address, f"/ipfs/{entry.root}")).content) == REHASH_BYTES_MAX + 2 * MIB
