"""Blocks from a configured trustless gateway of the IPFS world: runs as a CAR where it gives them, else block by block.

Source: https://specs.ipfs.tech/http-gateways/trustless-gateway/. Nothing that comes is trusted: the fetch hashes it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import httpx

from octonode.errors import ConfigError, NotFound, RemoteProtocolError, Unreachable
from octonode.ids import PeerId
from octonode.ipfs.car import CarCursor, Section
from octonode.ipfs.cid import RAW, Cid
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX
from octonode.ipfs.gateway_client import CAR_OVERHEAD_BYTES, SECTION_OVERHEAD_BYTES
from octonode.ipfs.gateway_query import CAR_TYPE, IPFS_PREFIX, RAW_TYPE, block_target
from octonode.ipfs.layout import Layout, Leaf
from octonode.ipfs.outside import OutsideHttp, OutsideTimeouts
from octonode.models.sources.source import Arrived, Lane

log = logging.getLogger(__name__)

LANES: Final = 4
RUN_LEAVES_MIN: Final = 2
"""A CAR brings the nodes above its leaves again, so one leaf alone is asked for as a raw block."""
NODES_BYTES_MAX: Final = 2 * BLOCK_BYTES_MAX
"""Nodes above the leaves of one run, which a CAR for the public brings along."""
CAR_ACCEPT: Final = f"{CAR_TYPE}; version=1; order=dfs; dups=y"


def gateway_base(url: str, setting: str = "models.gateways") -> str:
    """`https://ipfs.example` of that URL with or without `/ipfs/` behind it. Raises ConfigError."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ConfigError(f"{setting}: {url!r} is not the URL of a gateway, such as https://ipfs.example")
    return str(parsed).rstrip("/").removesuffix(IPFS_PREFIX.rstrip("/")).rstrip("/")


class HttpsSource:
    """`url` is the gateway's base, such as https://ipfs.example, with or without /ipfs/. A redirect bans it: gateways
    that redirect to a subdomain are for browsers, a trustless one answers under /ipfs/."""

    rank, lanes, verifies = 2, LANES, False
    peer_id: PeerId | None = None

    def __init__(self, url: str, timeouts: OutsideTimeouts | None = None) -> None:
        self._url = self.name = self.label = gateway_base(url)
        self._timeouts = timeouts
        self._habits = _Habits()

    def open(self) -> Lane:
        return _HttpsLane(OutsideHttp(self._url, self._url, self._timeouts), self._habits)


class _Habits:
    """What is known of a gateway, over all its lanes."""

    def __init__(self) -> None:
        self.gives_cars = True
        """Until it gave something else; the first run is the probe."""


class _NoCar(Exception):
    """The gateway does not give CARs as the specification says. What came before it noticed was handed on."""


class _HttpsLane:
    def __init__(self, http: OutsideHttp, habits: _Habits) -> None:
        self._http = http
        self._habits = habits
        self._buffer = bytearray()

    def close(self) -> None:
        self._http.close()

    async def have(self, layout: Layout) -> int | None:
        return None

    async def block(self, cid: Cid) -> bytes:
        return bytes(await self._raw(cid, BLOCK_BYTES_MAX))

    async def leaves(self, file_root: Cid, leaves: Sequence[Leaf], arrived: Arrived) -> None:
        waiting = list(reversed(leaves))
        if self._habits.gives_cars and len(waiting) >= RUN_LEAVES_MIN and file_root.codec != RAW:
            try:
                await self._car(file_root, waiting, arrived)
            except _NoCar as reason:
                self._habits.gives_cars = False
                log.info("%s is asked block by block: %s", self._http.what, reason)
        while waiting:
            leaf = waiting[-1]
            block = await self._raw(leaf.cid, leaf.block_bytes)
            arrived([(waiting.pop(), memoryview(block))])

    async def _raw(self, cid: Cid, bytes_max: int) -> bytearray:
        async with self._http.open("GET", block_target(cid), headers={"accept": RAW_TYPE}) as response:
            await self._check_status(response, f"{cid}")
            return await self._http.read(response, bytes_max)

    async def _check_status(self, response: httpx.Response, what: str) -> None:
        status, name = response.status_code, self._http.what
        if status == 200:
            return
        if status in (404, 410):
            raise NotFound(f"{name} does not have {what}")
        seconds = response.headers.get("retry-after", "")
        after = float(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) < 6 else None
        words = await self._http.words(response)
        raise Unreachable(
            f"{name} answered {status} for {what}{f': {words}' if words else ''}", retry_after_seconds=after
        )

    async def _car(self, file_root: Cid, waiting: list[Leaf], arrived: Arrived) -> None:
        """The run in one answer; leaves leave `waiting` as they are handed on. Raises _NoCar."""
        first = waiting[-1].offset_bytes
        last = waiting[0].offset_bytes + waiting[0].size_bytes - 1
        target = f"{IPFS_PREFIX}{file_root}?format=car&dag-scope=entity&entity-bytes={first}:{last}"
        size = sum(leaf.block_bytes + SECTION_OVERHEAD_BYTES for leaf in waiting)
        run = _Run(waiting, self._take(CAR_OVERHEAD_BYTES + NODES_BYTES_MAX + size))
        async with self._http.open("GET", target, headers={"accept": CAR_ACCEPT}) as response:
            if response.status_code in (400, 405, 406, 415, 500, 501):
                await self._http.words(response)  # a short answer read to its end keeps the connection
                raise _NoCar(f"it answered {response.status_code} to a CAR")
            await self._check_status(response, f"a run of {file_root}")
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            if kind != CAR_TYPE:
                raise _NoCar(f"it sent {kind[:64] or 'something without a type'} for a CAR")
            try:
                async with aclosing(self._http.chunks(response, len(self._buffer))) as pieces:
                    async for piece in pieces:
                        found = run.take(piece)
                        if found:
                            arrived(found)
            except RemoteProtocolError as error:
                raise _NoCar(error.message) from error
        if waiting:
            raise _NoCar(f"its CAR left out {waiting[-1].cid}")

    def _take(self, size_bytes: int) -> memoryview:
        if len(self._buffer) < size_bytes:
            self._buffer = bytearray(size_bytes)
        return memoryview(self._buffer)


class _Run:
    """One CAR on its way in: leaves in order, nodes passed over, a repeated leaf taken from where it stood first."""

    def __init__(self, waiting: list[Leaf], buffer: memoryview) -> None:
        self._waiting = waiting
        self._buffer = buffer
        self._cursor = CarCursor(buffer)
        self._filled = 0
        self._seen: dict[bytes, memoryview] = {}

    def take(self, piece: bytes) -> list[tuple[Leaf, memoryview]]:
        """The leaves that became whole. Raises RemoteProtocolError for what is no CAR of the run."""
        end = self._filled + len(piece)
        if end > len(self._buffer):
            raise RemoteProtocolError("its CAR is longer than the run", code="TOO_LARGE")
        self._buffer[self._filled : end] = piece
        self._filled = end
        found: list[tuple[Leaf, memoryview]] = []
        for section in self._cursor.advance(end):
            self._add(section, found)
            self._add_repeated(found)
        return found

    def _add(self, section: Section, found: list[tuple[Leaf, memoryview]]) -> None:
        data = self._buffer[section.start : section.end]
        if self._waiting and section.cid.digest == self._waiting[-1].cid.digest:
            self._seen[section.cid.digest] = data
            found.append((self._waiting.pop(), data))
        elif section.cid.codec == RAW and section.cid.digest not in self._seen:
            raise RemoteProtocolError(f"its CAR holds {section.cid}, which is not of the run, or out of order")

    def _add_repeated(self, found: list[tuple[Leaf, memoryview]]) -> None:
        """`dups=y` is asked for, and not every gateway heeds it."""
        while self._waiting and (data := self._seen.get(self._waiting[-1].cid.digest)) is not None:
            found.append((self._waiting.pop(), data))
