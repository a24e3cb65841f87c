"""A stand-in of ours for the RPC of a Kubo node: the calls that `ipfs.kubo_rpc` makes, spoken strictly.

It is no Kubo. What it does was written from Kubo's documentation and source: POST alone (405 else), browsers refused
(403), a missing argument is 400, what fails in the work is 500 with {"Message", "Code", "Type": "error"}, and what
fails after the head is a trailer `X-Stream-Error`. An option that it does not know is 400, where Kubo may pass it over.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import trio

from octonode.errors import OctonodeError
from octonode.ipfs import car
from octonode.ipfs.cid import DAG_CBOR, DAG_PB, RAW, Cid, dag_cbor_cid, dag_pb_cid, raw_cid
from octonode.ipfs.dagpb import decode_node
from octonode.ipfs.unixfs import import_file
from octonode.testing.http_service import Asked, HttpService, Reply

PREFIX: Final = "/api/v0/"
VERSION: Final = "0.43.1"
PEER_ID: Final = "12D3KooWPFrR6rV8HtVvqFmDPeTWRKJMWbcTyhCdeBxdXqQAQ7Zv"
_ARGUMENTS: Final = {
    "id": {"format"}, "version": {"number"}, "swarm/connect": {"arg"}, "block/get": {"arg", "offline"},
    "block/put": {"cid-codec", "mhtype", "allow-big-block", "pin"},
    "dag/import": {"pin-roots", "stats", "allow-big-block", "silent"},
    "add": {"cid-version", "raw-leaves", "chunker", "max-file-links", "pin", "progress"},
    "pin/add": {"arg", "recursive", "progress"}, "pin/ls": {"arg", "type"},
    "routing/provide": {"arg", "recursive"},
}  # fmt: skip
"""The options of each call that are taken, `arg` among them where it is needed."""
_EVERYWHERE: Final = {"stream-channels", "encoding", "timeout", "offline"}
"""Options that Kubo takes with every call."""
_COMPUTE: Final = {"raw": raw_cid, "dag-pb": dag_pb_cid, "dag-cbor": dag_cbor_cid}


class _Failed(Exception):
    """What Kubo would say with status 500."""


class KuboStandIn:
    """Runs inside `async with`; its state is open to the test."""

    def __init__(self, version: str = VERSION) -> None:
        self.version = version
        self.blocks: dict[bytes, bytes] = {}
        """By sha256."""
        self.pins: set[str] = set()
        self.provided: list[str] = []
        self.connected: list[str] = []
        self.peers = 3
        """With none, providing fails as Kubo's does."""
        self.lying = False
        """Blocks come with one bit turned."""
        self.breaks_off = False
        """Imports end without their last words, with the trailer that Kubo sends."""
        self.redirects_to = ""
        self.calls: list[str] = []
        self._service = HttpService(self._answer)

    @property
    def url(self) -> str:
        return self._service.url

    async def __aenter__(self) -> Self:
        await self._service.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._service.__aexit__(*error)

    async def _answer(self, asked: Asked, reply: Reply) -> None:
        name = asked.path.removeprefix(PREFIX)
        self.calls.append(f"{asked.method} {name}")
        if self.redirects_to:
            return await reply.send(307, headers={"location": self.redirects_to + asked.target})
        if asked.method != "POST":
            return await reply.send(405, b"405 - Method Not Allowed", {"allow": "OPTIONS, POST"})
        if "origin" in asked.headers or "mozilla" in asked.headers.get("user-agent", "").lower():
            return await reply.send(403, b"403 - Forbidden")
        call: Callable[[Asked, Reply], Awaitable[None]] | None = getattr(self, f"_{name.replace('/', '_')}", None)
        if not asked.path.startswith(PREFIX) or name not in _ARGUMENTS or call is None:
            return await reply.send(404, b"404 page not found")
        if unknown := set(asked.parameters) - _ARGUMENTS[name] - _EVERYWHERE:
            return await reply.send(400, f"unknown option {sorted(unknown)[0]!r}".encode())
        if "arg" in _ARGUMENTS[name] and not asked.parameter("arg"):
            return await reply.send(400, b'argument "ipfs-path" is required')
        try:
            await call(asked, reply)
        except (_Failed, OctonodeError) as error:
            body = json.dumps({"Message": str(error), "Code": 0, "Type": "error"}).encode()
            await reply.send(500, body, {"content-type": "application/json"})
        return None

    # -- calls --------------------------------------------------------------------------------------------------

    async def _id(self, _: Asked, reply: Reply) -> None:
        address = f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER_ID}"
        agent = f"kubo/{self.version}/"
        await _json(reply, {"ID": PEER_ID, "Addresses": [address], "AgentVersion": agent, "Protocols": []})

    async def _version(self, _: Asked, reply: Reply) -> None:
        said = {"Version": self.version, "Commit": "", "Repo": "18", "System": "amd64/linux", "Golang": "go1.26"}
        await _json(reply, said)

    async def _swarm_connect(self, asked: Asked, reply: Reply) -> None:
        address = asked.parameter("arg")
        if "/p2p/" not in address:
            raise _Failed(f"invalid peer address {address}")
        self.connected.append(address)
        await _json(reply, {"Strings": [f"connect {address.rpartition('/')[2]} success"]})

    async def _block_get(self, asked: Asked, reply: Reply) -> None:
        cid = _cid(asked)
        if cid.digest not in self.blocks:
            raise _Failed(f"block was not found locally (offline): ipld: could not find {cid}")
        block = self.blocks[cid.digest]
        if self.lying:
            block = bytes([block[0] ^ 1]) + block[1:]
        await reply.send(200, block, {"content-type": "text/plain", "x-stream-output": "1"})

    async def _block_put(self, asked: Asked, reply: Reply) -> None:
        codec = asked.parameter("cid-codec", "raw")
        if codec not in _COMPUTE or asked.parameter("mhtype", "sha2-256") != "sha2-256":
            raise _Failed(f"unrecognized codec {codec}")
        with tempfile.TemporaryFile() as file:
            start, size = await _file_of(asked, file)
            file.seek(start)
            data = file.read(size)
        cid = _COMPUTE[codec](data)
        self.blocks[cid.digest] = data
        await _json(reply, {"Key": cid.text, "Size": len(data)})

    async def _add(self, asked: Asked, reply: Reply) -> None:
        if (asked.parameter("cid-version"), asked.parameter("chunker")) != ("1", "size-1048576"):
            raise _Failed("this stand-in adds with cid-version=1 and chunker=size-1048576 alone")
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "added"
            with tempfile.TemporaryFile() as file:
                start, size = await _file_of(asked, file)
                file.seek(start)
                path.write_bytes(file.read(size))
            imported = await trio.to_thread.run_sync(import_file, path)
            data = path.read_bytes()
        for number, digest in enumerate(imported.leaves):
            self.blocks[digest] = data[number << 20 : (number + 1) << 20]
        self.blocks |= {cid.digest: node for cid, node in imported.nodes}
        self.pins.add(imported.root.text)
        await _json(reply, {"Name": "added", "Hash": imported.root.text, "Size": str(imported.total_size_bytes)})

    async def _dag_import(self, asked: Asked, reply: Reply) -> None:
        count = size_bytes = 0
        with tempfile.TemporaryFile() as file:
            start, size = await _file_of(asked, file)
            roots = _roots(file, start)
            file.truncate(start + size)
            file.seek(start)
            for cid, block in car.read(file):
                if not cid.matches(block):
                    raise _Failed(f"mismatch in content integrity, expected: {cid}")
                self.blocks[cid.digest] = block
                count, size_bytes = count + 1, size_bytes + len(block)
        await reply.head(
            200, {"content-type": "application/json", "x-chunked-output": "1", "trailer": "X-Stream-Error"}
        )
        if self.breaks_off:
            return await reply.end({"X-Stream-Error": "the disk is full"})
        failed = 0
        for root in roots if asked.parameter("pin-roots", "true") == "true" else ():
            trouble = self._pin(root)
            failed += bool(trouble)
            await reply.write(_line({"Root": {"Cid": {"/": root.text}, "PinErrorMsg": trouble}}))
        if failed:
            said = f"unable to pin all roots: {failed} out of {len(roots)} failed"
            return await reply.end({"X-Stream-Error": said})
        if asked.parameter("stats") == "true":
            await reply.write(_line({"Stats": {"BlockCount": count, "BlockBytesCount": size_bytes}}))
        return await reply.end()

    async def _pin_add(self, asked: Asked, reply: Reply) -> None:
        cid = _cid(asked)
        if trouble := self._pin(cid):
            raise _Failed(f"pin: {trouble}")
        await reply.head(200, {"content-type": "application/json", "x-chunked-output": "1"})
        if asked.parameter("progress") == "true":
            await reply.write(_line({"Progress": 1}))
        await reply.write(_line({"Pins": [cid.text]}))
        await reply.end()

    async def _pin_ls(self, asked: Asked, reply: Reply) -> None:
        cid = _cid(asked)
        if cid.text not in self.pins:
            raise _Failed(f"path '{cid}' is not pinned")
        await _json(reply, {"Keys": {cid.text: {"Type": "recursive", "Name": ""}}})

    async def _routing_provide(self, asked: Asked, reply: Reply) -> None:
        cid = _cid(asked)
        if not self.peers:
            raise _Failed("cannot provide, no connected peers")
        if cid.digest not in self.blocks:
            raise _Failed(f"block {cid} not found locally, cannot provide")
        self.provided.append(cid.text)
        await reply.head(200, {"content-type": "application/json", "x-chunked-output": "1"})
        for number in range(self.peers):
            await reply.write(_line({"ID": f"{PEER_ID[:-1]}{number}", "Type": 2, "Responses": None, "Extra": ""}))
        await reply.end()

    def _pin(self, root: Cid) -> str:
        """What keeps it from being pinned: a block that is not here."""
        todo = [root]
        while todo:
            cid = todo.pop()
            block = self.blocks.get(cid.digest)
            if block is None:
                return f"ipld: could not find {cid}"
            todo += [link.cid for link in decode_node(block).links] if cid.codec == DAG_PB else []
        self.pins.add(root.text)
        return ""


def _cid(asked: Asked) -> Cid:
    cid = Cid.parse(asked.parameter("arg").removeprefix("/ipfs/"))
    assert cid.codec in (RAW, DAG_PB, DAG_CBOR)
    return cid


def _roots(file: BinaryIO, start: int) -> tuple[Cid, ...]:
    file.seek(start)
    cursor = car.CarCursor(head := bytearray(file.read(car.HEADER_BYTES_MAX)))
    cursor.advance(len(head))
    return cursor.roots


async def _file_of(asked: Asked, into: BinaryIO) -> tuple[int, int]:
    """Take the one file of a multipart body down; where it starts and its size. Raises _Failed."""
    kind, _, boundary = asked.headers.get("content-type", "").partition("boundary=")
    if not kind.startswith("multipart/form-data") or not boundary:
        raise _Failed("file argument 'path' is required")
    async for piece in asked.pieces():
        into.write(piece)
    size, boundary = into.tell(), boundary.strip('"')
    into.seek(0)
    head = into.read(4096)
    start = head.find(b"\r\n\r\n") + 4
    last = max(start, size - 1024)
    into.seek(last)
    end = into.read().rfind(f"\r\n--{boundary}--".encode())
    if not head.lstrip().startswith(f"--{boundary}\r\n".encode()) or start < 4 or end < 0:
        raise _Failed("multipart: the body is malformed")
    return start, last + end - start


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


async def _json(reply: Reply, value: Any) -> None:
    await reply.send(200, _line(value), {"content-type": "application/json"})
