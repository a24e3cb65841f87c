"""The child process in which `huggingface_hub` runs: started by `hub.py`, spoken to in lines of JSON.

The library is synchronous, heavy, and cannot be cancelled from outside; a process can be ended at any moment, and with
it goes all of its memory. First line in: what to list. Lines out: the commit, the files. Second line in: what to
download, whither. Lines out: progress, then `done`, or an `error` at any point. It ends when its standard input does:
a daemon that was killed leaves no download behind.

A file is written to `.parts/` and moved once its hash is the one that the hub named at that commit. What is there is
gone on from: the library itself begins again in every process.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

FILES_AT_ONCE: Final = 4
TREE_MAX: Final = 10_000
"""Files of a repository; more is an error."""
TRIES_MAX: Final = 4
"""In a row without a new byte, beside the library's own five; the address of a file expires meanwhile."""
TIMEOUT_SECONDS: Final = 30.0
PROGRESS_SECONDS: Final = 0.25
READ_BYTES: Final = 8 * 1024 * 1024
PARTS: Final = ".parts"
HTTP_BYTES_MAX: Final = 50 * 1000**3
"""What the hub gives over plain HTTP; larger files come by a protocol that cannot be gone on with here."""


class Failed(Exception):
    """An outcome with a code of the error table."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_lock = threading.Lock()


def say(kind: str, **more: Any) -> None:
    with _lock:
        sys.stdout.write(json.dumps({"type": kind, **more}) + "\n")
        sys.stdout.flush()


def main() -> None:
    try:
        _work(_requests())
    except Failed as failed:
        say("error", code=failed.code, message=str(failed))
    except Exception as error:
        code, message = _named(error)
        say("error", code=code, message=message)
    sys.stdout.flush()
    os._exit(0)  # threads of a failed download are not waited for


def _requests() -> Iterator[dict[str, Any]]:
    """The two lines of the daemon; once both are read, the end of the input ends us."""
    for _ in range(2):
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        yield json.loads(line)


def _watch_input() -> None:
    sys.stdin.read()
    os._exit(0)


def _work(requests: Iterator[dict[str, Any]]) -> None:
    asked = next(requests)
    try:
        from huggingface_hub import HfApi, constants
    except ImportError:
        raise Failed(
            "UNSUPPORTED", "models of a hub need the library huggingface_hub; run: pip install 'octonode[hub]'"
        ) from None
    constants.DOWNLOAD_CHUNK_SIZE = 1024 * 1024  # progress, and what a kill costs
    token = asked["token"] or False
    api = HfApi(endpoint=asked["endpoint"], token=token, library_name="octonode")
    info = api.model_info(asked["repository"], revision=asked["revision"] or None, timeout=TIMEOUT_SECONDS)
    if not info.sha:
        raise Failed("BAD_MESSAGE", f"{asked['endpoint']} named no commit of {asked['repository']}")
    card = getattr(info.card_data, "license", None) if info.card_data else None
    closed = bool(info.gated) or bool(info.private)
    say("commit", commit=info.sha, license=card if isinstance(card, str) else "", closed=closed)
    files = _list(api, asked["repository"], info.sha)
    for file in files.values():
        say("file", **file)
    say("listed")
    wanted = next(requests)
    threading.Thread(target=_watch_input, daemon=True).start()
    download = _Download(asked, info.sha, Path(wanted["directory"]), [files[path] for path in wanted["files"]])
    download.run()
    say("done")


def _list(api: Any, repository: str, commit: str) -> dict[str, dict[str, Any]]:
    from huggingface_hub.hf_api import RepoFile

    found: dict[str, dict[str, Any]] = {}
    for entry in api.list_repo_tree(repository, recursive=True, revision=commit):
        if not isinstance(entry, RepoFile):
            continue
        large = entry.lfs
        found[entry.path] = {
            "path": entry.path,
            "size_bytes": large.size if large else entry.size,
            "sha256": large.sha256 if large else "",
            "blob": entry.blob_id,
        }
        if len(found) > TREE_MAX:
            raise Failed("TOO_LARGE", f"{repository} has more than {TREE_MAX} files; name one, or a folder")
    return found


class _Download:
    """All files of one choice, a few at once."""

    def __init__(self, asked: dict[str, Any], commit: str, directory: Path, files: list[dict[str, Any]]) -> None:
        self._asked = asked
        self._commit = commit
        self._directory = directory
        self._files = files
        self._total = sum(file["size_bytes"] for file in files)
        self._done: dict[str, int] = {}
        self._told_at = 0.0

    def run(self) -> None:
        for file in self._files:
            part, final = self._places(file)
            self._done[file["path"]] = next((each.stat().st_size for each in (final, part) if each.exists()), 0)
        self._tell("fetch")
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for future in [pool.submit(self._one, file) for file in self._files]:
                try:
                    future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        self._tell("fetch", now=True)

    def _places(self, file: dict[str, Any]) -> tuple[Path, Path]:
        return self._directory / PARTS / file["path"], self._directory / file["path"]

    def _one(self, file: dict[str, Any]) -> None:
        part, final = self._places(file)
        if final.exists() and final.stat().st_size == file["size_bytes"]:
            return
        if file["size_bytes"] > HTTP_BYTES_MAX:
            raise Failed(
                "UNSUPPORTED",
                f"{file['path']} has {file['size_bytes'] / 1e9:.0f} GB; the hub gives files above 50 GB in its own "
                "protocol alone, which is not spoken here. Choose one that is split into parts",
            )
        part.parent.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab", buffering=0) as opened:
            if opened.tell() > file["size_bytes"]:
                opened.truncate(0)
            self._bring(file, opened)
            self._tell("verify", now=True)
            self._verify(file, part)
            os.fsync(opened.fileno())
        part.rename(final)

    def _bring(self, file: dict[str, Any], opened: IO[bytes]) -> None:
        """Until all bytes are there. Raises what the library raises once nothing comes any more."""
        tries = 0
        while (before := opened.seek(0, os.SEEK_END)) < file["size_bytes"]:
            try:
                self._bring_some(file, opened, before)
            except Failed:
                raise
            except Exception as error:
                tries = 0 if opened.seek(0, os.SEEK_END) > before else tries + 1
                if _is_wrong_length(error) and tries >= TRIES_MAX:
                    opened.truncate(0)
                    raise _changed(file["path"], "the hub sends another number of bytes than it named") from error
                if tries >= TRIES_MAX or not (_passing(error) or _is_wrong_length(error)):
                    raise
                time.sleep(min(5.0, 0.2 * 2**tries))

    def _bring_some(self, file: dict[str, Any], opened: IO[bytes], start: int) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        path, endpoint, token = file["path"], self._asked["endpoint"], self._asked["token"] or False
        url = hf_hub_url(self._asked["repository"], path, revision=self._commit, endpoint=endpoint)
        meta = get_hf_file_metadata(url, token=token, timeout=TIMEOUT_SECONDS, endpoint=endpoint)
        if meta.commit_hash != self._commit or meta.size not in (None, file["size_bytes"]):
            raise _changed(path, f"it has {meta.size} bytes at commit {meta.commit_hash}")
        if meta.etag not in (file["sha256"], file["blob"]):
            raise _changed(path, f"its etag is {meta.etag}")
        location = meta.location or url
        headers = build_hf_headers(token=token if urlsplit(location).netloc == urlsplit(url).netloc else False)
        counted = _Counted(opened, lambda size: self._count(path, size))
        http_get(
            location,
            counted,  # type: ignore[arg-type]
            resume_size=start,
            headers=headers,
            expected_size=file["size_bytes"],
            displayed_filename=path,
        )

    def _count(self, path: str, size: int) -> None:
        self._done[path] = size
        self._tell("fetch")

    def _tell(self, stage: str, *, now: bool = False) -> None:
        if now or time.monotonic() - self._told_at >= PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            say("progress", stage=stage, done=sum(self._done.values()), total=self._total)

    def _verify(self, file: dict[str, Any], part: Path) -> None:
        """By sha256 where the hub has it, else by git's id of the blob. What is wrong is not kept."""
        size = part.stat().st_size
        if size == file["size_bytes"]:
            known, digest = file["sha256"], hashlib.sha256()
            if not known:
                known, digest = file["blob"], hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            with open(part, "rb", buffering=0) as opened:
                while data := opened.read(READ_BYTES):
                    digest.update(data)
                    self._tell("verify")
            if digest.hexdigest() == known:
                return
        part.unlink()
        raise _changed(file["path"], "what came is not what the hub named")


class _Counted:
    """The file of a download, which tells how long it is."""

    def __init__(self, file: IO[bytes], told: Callable[[int], None]) -> None:
        self._file = file
        self._told = told

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._told(self._file.tell())
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def truncate(self) -> int:
        return self._file.truncate()


def _changed(path: str, why: str) -> Failed:
    return Failed(
        "VERIFICATION_FAILED",
        f"{path} changed on the hub while it was downloaded, or came damaged: {why}. It was not kept; run the same "
        "command again",
    )


def _passing(error: Exception) -> bool:
    """Whether asking anew may help: a broken connection, or an address that has expired."""
    import httpx2

    status = getattr(getattr(error, "response", None), "status_code", 0)
    return isinstance(error, httpx2.TransportError) or status in (403, 408, 429, 500, 502, 503, 504)


def _is_wrong_length(error: Exception) -> bool:
    """The library's own check at the end of a file; it is an OSError that no disk raised."""
    return isinstance(error, OSError) and not error.errno and not hasattr(error, "response")


def _named(error: Exception) -> tuple[str, str]:
    """(code, message) of what the library raised, with what to do next."""
    import httpx2
    from huggingface_hub import errors

    words = " ".join(str(error).split())[:300]
    if isinstance(error, errors.GatedRepoError):
        return "FORBIDDEN", (
            "the repository is gated: accept its terms on the hub's page, then set HF_TOKEN or models.hub_token "
            f"({words})"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "NOT_FOUND", f"the repository has no such revision ({words})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "NOT_FOUND", (
            f"the hub has no such repository, or it is private and HF_TOKEN or models.hub_token is not set ({words})"
        )
    status = 0
    with suppress(AttributeError):
        status = int(error.response.status_code)  # type: ignore[attr-defined]
    if status in (401, 403):
        return "UNAUTHORIZED", f"the hub wants another token: set HF_TOKEN or models.hub_token ({words})"
    if status == 429:
        return "RATE_LIMITED", f"the hub has had too many requests from here; try again later ({words})"
    if isinstance(error, OSError) and error.errno:
        import errno

        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return ("DISK_FULL" if full else "INTERNAL"), f"{error.filename or 'the disk'}: {error.strerror}"
    if isinstance(error, (errors.HfHubHTTPError, httpx2.HTTPError)):
        return "UNREACHABLE", f"the hub: {type(error).__name__}: {words}. What was downloaded is kept; run it again"
    return "INTERNAL", f"the download from the hub failed: {type(error).__name__}: {words}"


if __name__ == "__main__":
    main()
