"""Models of a hub (`hf:org/repo[@revision][/file]`) through `huggingface_hub`, in a child process of ours.

The commit is resolved first, and everything after it is of that commit: a branch that moves meanwhile changes nothing.
Files are chosen and their sizes known before one byte is downloaded. Cancelling ends the child at once; what it wrote
is kept, and the next download goes on from there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from octonode.errors import TABLE, ConfigError, OctonodeError, RemoteProtocolError
from octonode.ipfs.gateway_client import Stalled
from octonode.models.reference import HubReference
from octonode.models.sources.hub_files import HubFile

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
SILENCE_SECONDS: Final = 180.0
"""Without a word of the child: it speaks whenever a byte comes, and the library tries again for a minute by itself."""
LINE_BYTES_MAX: Final = 1024 * 1024
FILES_MAX: Final = 10_000
_SPEED_SECONDS: Final = 3.0
"""Over about so long the speed is averaged."""


@dataclass(frozen=True, slots=True)
class HubSettings:
    endpoint: str = DEFAULT_ENDPOINT
    token: str = ""
    """Empty: none is sent. The files of `hf auth login` are not read."""
    patterns: tuple[str, ...] = ()
    """Files to take instead of the default; see `hub_files.choose`."""

    @classmethod
    def of(
        cls, endpoint: str, token: str, patterns: Sequence[str], environ: Mapping[str, str] = os.environ
    ) -> HubSettings:
        """Settings of ours, else HF_ENDPOINT and HF_TOKEN. Raises ConfigError."""
        chosen = (endpoint or environ.get("HF_ENDPOINT", "") or DEFAULT_ENDPOINT).rstrip("/")
        if not chosen.startswith(("https://", "http://")):
            raise ConfigError(f"models.hub_endpoint: {chosen!r} is not the URL of a hub, such as {DEFAULT_ENDPOINT}")
        return cls(chosen, token or environ.get("HF_TOKEN", "").strip(), tuple(patterns))


@dataclass(frozen=True, slots=True)
class HubProgress:
    stage: str
    """`fetch` or `verify`."""
    done_bytes: int
    total_bytes: int
    bytes_per_second: float


class HubListing:
    """A repository at one commit. `download` may be called once, inside the `with` that gave it."""

    def __init__(self, repository: str, commit: str, licence: str, closed: bool, files: tuple[HubFile, ...]) -> None:
        self.repository = repository
        self.commit = commit
        self.licence = licence
        self.closed = closed
        """Gated or private: not for everybody, so not ours to hand on."""
        self.files = files
        self._child: _Child | None = None

    async def download(
        self, files: Sequence[HubFile], directory: Path, progress: Callable[[HubProgress], None] | None = None
    ) -> None:
        """Bring `files` to `directory`, each under its path in the repository, whole and verified.

        Raises VerificationFailed that names the file (it changed, or came damaged), Unreachable, Stalled, DISK_FULL,
        UNAUTHORIZED, FORBIDDEN, UNSUPPORTED.
        """
        assert self._child is not None, "inside `with hub.listing(...)`, once"
        child, self._child = self._child, None
        await child.tell({"directory": str(directory), "files": [file.path for file in files]})
        speed = _Speed()
        async with aclosing(child.lines()) as lines:
            async for said in lines:
                if said["type"] == "done":
                    return
                if said["type"] == "progress" and progress is not None:
                    done = int(said["done"])
                    progress(HubProgress(str(said["stage"]), done, int(said["total"]), speed.after(done)))
        raise RemoteProtocolError("the download from the hub broke off; run the same command again: it goes on")

    @classmethod
    async def read(cls, repository: str, child: _Child) -> HubListing:
        commit, licence, closed, listed = "", "", False, False
        files: list[HubFile] = []
        async with aclosing(child.lines()) as lines:
            async for said in lines:
                if said["type"] == "commit":
                    commit, licence, closed = str(said["commit"]), str(said["license"]), bool(said["closed"])
                elif said["type"] == "file" and len(files) < FILES_MAX:
                    files.append(HubFile(said["path"], int(said["size_bytes"]), said["sha256"], said["blob"]))
                elif said["type"] == "listed":
                    listed = True
                    break
        if not listed or not commit:
            raise RemoteProtocolError(f"the listing of hf:{repository} broke off; run the same command again")
        found = cls(repository, commit, licence, closed, tuple(files))
        found._child = child
        return found


class Hub:
    """The hub at `settings.endpoint`."""

    def __init__(self, settings: HubSettings) -> None:
        self.settings = settings

    @asynccontextmanager
    async def listing(self, reference: HubReference) -> AsyncIterator[HubListing]:
        """What the repository holds at the commit that the reference means now; the child lives as long as the block.

        Raises NOT_FOUND (repository or revision), FORBIDDEN (gated), UNAUTHORIZED, Unreachable, UNSUPPORTED (the
        library is not installed).
        """
        async with _child() as child:
            await child.tell(
                {
                    "repository": reference.repository,
                    "revision": reference.revision,
                    "endpoint": self.settings.endpoint,
                    "token": self.settings.token,
                }
            )
            yield await HubListing.read(reference.repository, child)


class _Speed:
    def __init__(self) -> None:
        self._at = trio.current_time()
        self._done: int | None = None
        self._value = 0.0

    def after(self, done: int) -> float:
        now = trio.current_time()
        passed = now - self._at
        if self._done is None or passed <= 0:
            self._at, self._done = now, done
            return self._value
        weight = min(1.0, passed / _SPEED_SECONDS)
        self._value += weight * (max(0, done - self._done) / passed - self._value)
        self._at, self._done = now, done
        return self._value


class _Child:
    """The process and its two pipes."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""

    async def tell(self, value: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(json.dumps(value).encode() + b"\n")
        except trio.BrokenResourceError:
            raise RemoteProtocolError("the process that downloads from the hub ended; see octonode logs") from None

    async def lines(self) -> AsyncGenerator[dict[str, Any], None]:
        """What it says, until its end. Raises the error it names, Stalled."""
        assert self._process.stdout is not None
        while True:
            while (end := self._buffer.find(b"\n")) < 0:
                with trio.move_on_after(SILENCE_SECONDS) as scope:
                    data = await self._process.stdout.receive_some(65536)
                if scope.cancelled_caught:
                    raise Stalled(f"the hub has sent nothing for {SILENCE_SECONDS:.0f} s; what came is kept")
                if not data:
                    return
                self._buffer += data
                assert len(self._buffer) < 2 * LINE_BYTES_MAX, "our own child"
            line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
            said = json.loads(line)
            if said["type"] == "error":
                raise _error(said["code"], said["message"])
            yield said


def _error(code: str, message: str) -> OctonodeError:
    kinds = {kind.code: kind for kind in OctonodeError.__subclasses__()}
    if code in kinds:
        return kinds[code](message)
    return OctonodeError(message, code=code if code in TABLE else "INTERNAL")


@asynccontextmanager
async def _child() -> AsyncIterator[_Child]:
    """Started, and ended with the block: at once, whatever it does."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "octonode.models.sources.hub_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,  # Ctrl-C is for the daemon, which then ends us
    )
    try:
        yield _Child(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


def _environment() -> dict[str, str]:
    """The token travels by the pipe, where no list of processes shows it; files of other tools are not read."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OCTONODE_", "HF_", "HUGGING"))}
    return kept | {
        "HF_HUB_DISABLE_XET": "1",  # its downloads cannot be gone on with after a kill
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }
