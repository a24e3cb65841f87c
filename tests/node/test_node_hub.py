"""A node brings models of a hub: names, versions, what is not downloaded twice, room, and what is refused. The hub is a
stand-in of ours, the library that speaks to it the real one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from octonode.api.schema import ModelProgress
from octonode.errors import NotFound, OctonodeError
from octonode.identity import NodeKey
from octonode.models.formats import SCRIPTED_MAGIC, FormatRefused
from octonode.models.library import Library, ModelEntry
from octonode.models.reference import HubReference, parse
from octonode.models.sources.hub import Hub, HubSettings
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.node.hub import HubModels
from octonode.testing.hub import HubStandIn

KEY = NodeKey(b"hub".ljust(32, b"."))


def model(seed: int, size: int = 200_000) -> bytes:
    return SCRIPTED_MAGIC + random.Random(seed).randbytes(size)


class Place:
    """A node's library before a hub."""

    def __init__(self, home: Path, hub: HubStandIn, disk_bytes_max: int) -> None:
        self.home = home
        self.hub = hub
        self.library = Library(ModelStore(home, disk_bytes_max=disk_bytes_max), TrustTable(home), KEY)
        self.refreshed = 0
        self.asked_for: list[int] = []
        self.told: list[ModelProgress] = []
        settings = HubSettings(hub.url, "")
        self.models = HubModels(
            Hub(settings), self.library, home, own=KEY.peer_id, refresh=self._refresh, make_room=self._make_room
        )

    async def _refresh(self) -> None:
        self.refreshed += 1

    async def _make_room(self, missing_bytes: int) -> bool:
        self.asked_for.append(missing_bytes)
        for entry in self.library.list():
            self.library.store.remove(entry.root)
        return True

    async def bring(self, text: str) -> tuple[ModelEntry, int]:
        reference = parse(text)
        assert isinstance(reference, HubReference)
        root, _, taken_bytes = await self.models.bring(reference, self.told.append)
        entry = self.library.entry(root)
        assert entry is not None
        return entry, taken_bytes


@asynccontextmanager
async def a_place(tmp_path: Path, *, disk_bytes_max: int = 0) -> AsyncIterator[Place]:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    async with HubStandIn() as hub:
        yield Place(home, hub, disk_bytes_max)


def name_of(entry: ModelEntry) -> str:
    return entry.name.partition("/")[2]


async def test_manifest_says_where_it_is_from(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        commit = place.hub.commit("Org/Words-GGUF", {"Words.Q4_K_M.gguf": model(1), "x.bin": b"x"}, "v2.1.0")
        entry, taken_bytes = await place.bring("hf:Org/Words-GGUF@v2.1.0")
        assert taken_bytes == len(model(1))
        assert name_of(entry) == "words.q4_k_m@2.1.0"
        assert entry.manifest is not None
        origin = {"repo": "Org/Words-GGUF", "commit": commit, "file": "", "revision": "v2.1.0"}
        assert entry.manifest.manifest.ext["hub"] == origin
        assert entry.manifest.manifest.licence == "apache-2.0"
        assert entry.row.public
        assert place.refreshed == 1
        stages = {each.stage for each in place.told}
        assert {"find", "fetch", "import"} <= stages
        assert place.told[-1].bytes_by_source in ({}, {"hf:Org/Words-GGUF": len(model(1))})


async def test_what_is_held_is_not_downloaded_again(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        commit = place.hub.commit("o/r", {"m.gguf": model(1), "README.md": b"1"}, "v1")
        first, _ = await place.bring("hf:o/r")
        place.hub.commit("o/r", {"m.gguf": model(1), "README.md": b"2"})  # other commit, same model
        place.hub.sent_bytes = 0
        for text in ("hf:o/r", "hf:o/r@v1", f"hf:o/r@{commit}", "hf:o/r/m.gguf"):
            again, taken_bytes = await place.bring(text)
            assert (again.root, taken_bytes) == (first.root, 0)
        assert place.hub.sent_bytes == 0


async def test_commit_that_is_held_needs_no_hub_and_a_branch_is_then_what_it_was(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        commit = place.hub.commit("o/r", {"m.gguf": model(1)})
        first, _ = await place.bring("hf:o/r")
        requests = len(place.hub.requests)
        await place.bring(f"hf:o/r@{commit}")
        assert len(place.hub.requests) == requests
        place.hub.faults.status = 503
        assert (await place.bring("hf:o/r"))[0].root == first.root
        with pytest.raises(OctonodeError) as caught:
            await place.bring("hf:o/other")
        assert caught.value.code == "UNREACHABLE"


async def test_new_commit_is_a_new_version(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        versions = []
        for seed in range(3):
            place.hub.commit("o/r", {"m.gguf": model(seed)})
            versions.append(name_of((await place.bring("hf:o/r"))[0]))
        assert versions == ["m@1.0.0", "m@1.0.1", "m@1.0.2"]


async def test_other_repository_with_the_same_file_name_has_a_name_of_its_own(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        own = tmp_path / "third.gguf"
        own.write_bytes(model(9))
        place.library.add(own)
        for number, repository in enumerate(("a/r", "b/r")):
            place.hub.commit(repository, {"m.gguf": model(number)})
        place.hub.commit("c/r", {"third.gguf": model(5)})
        names = [name_of((await place.bring(f"hf:{each}/r"))[0]) for each in "abc"]
        assert names == ["m@1.0.0", "b-m@1.0.0", "c-third@1.0.0"]


async def test_repository_of_several_files_is_a_directory_named_by_it(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        files = {"unet/a.safetensors": model(1), "config.json": b"{}", ".gitattributes": b"x", "old.ckpt": model(2)}
        place.hub.commit("o/Some.Model", files)
        entry, _ = await place.bring("hf:o/Some.Model")
        assert entry.manifest is not None
        assert [file.path for file in entry.manifest.manifest.files] == ["config.json", "unet/a.safetensors"]
        assert name_of(entry) == "some.model@1.0.0"
        folder, _ = await place.bring("hf:o/Some.Model/unet")
        assert folder.manifest is not None
        assert [file.path for file in folder.manifest.manifest.files] == ["a.safetensors"]


async def test_model_of_a_closed_repository_is_not_handed_on(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        place.hub.commit("o/r", {"m.gguf": model(1)})
        place.hub.repositories["o/r"].gated = True
        place.models = HubModels(
            Hub(HubSettings(place.hub.url, place.hub.token)), place.library, place.home, own=KEY.peer_id,
            refresh=place._refresh,
        )  # fmt: skip
        assert not (await place.bring("hf:o/r"))[0].row.public


async def test_pickle_under_another_name_is_refused_and_deleted(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        place.hub.commit("o/r", {"m.gguf": b"\x80\x04" + bytes(100_000)})
        with pytest.raises(FormatRefused, match="pickle"):
            await place.bring("hf:o/r")
        assert place.library.list() == []
        assert not any((place.home / "downloads" / "hub").glob("*/*"))


async def test_quota_is_checked_before_the_download_and_room_is_made(tmp_path: Path) -> None:
    async with a_place(tmp_path, disk_bytes_max=300_000) as place:
        place.hub.commit("o/r", {"m.gguf": model(1)})
        place.hub.commit("o/s", {"n.gguf": model(2)})
        place.hub.commit("o/huge", {"h.gguf": model(3, 400_000)})
        await place.bring("hf:o/r")
        await place.bring("hf:o/s")
        assert place.asked_for == [100_000 + 2 * len(SCRIPTED_MAGIC)]
        place.hub.sent_bytes = 0
        with pytest.raises(OctonodeError) as caught:
            await place.bring("hf:o/huge")
        assert caught.value.code == "DISK_FULL"
        assert place.hub.sent_bytes == 0


async def test_two_at_once_download_once(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        place.hub.commit("o/r", {"m.gguf": model(1)})
        taken: list[int] = []

        async def one() -> None:
            taken.append((await place.bring("hf:o/r"))[1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
        assert sorted(taken) == [0, len(model(1))]


async def test_unfinished_downloads_go_after_a_while(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        old = place.home / "downloads" / "hub" / "x--y" / "abc"
        old.mkdir(parents=True)
        place.hub.commit("o/r", {"m.gguf": model(1)})
        await place.bring("hf:o/r")
        place.models.sweep()
        assert old.exists()
        place.models._expire_seconds = 1e-9
        place.models.sweep()
        assert not old.exists()


async def test_reference_of_what_was_not_brought_says_how(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        with pytest.raises(NotFound, match="octonode models fetch hf:o/r"):
            place.library.resolve("hf:o/r")
        place.hub.commit("o/r", {"m.gguf": model(1)})
        entry, _ = await place.bring("hf:o/r")
        assert place.library.show("hf:o/r").root == entry.root
