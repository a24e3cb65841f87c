"""The RPC of a Kubo node, against a stand-in of ours: every call, and what goes wrong."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import trio

from octonode.errors import ConfigError, NotFound, OctonodeError, Refused, RemoteProtocolError, Unreachable
from octonode.ipfs import car
from octonode.ipfs.cid import DAG_CBOR, DAG_PB, RAW, Cid, dag_cbor_cid, raw_cid
from octonode.ipfs.gateway_client import Stalled
from octonode.ipfs.kubo_rpc import ANSWER_BYTES_MAX, KuboError, KuboRPC
from octonode.ipfs.outside import OutsideTimeouts
from octonode.ipfs.unixfs import import_file
from octonode.testing.http_service import Asked, Cut, HttpService, Reply
from octonode.testing.kubo_rpc import PEER_ID, KuboStandIn

MIB = 1024 * 1024
SHORT = OutsideTimeouts(connect_seconds=1, head_seconds=0.3, stall_seconds=0.3)


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def archive(path: Path, *, without: int | None = None) -> tuple[Cid, bytes]:
    """A CAR of the whole file; `without` leaves one leaf out."""
    data, result = path.read_bytes(), import_file(path)

    def blocks() -> Iterator[tuple[Cid, bytes]]:
        yield from result.nodes
        for number, digest in enumerate(result.leaves):
            if number != without:
                yield Cid(RAW, digest), data[number * MIB : (number + 1) * MIB]

    return result.root, b"".join(car.encode([result.root], blocks()))


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.Random(5).randbytes(3 * MIB + 17))
    return path


async def test_who_kubo_is() -> None:
    async with KuboStandIn() as kubo:
        with KuboRPC(kubo.url) as rpc:
            assert await rpc.version() == "0.43.1"
            said = await rpc.id()
    assert said.peer_id == PEER_ID
    assert said.agent_version.startswith("kubo/0.43.1")
    assert said.addresses[0].endswith(PEER_ID)


@pytest.mark.parametrize("suffix", ["", "/", "/api/v0", "/api/v0/"])
async def test_url_with_or_without_its_path(suffix: str) -> None:
    async with KuboStandIn() as kubo:
        with KuboRPC(kubo.url + suffix) as rpc:
            assert await rpc.version() == "0.43.1"
            assert rpc.url == kubo.url


async def test_connection_is_kept() -> None:
    async with KuboStandIn() as kubo:
        with KuboRPC(kubo.url) as rpc:
            for _ in range(5):
                await rpc.version()
        assert kubo._service.connections == 1


async def test_blocks_go_in_and_come_out() -> None:
    data = random.Random(1).randbytes(MIB)
    async with KuboStandIn() as kubo:
        with KuboRPC(kubo.url) as rpc:
            assert await rpc.block_put(data) == raw_cid(data)
            assert await rpc.block_get(raw_cid(data)) == data
            assert (await rpc.block_put(b"\xa0", DAG_CBOR)) == dag_cbor_cid(b"\xa0")
            with pytest.raises(NotFound, match="could not find"):
                await rpc.block_get(raw_cid(b"not there"), offline=True)


async def test_added_file_has_the_root_that_octonodes_give_it(large_file: Path) -> None:
    async with KuboStandIn() as kubo:
        with KuboRPC(kubo.url) as rpc:
            root = await rpc.add("a file; with \r\n a name", pieces(large_file.read_bytes()))
            assert root == import_file(large_file).root
            assert await rpc.pin_ls(root)


async def test_archive_goes_in_and_is_pinned_and_provided(large_file: Path) -> None:
    root, data = archive(large_file)
    async with KuboStandIn() as kubo:
        with KuboRPC(kubo.url) as rpc:
            assert not await rpc.pin_ls(root)
            taken = await rpc.dag_import(pieces(data), pin=False)
            assert (taken.blocks, taken.roots) == (5, ())
            walked: list[int] = []
            await rpc.pin_add(root, walked.append)
            assert walked == [1]
            assert await rpc.pin_ls(root)
            assert await rpc.provide(root) == 3
            assert (await rpc.dag_import(pieces(data))).roots == (root,)
        assert kubo.provided == [root.text]
        assert all(call.startswith("POST ") for call in kubo.calls)


async def test_archive_that_cannot_be_pinned_names_what_is_missing(large_file: Path) -> None:
    root, data = archive(large_file, without=2)
    async with KuboStandIn() as kubo:
        with KuboRPC(kubo.url) as rpc:
            with pytest.raises(KuboError, match=f"{root} in but cannot pin it: ipld: could not find"):
                await rpc.dag_import(pieces(data))
            assert await rpc.version()  # the client goes on


async def test_import_that_is_broken_off_is_no_success(large_file: Path) -> None:
    """Kubo says it in a trailer, which is not shown to us: the last words are missing."""
    async with KuboStandIn() as kubo:
        kubo.breaks_off = True
        with KuboRPC(kubo.url) as rpc, pytest.raises(RemoteProtocolError, match="broke the import off"):
            await rpc.dag_import(pieces(archive(large_file)[1]))


async def test_archive_with_a_wrong_block_is_refused(large_file: Path) -> None:
    data = bytearray(archive(large_file)[1])
    data[-1] ^= 1
    async with KuboStandIn() as kubo:
        with KuboRPC(kubo.url) as rpc, pytest.raises(KuboError, match="mismatch in content integrity"):
            await rpc.dag_import(pieces(bytes(data)))


async def test_provide_without_peers_says_so() -> None:
    async with KuboStandIn() as kubo:
        kubo.peers = 0
        with KuboRPC(kubo.url) as rpc:
            cid = await rpc.block_put(b"block")
            with pytest.raises(KuboError, match="no connected peers"):
                await rpc.provide(cid)


async def test_swarm_connect() -> None:
    async with KuboStandIn() as kubo:
        with KuboRPC(kubo.url) as rpc:
            await rpc.swarm_connect("/ip4/127.0.0.1/tcp/1/p2p/12D3KooW")
            with pytest.raises(KuboError, match="invalid peer address"):
                await rpc.swarm_connect("/ip4/127.0.0.1/tcp/1")
        assert kubo.connected == ["/ip4/127.0.0.1/tcp/1/p2p/12D3KooW"]


async def test_stand_in_is_strict() -> None:
    """What Kubo refuses, the stand-in refuses: else our client would be tested against nothing."""
    async with KuboStandIn() as kubo, httpx.AsyncClient(base_url=kubo.url, trust_env=False) as http:
        assert (await http.get("/api/v0/version")).status_code == 405
        assert (await http.post("/api/v0/version", headers={"user-agent": "Mozilla/5.0"})).status_code == 403
        assert (await http.post("/api/v0/version", headers={"origin": "http://evil.example"})).status_code == 403
        assert (await http.post("/api/v0/block/get")).status_code == 400
        assert (await http.post("/api/v0/block/get?arg=x&nonsense=1")).status_code == 400
        assert (await http.post("/api/v0/dag/import")).status_code == 500
        assert (await http.post("/api/v0/nothing")).status_code == 404


async def test_redirects_are_not_followed() -> None:
    async with KuboStandIn() as kubo, KuboStandIn() as other:
        kubo.redirects_to = other.url
        with KuboRPC(kubo.url) as rpc, pytest.raises(RemoteProtocolError, match="redirects to another host"):
            await rpc.version()
        assert other.calls == []


async def test_nobody_there() -> None:
    async with KuboStandIn() as kubo:
        url = kubo.url
    with KuboRPC(url) as rpc, pytest.raises(Unreachable, match="Kubo node at"):
        await rpc.version()


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1", "127.0.0.1:5001", "http://"])
def test_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match=r"models.kubo_rpc.*such as"):
        KuboRPC(url)


async def _silent(asked: Asked, reply: Reply) -> None:
    await trio.sleep_forever()


async def _drip(asked: Asked, reply: Reply) -> None:
    await reply.head(200, {"content-length": "100000"})
    while True:
        await reply.write(b"x")
        await trio.sleep(0.05)


async def _half(asked: Asked, reply: Reply) -> None:
    await reply.head(200, {"content-length": "100"})
    await reply.write(b"{")
    raise Cut


async def _endless(asked: Asked, reply: Reply) -> None:
    await reply.head(200)
    while True:
        await reply.write(b"x" * 65536)


async def _page(asked: Asked, reply: Reply) -> None:
    await reply.send(200, b"<html>a router's page</html>")


async def _forbidden(asked: Asked, reply: Reply) -> None:
    await reply.send(403, b"403 - Forbidden")


async def _odd(asked: Asked, reply: Reply) -> None:
    await reply.send(200, b'{"Version": 43, "Key": "bafk", "ID": null}')


async def _zipped(asked: Asked, reply: Reply) -> None:
    await reply.send(200, b"\x1f\x8b", {"content-encoding": "gzip"})


FAULTS: list[tuple[object, type[OctonodeError], str]] = [
    (_silent, Stalled, "does not answer"),
    (_drip, Stalled, "stopped sending"),
    (_half, Unreachable, "Kubo node"),
    (_endless, RemoteProtocolError, f"more than the {ANSWER_BYTES_MAX} bytes"),
    (_page, RemoteProtocolError, "is that its RPC port"),
    (_forbidden, Refused, "API.Authorizations"),
    (_odd, RemoteProtocolError, "no Version"),
    (_zipped, RemoteProtocolError, "compresses"),
]


@pytest.mark.parametrize(("answer", "kind", "words"), FAULTS, ids=[case[0].__name__ for case in FAULTS])  # type: ignore[attr-defined]
async def test_faults_have_names(answer: object, kind: type[OctonodeError], words: str) -> None:
    short = OutsideTimeouts(head_seconds=0.3, stall_seconds=0.3, bytes_per_second_min=10**9)
    async with HttpService(answer) as service:  # type: ignore[arg-type]
        with (
            KuboRPC(service.url, short if kind is Stalled else OutsideTimeouts()) as rpc,
            pytest.raises(kind, match=words),
        ):
            await rpc.version()


def test_codecs_that_kubo_is_told() -> None:
    from octonode.ipfs.kubo_rpc import _CODECS

    assert set(_CODECS) == {RAW, DAG_PB, DAG_CBOR}
