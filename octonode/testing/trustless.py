"""A stand-in of ours for a trustless IPFS gateway of the outside world: raw blocks, CARs of files, and faults.

Source of what it speaks: https://specs.ipfs.tech/http-gateways/trustless-gateway/.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, Self

import trio

from octonode.ipfs import car
from octonode.ipfs.cid import RAW, Cid
from octonode.ipfs.unixfs import ImportResult, import_file
from octonode.testing.http_service import Asked, Cut, HttpService, Reply

CAR_TYPE: Final = "application/vnd.ipld.car"
LEAF_BYTES: Final = 1024 * 1024
Cars = Literal["right", "once", "no", "page", "whole", "swapped", "short", "endless", "garbage"]
"""How CARs come: rightly; each block once (dups=n); refused; a web page; all of the file; two leaves in the wrong
order; without the last leaf; and no end of it; bytes that are none."""
Fault = Literal["", "lie", "long", "short", "drip", "silent", "gzip", "absent", "busy"]
"""What is wrong with raw blocks, and with CARs too where they are `right`."""


class TrustlessGateway:
    """Serves the files it is given under /ipfs/, inside `async with`."""

    def __init__(
        self,
        *files: Path,
        cars: Cars = "right",
        fault: Fault = "",
        redirect: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.cars: Cars = cars
        self.fault: Fault = fault
        self.redirect = redirect
        self.targets: list[str] = []
        self._files: dict[bytes, tuple[ImportResult, Path]] = {}
        self._nodes: dict[bytes, bytes] = {}
        self._leaves: dict[bytes, tuple[Path, int]] = {}
        for path in files:
            result = import_file(path)
            self._files[result.root.digest] = (result, path)
            self._nodes |= {cid.digest: block for cid, block in result.nodes}
            self._leaves |= {digest: (path, number) for number, digest in enumerate(result.leaves)}
        self.service = HttpService(self._answer, tls=tls)

    @property
    def url(self) -> str:
        return self.service.url

    async def __aenter__(self) -> Self:
        await self.service.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.service.__aexit__(*error)

    async def _answer(self, asked: Asked, reply: Reply) -> None:
        self.targets.append(asked.target)
        if self.redirect:
            return await reply.send(301, headers={"location": self.redirect})
        cid = Cid.parse(asked.path.removeprefix("/ipfs/"))
        if self.fault == "silent":
            await trio.sleep_forever()
        if self.fault == "busy":
            return await reply.send(429, b"too many", {"retry-after": "7"})
        if self.fault == "absent":
            return await reply.send(404, b"no providers found")
        if asked.parameter("format") == "car":
            return await self._car(asked, reply, cid)
        block = self._nodes.get(cid.digest) or self._leaf(cid.digest)
        if block is None:
            return await reply.send(404, b"no providers found")
        return await self._raw(reply, block)

    async def _raw(self, reply: Reply, block: bytes) -> None:
        headers = {"content-type": "application/vnd.ipld.raw"}
        if self.fault in ("short", "drip"):
            await self._half(reply, block, headers)
        elif self.fault == "gzip":
            await reply.send(200, block, {**headers, "content-encoding": "gzip"})
        elif self.fault == "long":
            await reply.send(200, block + b"more", headers)
        else:
            await reply.send(200, _flipped(block) if self.fault == "lie" else block, headers)

    async def _half(self, reply: Reply, block: bytes, headers: dict[str, str]) -> None:
        await reply.head(200, {"content-length": str(len(block)), **headers})
        await reply.write(block[: len(block) // 2])
        if self.fault == "short":
            raise Cut
        for _ in range(len(block) - len(block) // 2 - 1):
            await trio.sleep(0.05)
            await reply.write(b"x")
        await trio.sleep_forever()

    async def _car(self, asked: Asked, reply: Reply, cid: Cid) -> None:
        if self.cars in ("no", "page") or cid.digest not in self._files:
            if self.cars == "page":
                return await reply.send(200, b"<html>" * 1000, {"content-type": "text/html"})
            return await reply.send(406, b"no CARs here", {"content-type": "text/plain"})
        result, _ = self._files[cid.digest]
        first, _, last = asked.parameter("entity-bytes", "0:*").partition(":")
        end = len(result.leaves) - 1 if last == "*" else int(last) // LEAF_BYTES
        numbers = list(range(int(first) // LEAF_BYTES, end + 1))
        if self.cars == "whole":
            numbers = list(range(len(result.leaves)))
        if self.cars == "swapped":
            numbers[0], numbers[1] = numbers[1], numbers[0]
        if self.cars == "short":
            numbers.pop()
        await reply.head(200, {"content-type": f"{CAR_TYPE}; version=1; order=dfs; dups=y"})
        if self.cars == "garbage":
            await reply.write(b"\xff" * 100_000)
            return await reply.end()
        for piece in car.encode([cid], self._blocks(result, numbers)):
            await reply.write(piece)
        while self.cars == "endless":
            for piece in car.encode([cid], self._blocks(result, numbers)):
                await reply.write(piece)
        return await reply.end()

    def _blocks(self, result: ImportResult, numbers: list[int]) -> Iterator[tuple[Cid, bytes]]:
        yield from reversed(result.nodes)
        seen: set[bytes] = set()
        for number in numbers:
            digest = result.leaves[number]
            if self.cars == "once" and digest in seen:
                continue
            seen.add(digest)
            block = self._leaf(digest)
            assert block is not None
            yield Cid(RAW, digest), _flipped(block) if self.fault == "lie" else block

    def _leaf(self, digest: bytes) -> bytes | None:
        if digest not in self._leaves:
            return None
        path, number = self._leaves[digest]
        with path.open("rb") as file:
            file.seek(number * LEAF_BYTES)
            return file.read(LEAF_BYTES)


def _flipped(block: bytes) -> bytes:
    return bytes([block[0] ^ 1]) + block[1:]
