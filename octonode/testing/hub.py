"""A stand-in of ours for a model hub: its HTTP API as `huggingface_hub` uses it, with faults.

It is not the hub. It answers model info at a revision, the tree, `resolve` with ETag, X-Repo-Commit and X-Linked-Size,
sends large files by a redirect to an address of another host, knows ranges, and asks for a token where it is told to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import quote

import trio

from octonode.testing.http_service import Asked, Cut, HttpService, Reply

LARGE_BYTES: Final = 64 * 1024
"""From here on a file is kept as a large one, with its sha256 as ETag."""
PIECE_BYTES: Final = 64 * 1024


@dataclass
class Repository:
    """Commits by name, each with its files; `heads` are the branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    licence: str = "apache-2.0"
    gated: bool = False
    private: bool = False


@dataclass
class Faults:
    """What goes wrong; each is looked at for every request."""

    changes: str = ""
    """This path has other bytes of the same length once its tree was read: the hash does not fit."""
    changes_etag: str = ""
    """This path has another ETag than its tree said."""
    cut_after_bytes: int = 0
    """Every download breaks after so many bytes."""
    cuts: int = 10**9
    """How many of them."""
    bytes_per_second: float = 0.0
    short: str = ""
    """This path comes one byte shorter than it should, and the answer says so."""
    ignores_ranges: bool = False
    silent: bool = False
    status: int = 0
    """Of every answer of the API."""
    expired: int = 0
    """So many downloads are refused with 403, as an address that has expired is."""


class HubStandIn:
    """Runs inside `async with`: `url` for HF_ENDPOINT."""

    def __init__(self, token: str = "hf_stand_in_token") -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.faults = Faults()
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.sent_bytes = 0
        """Of file content."""
        self.leaked = False
        """Whether the token came to the host that large files are on."""
        self._api = HttpService(self._answer)
        self._content = HttpService(self._answer_content)

    @property
    def url(self) -> str:
        return self._api.url

    async def __aenter__(self) -> Self:
        await self._api.__aenter__()
        await self._content.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._content.__aexit__(*error)
        await self._api.__aexit__(*error)

    def commit(self, repository: str, files: dict[str, bytes], *heads: str) -> str:
        """Add a commit with just these files; `main` and `heads` name it from now on. Its id."""
        seed = "".join(f"{path}{_sha256(data)}" for path, data in sorted(files.items()))
        commit = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        held = self.repositories.setdefault(repository, Repository())
        held.commits[commit] = dict(files)
        held.heads |= dict.fromkeys(("main", *heads), commit)
        return commit

    # -- the API ------------------------------------------------------------------------------------------------

    async def _answer(self, asked: Asked, reply: Reply) -> None:
        self.requests.append(f"{asked.method} {asked.path}")
        if self.faults.silent:
            await trio.sleep_forever()
        if self.faults.status:
            return await reply.send(self.faults.status, b"{}")
        parts = asked.path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return await self._api_call(asked, reply, "/".join(parts[2:4]), parts[4:])
        if len(parts) >= 5 and parts[2] == "resolve":
            return await self._resolve(asked, reply, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return await _refuse(reply, 404, "", "Not found")

    async def _find(self, asked: Asked, reply: Reply, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the commit; None when the refusal was sent."""
        held = self.repositories.get(name)
        known = asked.headers.get("authorization", "") == f"Bearer {self.token}"
        if held is None or (held.private and not known):
            await _refuse(reply, 401, "RepoNotFound", "Invalid username or password.")
            return None
        if held.gated and not known:
            await _refuse(reply, 401, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        commit = held.heads.get(revision, revision)
        if commit not in held.commits:
            await _refuse(reply, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return held, commit

    async def _api_call(self, asked: Asked, reply: Reply, name: str, rest: list[str]) -> None:
        kind, revision = (rest[0], "/".join(rest[1:])) if len(rest) > 1 else ("revision", "main")
        found = await self._find(asked, reply, name, revision)
        if found is None:
            return
        held, commit = found
        files = held.commits[commit]
        if kind == "revision":
            said: Any = {
                "id": name, "modelId": name, "sha": commit, "private": held.private,
                "gated": "manual" if held.gated else False, "cardData": {"license": held.licence}, "tags": [],
                "siblings": [{"rfilename": path} for path in files],
            }  # fmt: skip
        else:
            said = [_tree_entry(path, data) for path, data in files.items()]
        await reply.send(200, json.dumps(said).encode(), {"content-type": "application/json"})

    async def _resolve(self, asked: Asked, reply: Reply, name: str, revision: str, path: str) -> None:
        found = await self._find(asked, reply, name, revision)
        if found is None:
            return None
        held, commit = found
        data = held.commits[commit].get(path)
        if data is None:
            return await _refuse(reply, 404, "EntryNotFound", f"{path} does not exist")
        etag = _sha256(data) if len(data) >= LARGE_BYTES else _blob(data)
        if self.faults.changes_etag == path:
            etag = etag[::-1]
        headers = {"x-repo-commit": commit, "etag": f'"{etag}"', "accept-ranges": "bytes"}
        if len(data) < LARGE_BYTES:
            return await self._send(asked, reply, path, data, headers)
        address = f"{self._content.url}/{quote(name)}/{commit}/{quote(path)}?signature=0"
        headers |= {"x-linked-size": str(len(data)), "x-linked-etag": f'"{etag}"', "location": address}
        return await reply.send(302, headers=headers)

    # -- content ------------------------------------------------------------------------------------------------

    async def _answer_content(self, asked: Asked, reply: Reply) -> None:
        self.leaked = self.leaked or "authorization" in asked.headers
        if self.faults.expired:
            self.faults.expired -= 1
            return await reply.send(403, b"Request has expired")
        first, second, commit, *rest = asked.path.strip("/").split("/")
        path = "/".join(rest)
        data = self.repositories[f"{first}/{second}"].commits[commit][path]
        return await self._send(asked, reply, path, data, {"accept-ranges": "bytes"})

    async def _send(self, asked: Asked, reply: Reply, path: str, data: bytes, headers: dict[str, str]) -> None:
        if self.faults.changes == path:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.faults.short == path:
            data = data[:-1]
        start, status = 0, 200
        asked_range = asked.headers.get("range", "")
        if asked_range and not self.faults.ignores_ranges:
            self.ranges.append(asked_range)
            start = int(asked_range.removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                await reply.send(416, headers={"content-range": f"bytes */{len(data)}"})
                return
            status, headers = 206, headers | {"content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        await reply.head(status, headers | {"content-length": str(len(data) - start)})
        if asked.method != "HEAD":
            await self._write(reply, data[start:])
        await reply.end()

    async def _write(self, reply: Reply, data: bytes) -> None:
        faults, sent = self.faults, 0
        while sent < len(data):
            piece = data[sent : sent + PIECE_BYTES]
            if faults.cut_after_bytes and faults.cuts and sent + len(piece) > faults.cut_after_bytes:
                await reply.write(piece[: faults.cut_after_bytes - sent])
                self.sent_bytes += faults.cut_after_bytes - sent
                faults.cuts -= 1
                raise Cut
            await reply.write(piece)
            sent += len(piece)
            self.sent_bytes += len(piece)
            if faults.bytes_per_second:
                await trio.sleep(len(piece) / faults.bytes_per_second)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _tree_entry(path: str, data: bytes) -> dict[str, Any]:
    if len(data) < LARGE_BYTES:
        return {"type": "file", "oid": _blob(data), "size": len(data), "path": path}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{_sha256(data)}\nsize {len(data)}\n".encode()
    large = {"oid": _sha256(data), "size": len(data), "pointerSize": len(pointer)}
    return {"type": "file", "oid": _blob(pointer), "size": len(data), "lfs": large, "path": path}


async def _refuse(reply: Reply, status: int, code: str, words: str) -> None:
    headers = {"x-error-code": code, "x-error-message": words, "content-type": "application/json"}
    await reply.send(status, json.dumps({"error": words}).encode(), headers if code else {})
