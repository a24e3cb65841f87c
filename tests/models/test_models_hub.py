"""Models of a hub: the real `huggingface_hub` against a stand-in of ours, and which files are chosen."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from octonode.errors import ConfigError, NotFound, OctonodeError, RemoteProtocolError, VerificationFailed
from octonode.models.reference import HubReference, parse
from octonode.models.sources import hub as hub_module
from octonode.models.sources.hub import Hub, HubListing, HubProgress, HubSettings
from octonode.testing.hub import LARGE_BYTES, HubStandIn

BIG = random.Random(3).randbytes(3_000_000)
SMALL = b'{"architectures": []}'
REPO = "someone/model"
FILES = {"weights.gguf": BIG, "config.json": SMALL, "nested/notes.txt": b"read me"}


@asynccontextmanager
async def a_hub(files: dict[str, bytes] = FILES) -> AsyncIterator[HubStandIn]:
    async with HubStandIn() as stand_in:
        stand_in.commit(REPO, files, "v1.0.0")
        yield stand_in


def hub_of(stand_in: HubStandIn, token: str = "") -> Hub:
    return Hub(HubSettings(stand_in.url, token))


async def download(
    stand_in: HubStandIn, directory: Path, *names: str, text: str = f"hf:{REPO}", told: list[HubProgress] | None = None
) -> HubListing:
    reference = parse(text)
    assert isinstance(reference, HubReference)
    async with hub_of(stand_in).listing(reference) as listing:
        wanted = [file for file in listing.files if not names or file.path in names]
        await listing.download(wanted, directory, ([] if told is None else told).append)
    return listing


async def test_everything_comes_and_is_of_one_commit(tmp_path: Path) -> None:
    told: list[HubProgress] = []
    async with a_hub() as stand_in:
        listing = await download(stand_in, tmp_path, told=told)
        first = next(iter(stand_in.repositories[REPO].commits))
        assert (listing.commit, listing.licence, listing.closed) == (first, "apache-2.0", False)
        assert {path: (tmp_path / path).read_bytes() for path in FILES} == FILES
        assert told[-1].done_bytes == told[-1].total_bytes == sum(map(len, FILES.values()))
        resolved = [each for each in stand_in.requests if "/resolve/" in each]
        assert resolved
        assert all(f"/resolve/{first}/" in each for each in resolved)


async def test_branch_that_moves_meanwhile_changes_nothing(tmp_path: Path) -> None:
    async with a_hub() as stand_in:
        reference = HubReference(REPO)
        async with hub_of(stand_in).listing(reference) as listing:
            stand_in.commit(REPO, {"weights.gguf": b"other" * 100_000})
            await listing.download(listing.files, tmp_path)
        assert (tmp_path / "weights.gguf").read_bytes() == BIG


async def test_revision_is_a_tag_or_a_commit(tmp_path: Path) -> None:
    async with a_hub() as stand_in:
        old = stand_in.repositories[REPO].heads["v1.0.0"]
        new = stand_in.commit(REPO, {"weights.gguf": b"new" * 50_000})
        for text, commit in ((f"hf:{REPO}@v1.0.0", old), (f"hf:{REPO}@{old}", old), (f"hf:{REPO}", new)):
            reference = parse(text)
            assert isinstance(reference, HubReference)
            async with hub_of(stand_in).listing(reference) as listing:
                assert listing.commit == commit


async def test_token_goes_to_the_hub_and_not_to_the_host_of_the_files(tmp_path: Path) -> None:
    async with a_hub() as stand_in:
        stand_in.repositories[REPO].gated = True
        with pytest.raises(OctonodeError, match="accept its terms") as caught:
            await download(stand_in, tmp_path)
        assert caught.value.code == "FORBIDDEN"
        async with hub_of(stand_in, stand_in.token).listing(HubReference(REPO)) as listing:
            assert listing.closed
            await listing.download(listing.files, tmp_path)
        assert (tmp_path / "weights.gguf").read_bytes() == BIG
        assert not stand_in.leaked


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("hf:no/body", "NOT_FOUND", "no such repository"),
        (f"hf:{REPO}@v9", "NOT_FOUND", "no such revision"),
    ],
)
async def test_what_is_not_there(tmp_path: Path, text: str, code: str, words: str) -> None:
    async with a_hub() as stand_in:
        with pytest.raises(NotFound, match=words) as caught:
            await download(stand_in, tmp_path, text=text)
        assert caught.value.code == code


@pytest.mark.parametrize("path", ["weights.gguf", "config.json"])
async def test_file_that_changes_during_the_download_is_named_and_not_kept(tmp_path: Path, path: str) -> None:
    """By the sha256 of a large file, and by git's id of a small one."""
    async with a_hub() as stand_in:
        stand_in.faults.changes = path
        with pytest.raises(VerificationFailed, match=f"{path} changed on the hub"):
            await download(stand_in, tmp_path)
        assert not (tmp_path / path).exists()
        stand_in.faults.changes = ""
        await download(stand_in, tmp_path)
        assert (tmp_path / path).read_bytes() == FILES[path]


async def test_etag_that_is_not_the_one_listed_stops_before_the_bytes(tmp_path: Path) -> None:
    async with a_hub() as stand_in:
        stand_in.faults.changes_etag = "weights.gguf"
        with pytest.raises(VerificationFailed, match=r"weights\.gguf changed on the hub.*etag"):
            await download(stand_in, tmp_path, "weights.gguf")
        assert stand_in.sent_bytes == 0


async def test_file_of_another_length_is_named(tmp_path: Path) -> None:
    async with a_hub({"config.json": b"x" * 1000}) as stand_in:
        stand_in.faults.short = "config.json"
        with pytest.raises(VerificationFailed, match=r"config\.json changed on the hub"):
            await download(stand_in, tmp_path)


async def test_connection_that_breaks_is_gone_on_from(tmp_path: Path) -> None:
    async with a_hub() as stand_in:
        stand_in.faults.cut_after_bytes, stand_in.faults.cuts = 2_000_000, 1
        await download(stand_in, tmp_path)
        assert (tmp_path / "weights.gguf").read_bytes() == BIG
        assert stand_in.ranges
        assert int(stand_in.ranges[0].removeprefix("bytes=").rstrip("-")) > 0


async def test_address_that_expired_is_asked_for_again(tmp_path: Path) -> None:
    async with a_hub() as stand_in:
        stand_in.faults.expired = 2
        await download(stand_in, tmp_path)
        assert (tmp_path / "weights.gguf").read_bytes() == BIG


async def part_of(tmp_path: Path, bytes_min: int) -> int:
    """Wait until so much of the large file is there; its size."""
    part = tmp_path / ".parts" / "weights.gguf"
    while not part.exists() or part.stat().st_size < bytes_min:
        await trio.sleep(0.01)
    return part.stat().st_size


@pytest.mark.parametrize("ignores_ranges", [False, True])
async def test_killed_download_goes_on(tmp_path: Path, ignores_ranges: bool) -> None:
    """kill -9 of the process that downloads: what it wrote stays, and no more than the rest is asked for again."""
    async with a_hub() as stand_in:
        stand_in.faults.bytes_per_second = 4_000_000
        async with trio.open_nursery() as nursery:

            async def broken() -> None:
                with pytest.raises(RemoteProtocolError, match="run the same command again"):
                    await download(stand_in, tmp_path, "weights.gguf")

            nursery.start_soon(broken)
            await part_of(tmp_path, 1_000_000)
            os.kill(_child_pid(), signal.SIGKILL)
        stand_in.faults.bytes_per_second, stand_in.faults.ignores_ranges = 0, ignores_ranges
        stand_in.sent_bytes, stand_in.ranges = 0, []
        await download(stand_in, tmp_path, "weights.gguf")
        assert (tmp_path / "weights.gguf").read_bytes() == BIG
        assert (stand_in.sent_bytes < len(BIG)) != ignores_ranges
        assert bool(stand_in.ranges) != ignores_ranges


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_random_moments_the_bytes_are_right(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    print(f"seed {seed}")
    files = {f"{number}.gguf": random.Random(number).randbytes(700_000) for number in range(5)}
    async with a_hub(files) as stand_in:
        stand_in.faults.bytes_per_second = 4_000_000
        for _ in range(4):
            with trio.move_on_after(chance.uniform(0.2, 1.2)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(download, stand_in, tmp_path)
                    await trio.sleep(chance.uniform(0.2, 1.0))
                    for pid in _children():
                        os.kill(pid, signal.SIGKILL)
                    nursery.cancel_scope.cancel()
        stand_in.faults.bytes_per_second = 0
        await download(stand_in, tmp_path)
    assert {path: (tmp_path / path).read_bytes() for path in files} == files
    assert not any((tmp_path / ".parts").iterdir())


def _child_pid() -> int:
    (pid,) = _children()
    return pid


def _children() -> list[int]:
    """Those of this process that run the hub's library."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(parent) == os.getpid() and b"hub_child" in words:
            found.append(int(path.name))
    return found


async def test_cancel_ends_the_process_at_once_and_keeps_what_came(tmp_path: Path) -> None:
    async with a_hub() as stand_in:
        stand_in.faults.bytes_per_second = 2_000_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(download, stand_in, tmp_path, "weights.gguf")
            await part_of(tmp_path, 500_000)
            pid = _child_pid()
            nursery.cancel_scope.cancel()
        assert not Path(f"/proc/{pid}").exists()
        assert (tmp_path / ".parts" / "weights.gguf").stat().st_size >= 500_000
        stand_in.faults.bytes_per_second, stand_in.sent_bytes = 0, 0
        await download(stand_in, tmp_path, "weights.gguf")
        assert (tmp_path / "weights.gguf").read_bytes() == BIG
        assert stand_in.sent_bytes < len(BIG)


async def test_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """A daemon that is killed leaves no download behind: the pipe to it ends."""
    async with a_hub() as stand_in:
        stand_in.faults.bytes_per_second = 200_000
        async with hub_of(stand_in).listing(HubReference(REPO)) as listing:
            child = listing._child
            assert child is not None
            process = child._process
            await child.tell({"directory": str(tmp_path), "files": ["weights.gguf"]})
            await part_of(tmp_path, 1)
            assert process.stdin is not None
            await process.stdin.aclose()
            with trio.fail_after(60):
                assert await process.wait() == 0


async def test_full_disk_has_its_name(tmp_path: Path) -> None:
    async with a_hub() as stand_in:
        (tmp_path / ".parts").mkdir()
        (tmp_path / ".parts" / "weights.gguf").symlink_to("/dev/full")
        with pytest.raises(OctonodeError, match="No space left") as caught:
            await download(stand_in, tmp_path, "weights.gguf")
        assert caught.value.code == "DISK_FULL"


async def test_hub_that_is_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "SILENCE_SECONDS", 0.3)
    async with a_hub() as stand_in:
        stand_in.faults.silent = True
        with pytest.raises(OctonodeError, match="sent nothing") as caught:
            await download(stand_in, tmp_path)
        assert caught.value.code == "DEADLINE"


async def test_nobody_there(tmp_path: Path) -> None:
    async with a_hub() as stand_in:
        pass
    with pytest.raises(OctonodeError, match="the hub: ") as caught:
        await download(stand_in, tmp_path)
    assert caught.value.code == "UNREACHABLE"


async def test_library_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name that fails to import stands before the real one."""
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with a_hub() as stand_in:
        with pytest.raises(OctonodeError, match=r"pip install 'octonode\[hub\]'") as caught:
            await download(stand_in, tmp_path)
        assert caught.value.code == "UNSUPPORTED"


async def test_environment_of_the_process_has_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("OCTONODE_MODELS_HUB_TOKEN", "secret")
    assert "secret" not in hub_module._environment().values()


def test_settings_come_from_ours_then_from_the_librarys_names() -> None:
    environ = {"HF_ENDPOINT": "https://mirror.example/", "HF_TOKEN": "t "}
    assert HubSettings.of("", "", (), environ) == HubSettings("https://mirror.example", "t")
    assert HubSettings.of("http://a", "u", ("*",), environ) == HubSettings("http://a", "u", ("*",))
    assert HubSettings.of("", "", (), {}).endpoint == "https://huggingface.co"
    with pytest.raises(ConfigError, match="hub_endpoint"):
        HubSettings.of("mirror.example", "", (), {})


def test_stand_in_keeps_large_files_apart() -> None:
    assert len(BIG) >= LARGE_BYTES > len(SMALL)
