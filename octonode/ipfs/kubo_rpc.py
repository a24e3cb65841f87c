"""The RPC of a Kubo node (go-ipfs): the few calls a bridge needs. `OutsideHttp` on trio, POST alone.

Source: https://docs.ipfs.tech/reference/kubo/rpc/. It is an administrator's interface without a password: it belongs
on loopback, and nothing of a peer ever reaches it. A block that comes from it is verified by who asked.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import httpx

from octonode.errors import ConfigError, NotFound, OctonodeError, Refused, RemoteProtocolError, printable
from octonode.ipfs.cid import DAG_CBOR, DAG_PB, RAW, Cid, CidError
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX
from octonode.ipfs.outside import OutsideHttp, OutsideTimeouts

DEFAULT_URL: Final = "http://127.0.0.1:5001"
ANSWER_BYTES_MAX: Final = 1024 * 1024
"""Of one answer in JSON, or one line of a streamed one."""
LINES_MAX: Final = 1_000_000
"""Of one streamed answer: pinning and providing tell of their progress."""
LINES_BYTES_MAX: Final = 256 * 1024 * 1024
SLOW_SECONDS: Final = 600.0
"""Until an import, a pin or a provide says its first word: Kubo works before it answers."""
_CODECS: Final = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor"}
_ABSENT: Final = ("not found", "could not find", "deadline exceeded", "no such")

TIMEOUTS: Final = OutsideTimeouts(connect_seconds=5.0, head_seconds=30.0, stall_seconds=120.0)


@dataclass(frozen=True, slots=True)
class KuboId:
    peer_id: str
    addresses: tuple[str, ...]
    agent_version: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What `dag_import` did."""

    roots: tuple[Cid, ...]
    blocks: int
    """0 where Kubo did not count."""


class KuboError(OctonodeError):
    """Kubo said no, in its own words."""

    code = "BAD_MESSAGE"


class KuboRPC:
    """A client of the RPC at `url`. Close it in the end, or use `with`; not for two tasks at once.

    Raises Unreachable (nobody answers), Stalled, NotFound (a block Kubo cannot find), KuboError (its own words),
    RemoteProtocolError (not Kubo's answer, a redirect, too long).
    """

    def __init__(self, url: str = DEFAULT_URL, timeouts: OutsideTimeouts = TIMEOUTS) -> None:
        self.url = rpc_base(url)
        self._http = OutsideHttp(f"{self.url}/api/v0", f"the Kubo node at {self.url}", timeouts)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    async def id(self) -> KuboId:
        said = await self._call("id")
        return KuboId(_text(said, "ID"), tuple(_texts(said, "Addresses")), _text(said, "AgentVersion"))

    async def version(self) -> str:
        return _text(await self._call("version"), "Version")

    async def swarm_connect(self, address: str) -> None:
        """Dial `address`, a multiaddr that ends in /p2p/<peer id>."""
        await self._call("swarm/connect", arg=address)

    async def block_get(self, cid: Cid, *, offline: bool = False) -> bytes:
        """The bytes of one block, not verified. Kubo asks its network unless `offline`."""
        parameters = {"arg": cid.text, "offline": "true"} if offline else {"arg": cid.text}
        async with self._post("block/get", parameters) as response:
            return bytes(await self._http.read(response, BLOCK_BYTES_MAX))

    async def block_put(self, data: bytes, codec: int = RAW) -> Cid:
        """Store one block; its CID, checked against `data`."""
        assert codec in _CODECS
        parameters = {"cid-codec": _CODECS[codec], "mhtype": "sha2-256", "allow-big-block": "true"}
        said = await self._call("block/put", content=_once(data), **parameters)
        cid = _cid(_text(said, "Key"))
        if not cid.matches(data):
            raise RemoteProtocolError(f"{self._http.what} stored a block under {cid}, which is not its CID")
        return cid

    async def add(self, name: str, content: AsyncIterable[bytes]) -> Cid:
        """Import a file under the profile that octonodes use (CIDv1, raw leaves, 1 MiB); the root Kubo gives it."""
        parameters = {"cid-version": "1", "raw-leaves": "true", "chunker": "size-1048576", "max-file-links": "1024"}
        root = ""
        parameters |= {"pin": "true", "progress": "false"}
        async with aclosing(self._lines("add", parameters, _form(content, name))) as lines:
            async for said in lines:
                root = said.get("Hash", root)
        return _cid(str(root))

    async def dag_import(self, car: AsyncIterable[bytes], *, pin: bool = True) -> Imported:
        """Take a CAR in. Raises KuboError when a root could not be pinned."""
        parameters = {"pin-roots": str(pin).lower(), "stats": "true", "allow-big-block": "true"}
        roots: list[Cid] = []
        blocks, done = 0, False
        form = _form(car, "model.car", "application/vnd.ipld.car")
        async with aclosing(self._lines("dag/import", parameters, form)) as lines:
            async for said in lines:
                if root := said.get("Root"):
                    roots.append(_cid(str(root.get("Cid", {}).get("/", ""))))
                    if trouble := root.get("PinErrorMsg"):
                        raise KuboError(f"{self._http.what} took {roots[-1]} in but cannot pin it: {_shown(trouble)}")
                if stats := said.get("Stats"):
                    blocks, done = int(stats.get("BlockCount", 0)), True
        if not done:  # an error after the head has only a trailer, which httpx does not show
            raise RemoteProtocolError(f"{self._http.what} broke the import off; its log says why")
        return Imported(tuple(roots), blocks)

    async def pin_add(self, cid: Cid, progress: Callable[[int], None] | None = None) -> None:
        """Pin recursively; `progress` gets the number of nodes walked."""
        pinned = False
        parameters = {"arg": cid.text, "recursive": "true", "progress": "true"}
        async with aclosing(self._lines("pin/add", parameters)) as lines:
            async for said in lines:
                pinned = pinned or bool(said.get("Pins"))
                if progress is not None and isinstance(said.get("Progress"), int):
                    progress(said["Progress"])
        if not pinned:
            raise RemoteProtocolError(f"{self._http.what} did not say that it pinned {cid}")

    async def pin_ls(self, cid: Cid) -> bool:
        """Whether it is pinned, by itself or below another pin."""
        try:
            said = await self._call("pin/ls", arg=cid.text, type="all")
        except KuboError as error:
            if "is not pinned" in error.message:
                return False
            raise
        return bool(said.get("Keys"))

    async def provide(self, cid: Cid) -> int:
        """Tell the DHT that Kubo has it; the peers that were sent a record. KuboError where it knows no peers."""
        sent = 0
        async with aclosing(self._lines("routing/provide", {"arg": cid.text, "recursive": "false"})) as lines:
            async for said in lines:
                if said.get("Type") == _QUERY_ERROR:
                    raise KuboError(f"{self._http.what} cannot provide {cid}: {_shown(said.get('Extra', ''))}")
                sent += said.get("Type") == _FINAL_PEER
        return sent

    # -- the wire -----------------------------------------------------------------------------------------------

    async def _call(self, name: str, *, content: AsyncIterable[bytes] | None = None, **parameters: str) -> Any:
        body = None if content is None else _form(content, "data")
        async with self._post(name, {key.replace("_", "-"): each for key, each in parameters.items()}, body) as answer:
            return self._json(bytes(await self._http.read(answer, ANSWER_BYTES_MAX)))

    async def _lines(
        self, name: str, parameters: Mapping[str, str], body: _Form | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The objects of a streamed answer, one a line."""
        async with self._post(name, parameters, body, SLOW_SECONDS) as response:
            rest, count = b"", 0
            async with aclosing(self._http.chunks(response, LINES_BYTES_MAX)) as pieces:
                async for piece in pieces:
                    *lines, rest = (rest + piece).split(b"\n")
                    count += len(lines)
                    if len(rest) > ANSWER_BYTES_MAX or count > LINES_MAX:
                        raise RemoteProtocolError(f"{self._http.what} says more than can be meant", code="TOO_LARGE")
                    for line in lines:
                        yield self._json(line)
            if rest.strip():
                yield self._json(rest)

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            said = json.loads(data) if data.strip() else {}
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise RemoteProtocolError(f"{self._http.what} does not answer as Kubo does; is that its RPC port?")
        if said.get("Type") == "error" and "Message" in said:
            raise self._error(said)
        return said

    def _error(self, said: Mapping[str, Any]) -> OctonodeError:
        words = _shown(said["Message"])
        if any(each in words for each in _ABSENT):
            return NotFound(f"{self._http.what}: {words}")
        return KuboError(f"{self._http.what}: {words}")

    @asynccontextmanager
    async def _post(
        self, name: str, parameters: Mapping[str, str], body: _Form | None = None, head_seconds: float | None = None
    ) -> AsyncIterator[httpx.Response]:
        headers = {} if body is None else {"content-type": f"multipart/form-data; boundary={body.boundary}"}
        content = None if body is None else body.content
        async with self._http.open(
            "POST", f"/{name}", params=parameters, headers=headers, content=content, head_seconds=head_seconds
        ) as response:
            if response.status_code == 200:
                yield response
                return
            data = bytes(await self._http.read(response, ANSWER_BYTES_MAX))
        if response.status_code == 403:
            raise Refused(f"{self._http.what} refuses this program (403): see API.Authorizations", code="FORBIDDEN")
        if response.status_code == 404:
            raise RemoteProtocolError(f"{self._http.what} has no call {name}; is that its RPC port, and is it current?")
        self._json(data)
        raise RemoteProtocolError(f"{self._http.what} answered {response.status_code} to {name}")


_FINAL_PEER: Final = 2
_QUERY_ERROR: Final = 3
"""Types of routing events: https://pkg.go.dev/github.com/libp2p/go-libp2p/core/routing#QueryEventType."""


@dataclass(frozen=True, slots=True)
class _Form:
    boundary: str
    content: AsyncIterable[bytes]


def _form(content: AsyncIterable[bytes], name: str, kind: str = "application/octet-stream") -> _Form:
    """One file as multipart/form-data, streamed: the body may be larger than memory."""
    boundary = secrets.token_hex(16)
    safe = "".join(each if each.isalnum() or each in "._-" else "_" for each in name)
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{safe}"\r\ncontent-type: {kind}\r\n'

    async def parts() -> AsyncIterator[bytes]:
        yield f"{head}\r\n".encode()
        async for piece in content:
            yield piece
        yield f"\r\n--{boundary}--\r\n".encode()

    return _Form(boundary, parts())


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def rpc_base(url: str) -> str:
    """`http://127.0.0.1:5001` of that URL with or without `/api/v0` behind it. Raises ConfigError."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"models.kubo_rpc: {url!r} is not the URL of Kubo's RPC, such as {DEFAULT_URL}")
    return str(parsed).rstrip("/").removesuffix("/api/v0")


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str):
        raise RemoteProtocolError(f"Kubo's answer has no {name}; is that its RPC port?")
    return value


def _texts(said: Mapping[str, Any], name: str) -> list[str]:
    value = said.get(name) or []
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _shown(words: object) -> str:
    return printable(str(words), 300)


def _cid(text: str) -> Cid:
    try:
        return Cid.parse(text)
    except CidError as error:
        raise RemoteProtocolError(f"Kubo named {text[:64]!r}, which is no CID we read: {error.message}") from None
