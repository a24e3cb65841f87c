"""Blocks from a configured HTTP or HTTPS gateway of the IPFS world, one raw block a request, through httpx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import httpx

from octonode.errors import ConfigError, NotFound, RemoteProtocolError, Unreachable
from octonode.ipfs.cid import Cid
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX
from octonode.ipfs.gateway_client import Stalled
from octonode.ipfs.gateway_query import RAW_TYPE, block_target
from octonode.ipfs.layout import Layout, Leaf
from octonode.models.sources.source import Arrived, Lane

LANES: Final = 4
TIMEOUT_SECONDS: Final = 20.0


class HttpsSource:
    """`url` is the gateway's base, such as https://ipfs.example; redirects are not followed, proxies not read."""

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"models.gateways: {url!r} is not the URL of a gateway, such as https://ipfs.example")
        self._url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds

    @property
    def name(self) -> str:
        return self._url

    @property
    def label(self) -> str:
        return self._url

    @property
    def rank(self) -> int:
        return 2

    @property
    def lanes(self) -> int:
        return LANES

    def open(self) -> Lane:
        return _HttpsLane(self._url, self._timeout_seconds)


class _HttpsLane:
    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._url = url
        self._timeout = timeout_seconds

    def close(self) -> None:
        """Connections are closed with each call."""

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=self._timeout, follow_redirects=False, trust_env=False)

    async def have(self, layout: Layout) -> int | None:
        return None

    async def block(self, cid: Cid) -> bytes:
        async with self._client() as client:
            return bytes(await self._get(client, cid, BLOCK_BYTES_MAX))

    async def leaves(self, file_root: Cid, leaves: Sequence[Leaf], arrived: Arrived) -> None:
        async with self._client() as client:
            for leaf in leaves:
                block = await self._get(client, leaf.cid, leaf.size_bytes)
                arrived([(leaf, memoryview(block))])

    async def _get(self, client: httpx.AsyncClient, cid: Cid, size_max: int) -> bytearray:
        try:
            headers = {"Accept": RAW_TYPE, "Accept-Encoding": "identity"}
            async with client.stream("GET", self._url + block_target(cid), headers=headers) as response:
                if response.status_code in (404, 410):
                    raise NotFound(f"{self._url} does not have {cid}")
                if response.status_code != 200:
                    raise Unreachable(f"{self._url} answered {response.status_code} for {cid}")
                block = bytearray()
                async for chunk in response.aiter_raw(65536):
                    block += chunk
                    if len(block) > size_max:
                        raise RemoteProtocolError(f"{self._url} sends more than {size_max} bytes", code="TOO_LARGE")
                return block
        except httpx.TimeoutException as error:
            raise Stalled(f"{self._url} stopped sending ({type(error).__name__})") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Unreachable(f"{self._url}: {error or type(error).__name__}") from error
