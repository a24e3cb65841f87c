"""Uploads over a real socket: resumable, durable, bounded; what a client, a disk and a kill may do to them."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from octonode.api import uploads as api_uploads
from octonode.api.ports import Report
from octonode.api.schema import AddModel, ModelOutcome, ModelProgress
from octonode.identity import NodeKey
from octonode.ipfs.cid import Cid
from octonode.ipfs.unixfs import import_file
from octonode.models.formats import SCRIPTED_MAGIC
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.node import upload as upload_module
from octonode.node.uploads import UPLOADS_MAX, Uploads
from octonode.testing.faces import TOKEN, Stage, a_model

ADMIN = {"authorization": f"Bearer {TOKEN}"}
DATA = SCRIPTED_MAGIC + random.Random(2).randbytes(3_000_000)
BASE = "/api/v1/models/uploads"


class Adder:
    """What `Models.add` does with an upload, on a real library."""

    def __init__(self, home: Path) -> None:
        self.library = Library(ModelStore(home), TrustTable(home), NodeKey(b"k" * 32))
        self.asked: list[AddModel] = []

    async def add(self, request: AddModel, report: Report) -> ModelOutcome:
        self.asked.append(request)
        report(ModelProgress("import", 1, 2))
        root = Cid.parse(request.root) if request.root else None
        entry = await trio.to_thread.run_sync(
            lambda: self.library.add(
                Path(request.path), name=request.name, version=request.version or "1.0.0", expected_root=root
            )
        )
        return ModelOutcome(a_model(reference=entry.name, root=entry.root.text))


class Scene:
    def __init__(self, home: Path, url: str, adder: Adder, uploads: Uploads) -> None:
        self.home = home
        self.adder = adder
        self.uploads = uploads
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, headers=ADMIN, timeout=30)

    async def create(self, *files: tuple[str, int], **more: Any) -> str:
        body = {"files": [{"path": path, "size_bytes": size} for path, size in files], **more}
        answer = await self.http.post("/api/v1/models", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["upload"])

    async def put(self, upload: str, path: str, data: bytes, first: int = 0, size: int | None = None) -> httpx.Response:
        total = len(data) + first if size is None else size
        headers = {"content-range": f"bytes {first}-{first + len(data) - 1}/{total}"}
        return await self.http.put(f"{BASE}/{upload}/{path}", content=data, headers=headers)

    async def offset(self, upload: str, path: str) -> int:
        answer = await self.http.head(f"{BASE}/{upload}/{path}")
        assert answer.status_code == 200
        return int(answer.headers["upload-offset"])

    async def finish(self, upload: str, **body: str) -> tuple[int, list[dict[str, Any]]]:
        answer = await self.http.post(f"{BASE}/{upload}/finish", json=body)
        return answer.status_code, [json.loads(line) for line in answer.text.splitlines()]


@asynccontextmanager
async def a_scene(home: Path, *, expire_days: float = 1.0, disk_bytes_max: int = 0) -> AsyncIterator[Scene]:
    home.mkdir(exist_ok=True)
    adder = Adder(home)
    uploads = Uploads(home, ModelStore(home, disk_bytes_max=disk_bytes_max), expire_days=expire_days)
    uploads.connect(adder)
    stage = Stage()
    stage.uploads = uploads  # type: ignore[assignment]
    async with stage.run():
        scene = Scene(home, stage.url, adder, uploads)
        async with scene.http:
            yield scene


async def test_upload_from_first_to_last(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m.gguf", len(DATA)), name="mine", version="1.2.3")
        answer = await scene.put(upload, "m.gguf", DATA)
        assert (answer.status_code, answer.json()["offset_bytes"]) == (200, len(DATA))
        file = tmp_path / "same"
        file.write_bytes(DATA)
        status, lines = await scene.finish(upload, root=import_file(file).root.text)
        assert status == 200
        assert lines[-1]["type"] == "result"
        (entry,) = scene.adder.library.list()
        assert entry.name.endswith("/mine@1.2.3")
        assert entry.paths[0].read_bytes() == DATA
        assert (await scene.http.get(f"{BASE}/{upload}")).status_code == 404
        assert list((tmp_path / "home" / "uploads").iterdir()) == []


async def test_pieces_by_range_and_where_to_go_on(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("a/m.gguf", len(DATA)), name="n")
        assert await scene.offset(upload, "a/m.gguf") == 0
        for first, last in ((0, 1_000_000), (1_000_000, 1_000_001), (1_000_001, len(DATA))):
            answer = await scene.put(upload, "a/m.gguf", DATA[first:last], first, len(DATA))
            assert answer.status_code == 200
            assert int(answer.headers["upload-offset"]) == last
            assert await scene.offset(upload, "a/m.gguf") == last
        assert (await scene.finish(upload))[1][-1]["type"] == "result"


@pytest.mark.parametrize("first", [0, 5, 2000])
async def test_wrong_place_is_refused_and_the_right_one_is_named(tmp_path: Path, first: int) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m", 5000))
        await scene.put(upload, "m", b"x" * 1000, 0, 5000)
        answer = await scene.put(upload, "m", b"y" * 10, first, 5000)
        error = answer.json()["error"]
        assert (error["code"], error["detail"]) == ("BAD_SEQUENCE", {"offset_bytes": 1000})
        assert await scene.offset(upload, "m") == 1000


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"content-range": "bytes 0-9/4999"}, b"x" * 10),
        ({"content-range": "bytes 9-0/5000"}, b"x"),
        ({"content-range": "0-9/5000"}, b"x" * 10),
        ({"content-range": "bytes 0-8/5000"}, b"x" * 10),
        ({"content-range": "bytes 0-10/5000"}, b"x" * 10),
        ({"content-range": "bytes 0-9/99999999999999999999"}, b"x" * 10),
    ],
)
async def test_ranges_that_cannot_be(tmp_path: Path, headers: dict[str, str], content: bytes) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m", 5000))
        answer = await scene.http.put(f"{BASE}/{upload}/m", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BAD_REQUEST")


async def test_more_bytes_than_announced_are_refused_and_what_was_right_stays(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m", 100))
        answer = await scene.http.put(f"{BASE}/{upload}/m", content=b"x" * 101)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "TOO_LARGE")
        assert await scene.offset(upload, "m") == 0


async def test_client_that_leaves_half_way_goes_on_later(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m.gguf", len(DATA)), name="n")

        async def broken() -> AsyncIterator[bytes]:
            yield DATA[:1_500_000]
            await trio.sleep(0.2)
            raise OSError("the line is cut")

        headers = {"content-range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}", "content-length": str(len(DATA))}
        with pytest.raises(OSError, match="cut"):
            await scene.http.put(f"{BASE}/{upload}/m.gguf", content=broken(), headers=headers)
        while (offset := await scene.offset(upload, "m.gguf")) != 1_500_000:  # a part of it may be counted sooner
            await trio.sleep(0.02)
        await scene.put(upload, "m.gguf", DATA[offset:], offset)
        assert (await scene.finish(upload))[1][-1]["type"] == "result"
        assert scene.adder.library.list()[0].paths[0].read_bytes() == DATA


async def test_second_writer_of_a_file_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose connection hangs need not wait until that is noticed."""
    came, pieces = [0], api_uploads._pieces

    async def counted(*given: Any) -> AsyncGenerator[bytes, None]:
        async for piece in pieces(*given):
            came[0] += len(piece)
            yield piece

    monkeypatch.setattr(api_uploads, "_pieces", counted)
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m.gguf", len(DATA)), name="n")

        async def hanging() -> AsyncIterator[bytes]:
            yield DATA[:1_200_000]
            await trio.sleep_forever()

        async def first() -> None:
            headers = ADMIN | {"content-length": str(len(DATA))}
            async with httpx.AsyncClient(base_url=scene.url, headers=headers) as http:
                await http.put(f"{BASE}/{upload}/m.gguf", content=hanging())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            while came[0] < 1_200_000:
                await trio.sleep(0.02)
            assert (await scene.put(upload, "m.gguf", b"", 0, len(DATA))).status_code == 400  # no range at all
            refused = await scene.put(upload, "m.gguf", DATA[:10], 0, len(DATA))
            assert (offset := refused.json()["error"]["detail"]["offset_bytes"]) == 1_200_000
            assert (await scene.put(upload, "m.gguf", DATA[offset:], offset)).status_code == 200
            nursery.cancel_scope.cancel()
        assert (await scene.finish(upload))[1][-1]["type"] == "result"


async def test_restart_keeps_what_was_durable_and_cuts_off_the_rest(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with a_scene(home) as scene:
        upload = await scene.create(("m.gguf", len(DATA)), name="n", fingerprint="f")
        await scene.put(upload, "m.gguf", DATA[:1_000_000], 0, len(DATA))
    file = home / "uploads" / upload / "data" / "m.gguf"
    file.write_bytes(file.read_bytes() + b"bytes that nobody synced")
    async with a_scene(home) as scene:
        (facts,) = (await scene.http.get(BASE)).json()["uploads"]
        assert (facts["upload"], facts["fingerprint"]) == (upload, "f")
        assert facts["files"][0]["offset_bytes"] == 1_000_000
        await scene.put(upload, "m.gguf", DATA[1_000_000:], 1_000_000)
        assert (await scene.finish(upload))[1][-1]["type"] == "result"
        assert scene.adder.library.list()[0].paths[0].read_bytes() == DATA


@pytest.mark.parametrize("name", ["upload.json", "offsets.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"files": 3}', b"\xff"])
async def test_damaged_upload_harms_no_other(tmp_path: Path, name: str, content: bytes) -> None:
    home = tmp_path / "home"
    async with a_scene(home) as scene:
        bad = await scene.create(("m", 10))
        good = await scene.create(("n", 10))
    (home / "uploads" / bad / name).write_bytes(content)
    async with a_scene(home) as scene:
        assert [each["upload"] for each in (await scene.http.get(BASE)).json()["uploads"]] == [good]


async def test_finish_before_the_end_says_what_is_missing(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("a", 10), ("b", 10), name="n")
        await scene.put(upload, "a", b"x" * 10)
        status, (line,) = await scene.finish(upload)
        assert status == 400
        assert "1 files are not whole yet: b" in line["error"]["message"]


async def test_content_that_is_no_model_is_refused_and_removed(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m.gguf", 20))
        await scene.put(upload, "m.gguf", b"\x80\x04" + b"x" * 18)
        _, lines = await scene.finish(upload)
        assert lines[-1]["error"]["code"] == "FORMAT_REFUSED"
        assert (await scene.http.get(BASE)).json() == {"uploads": []}


async def test_other_bytes_than_the_client_has_are_refused(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m.gguf", len(DATA)))
        await scene.put(upload, "m.gguf", DATA[:-1] + b"?")
        file = tmp_path / "mine"
        file.write_bytes(DATA)
        _, lines = await scene.finish(upload, root=import_file(file).root.text)
        assert lines[-1]["error"]["code"] == "VERIFICATION_FAILED"
        assert scene.adder.library.list() == []


async def test_version_that_exists_can_be_finished_as_another(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        for number, data in enumerate((DATA, DATA + b"more")):
            upload = await scene.create(("m.gguf", len(data)), name="n", version="1.0.0")
            await scene.put(upload, "m.gguf", data)
            _, lines = await scene.finish(upload)
            if number == 1:
                assert lines[-1]["error"]["code"] == "FORBIDDEN"
                _, lines = await scene.finish(upload, version="1.0.1")
            assert lines[-1]["type"] == "result"
        assert len(scene.adder.library.list()) == 2


async def test_abort_removes_everything(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m", 100))
        await scene.put(upload, "m", b"x" * 50, 0, 100)
        answer = await scene.http.delete(f"{BASE}/{upload}")
        assert answer.json()["files"][0]["offset_bytes"] == 50
        assert not (tmp_path / "home" / "uploads" / upload).exists()
        assert (await scene.http.delete(f"{BASE}/{upload}")).status_code == 404


async def test_idle_uploads_expire(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with a_scene(home, expire_days=1e-7) as scene:  # 8 ms
        upload = await scene.create(("m", 100))
        await trio.sleep(0.02)
        await scene.uploads.sweep()
        assert (await scene.http.get(f"{BASE}/{upload}")).status_code == 404
    async with a_scene(home, expire_days=0) as scene:
        upload = await scene.create(("m", 100))
        await scene.uploads.sweep()
        assert (await scene.http.get(f"{BASE}/{upload}")).json()["expires_at_ms"] == 0


async def test_bytes_that_are_gone_from_the_disk_are_not_made_up(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        kept = await scene.create(("m", 100))
        await scene.put(kept, "m", b"x" * 50, 0, 100)
        (scene.home / "uploads" / kept / "data" / "m").write_bytes(b"x" * 49)
        assert (await scene.put(kept, "m", b"x" * 50, 50)).status_code == 404
        gone = await scene.create(("m", 100))
        shutil.rmtree(scene.home / "uploads" / gone)
        assert (await scene.put(gone, "m", b"x" * 100)).status_code == 404
        assert gone not in [each.upload for each in await scene.uploads.list()]


async def test_number_of_uploads_is_bounded(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        for _ in range(UPLOADS_MAX):
            await scene.create(("m", 1))
        answer = await scene.http.post("/api/v1/models", json={"files": [{"path": "m", "size_bytes": 1}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "OVERLOADED")


async def test_quota_and_disk_are_checked_before_the_first_byte(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home", disk_bytes_max=1_000_000) as scene:
        await scene.create(("m", 600_000))
        answer = await scene.http.post("/api/v1/models", json={"files": [{"path": "m", "size_bytes": 600_000}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "DISK_FULL")  # the first is counted
    async with a_scene(tmp_path / "other") as scene:
        answer = await scene.http.post("/api/v1/models", json={"files": [{"path": "m", "size_bytes": 2**45}]})
        assert answer.json()["error"]["code"] == "DISK_FULL"


@pytest.mark.parametrize("size", [2_000_000, 60_000_000])
async def test_full_disk_in_the_middle_keeps_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The client hears of it although it is still sending."""
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m", size + 1_000_000))
        await scene.put(upload, "m", b"x" * 1_000_000, 0, size + 1_000_000)

        def no_space(fd: int, data: bytes, offset: int) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(upload_module.os, "pwrite", no_space)
            answer = await scene.put(upload, "m", b"y" * size, 1_000_000)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "DISK_FULL")
        assert await scene.offset(upload, "m") == 1_000_000


async def test_refusal_is_heard_by_a_client_that_is_still_sending(tmp_path: Path) -> None:
    """Whatever was not read of the body: without a token, and for a file that nobody announced."""
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m", 1))
        body = b"x" * 30_000_000
        async with httpx.AsyncClient(base_url=scene.url) as stranger:
            assert (await stranger.put(f"{BASE}/{upload}/m", content=body)).status_code == 401
        assert (await scene.http.put(f"{BASE}/{upload}/other", content=body)).status_code == 404


async def test_uploads_need_the_admin_scope(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m", 1))
        body = {"files": [{"path": "m", "size_bytes": 1}]}
        async with httpx.AsyncClient(base_url=scene.url) as stranger:
            assert (await stranger.post("/api/v1/models", json=body)).status_code == 401
            assert (await stranger.put(f"{BASE}/{upload}/m", content=b"x")).status_code == 401
            assert (await stranger.post(f"{BASE}/{upload}/finish", json={})).status_code == 401
            assert (await stranger.delete(f"{BASE}/{upload}")).status_code == 401


async def test_request_that_could_never_be_finished_is_refused_now(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        for body in ({"files": [{"path": "../m", "size_bytes": 1}]}, {"files": [], "nonsense": 1}, {"files": 3}):
            answer = await scene.http.post("/api/v1/models", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BAD_REQUEST")
        assert await scene.uploads.list() == []


async def test_file_that_was_not_announced(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m", 1))
        for path in ("n", "../../api.token", "%2e%2e/x"):
            assert (await scene.http.put(f"{BASE}/{upload}/{path}", content=b"x")).status_code in (404, 400, 401, 405)


async def test_empty_files_are_there_without_being_sent(tmp_path: Path) -> None:
    async with a_scene(tmp_path / "home") as scene:
        upload = await scene.create(("m.gguf", len(DATA)), ("sub/notes.txt", 0), name="n")
        await scene.put(upload, "m.gguf", DATA)
        assert (tmp_path / "home" / "uploads" / upload / "data" / "sub" / "notes.txt").read_bytes() == b""
