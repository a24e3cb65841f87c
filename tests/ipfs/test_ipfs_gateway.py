"""The gateway over real sockets: what it serves, what it refuses, and what a bad asker costs."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import ConfigError
from octonode.ipfs import car
from octonode.ipfs.cid import Cid, raw_cid
from octonode.ipfs.gateway import Gateway, GatewayLimits, Pace
from octonode.ipfs.gateway_query import BadQuery, parse_target, run_target
from octonode.ipfs.unixfs import LEAF_BYTES


async def _get(gateway: Gateway, target: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"http://127.0.0.1:{gateway.port}{target}"
        return await client.request(method, url, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_raw_blocks_nodes_and_the_bitmap(one_file: Any, serve: Any) -> None:
    root, data = one_file.dag.root, one_file.path.read_bytes()
    async with serve(one_file) as gateway:
        node = await _get(gateway, f"/ipfs/{root}?format=raw")
        assert root.matches(node.content)
        assert node.headers["etag"] == f'"{root}.raw"'
        assert "immutable" in node.headers["cache-control"]
        assert node.headers["content-type"] == "application/vnd.ipld.raw"
        leaf = raw_cid(data[:LEAF_BYTES])
        answer = await _get(gateway, f"/ipfs/{leaf}", accept="application/vnd.ipld.raw")
        assert answer.content == data[:LEAF_BYTES]
        head = await _get(gateway, f"/ipfs/{leaf}?format=raw", "HEAD")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(LEAF_BYTES), b"")
        same = await _get(gateway, f"/ipfs/{leaf}?format=raw", if_none_match=f'"{leaf}.raw"')
        assert (same.status_code, same.content) == (304, b"")
        assert (await _get(gateway, f"/octonode/v1/blocks/{root}/have")).content == b"\xff"


async def test_askers_do_not_take_the_threads_of_the_rest_of_the_node(one_file: Any, serve: Any) -> None:
    """Every look-up waits for a disk that hangs; 60 of them are more than the threads that the node has for all."""
    release = threading.Event()
    one_file.have = lambda root: b"\1" if release.wait(60) else None
    target = f"/octonode/v1/blocks/{one_file.dag.root}/have"
    async with serve(one_file) as gateway, trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(_get, gateway, target)
        try:
            while gateway.connections < 60:
                await trio.sleep(0.01)
            await trio.sleep(0.2)
            with trio.fail_after(60):
                assert await trio.to_thread.run_sync(lambda: "done", abandon_on_cancel=True) == "done"
        finally:
            release.set()


async def test_runs_of_leaves_as_car(one_file: Any, serve: Any) -> None:
    root, data = one_file.dag.root, one_file.path.read_bytes()
    async with serve(one_file) as gateway:
        run = await _get(gateway, run_target(root, LEAF_BYTES, 3 * LEAF_BYTES - 1))
        assert int(run.headers["content-length"]) == len(run.content)
        blocks = list(car.read(io.BytesIO(run.content)))
        assert b"".join(block for _, block in blocks) == data[LEAF_BYTES : 3 * LEAF_BYTES]
        assert all(cid.matches(block) for cid, block in blocks)
        whole = await _get(gateway, f"/ipfs/{root}?format=car")
        blocks = list(car.read(io.BytesIO(whole.content)))
        assert blocks[0][0] == root
        assert b"".join(block for _, block in blocks[1:]) == data
        tail = await _get(gateway, f"/ipfs/{root}?format=car&entity-bytes={3 * LEAF_BYTES}:*&nodes=n")
        assert [block for _, block in car.read(io.BytesIO(tail.content))] == [data[-17:]]
        one = await _get(gateway, f"/ipfs/{root}?format=car&dag-scope=block")
        assert [cid for cid, _ in car.read(io.BytesIO(one.content))] == [root]


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/ipfs/notacid?format=raw", 400, "BAD_REQUEST"),
        (f"/ipfs/{raw_cid(b'elsewhere')}?format=raw", 404, "NOT_FOUND"),
        (f"/ipfs/{raw_cid(b'elsewhere')}?format=car", 404, "NOT_FOUND"),
        (f"/ipfs/{raw_cid(b'x')}", 404, "NOT_FOUND"),
        (f"/ipfs/{raw_cid(b'x')}/a//b", 400, "BAD_REQUEST"),
        (f"/ipfs/{raw_cid(b'x')}/a/%2e%2e/b", 400, "BAD_REQUEST"),
        (f"/ipfs/{raw_cid(b'x')}/a%2Fb", 400, "BAD_REQUEST"),
        (f"/ipfs/{raw_cid(b'x')}/%ff", 400, "BAD_REQUEST"),
        (f"/ipfs/{raw_cid(b'x')}" + "/a" * 40, 400, "BAD_REQUEST"),
        (f"/ipfs/{raw_cid(b'x')}?format=tar", 400, "BAD_REQUEST"),
        (f"/ipfs/{raw_cid(b'x')}/etc/passwd?format=raw", 400, "BAD_REQUEST"),
        (f"/ipfs/{raw_cid(b'x')}?format=car&entity-bytes=5:1", 416, "BAD_REQUEST"),
        (f"/ipfs/{raw_cid(b'x')}?format=car&entity-bytes=-5:1", 400, "BAD_REQUEST"),
        (f"/octonode/v1/blocks/{raw_cid(b'x')}/have", 404, "NOT_FOUND"),
        (f"/octonode/v1/blocks/{raw_cid(b'x')}/want", 404, "NOT_FOUND"),
        ("/", 404, "NOT_FOUND"),
        ("/ipfs/" + "a" * 3000, 400, "BAD_REQUEST"),
    ],
)
async def test_bad_requests_get_an_error_in_json(
    one_file: Any, serve: Any, target: str, status: int, code: str
) -> None:
    async with serve(one_file) as gateway:
        answer = await _get(gateway, target)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert answer.json()["error"]["message"]
        behind = await _get(gateway, run_target(one_file.dag.root, 4 * LEAF_BYTES, 5 * LEAF_BYTES))
        assert behind.status_code == 416
        assert (await _get(gateway, "/ipfs/x", "POST")).status_code == 405


@given(st.text(max_size=100) | st.from_regex(r"/ipfs/[a-z0-9]{0,60}\?[a-z:=&0-9*-]{0,60}", fullmatch=True))
def test_any_target_is_a_query_or_a_bad_query(target: str) -> None:
    try:
        query = parse_target(target)
    except BadQuery as bad:
        assert bad.status in (400, 404, 416)  # noqa: PT017
    else:
        assert isinstance(query.cid, Cid)


async def _until(condition: Callable[[], object]) -> None:
    while not condition():  # what is waited for happens in the gateway's own tasks
        await trio.sleep(0.01)


async def _raw(gateway: Gateway, data: bytes) -> tuple[trio.SocketStream, bytes]:
    """Send bytes and read until the gateway closes, or has said what is wrong."""
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.port)
    await stream.send_all(data)
    out = b""
    with trio.fail_after(60):
        while piece := await stream.receive_some():
            out += piece
            if out.endswith(b"}}\n"):
                break
    return stream, out


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"GET /ipfs/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", b"400"),
        (b"GET /ipfs/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000, b"431"),
    ],
)
async def test_junk_is_answered_and_the_connection_closed(
    one_file: Any, serve: Any, request_bytes: bytes, status: bytes
) -> None:
    async with serve(one_file) as gateway:
        stream, out = await _raw(gateway, request_bytes)
        async with stream:
            assert out.split(b" ", 2)[1] == status
            with trio.fail_after(60):
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass  # cut with our bytes unread: closed as well
        assert (await _get(gateway, f"/ipfs/{one_file.dag.root}?format=raw")).status_code == 200


async def test_pipelined_requests_on_one_connection(one_file: Any, serve: Any) -> None:
    request = f"GET /octonode/v1/blocks/{one_file.dag.root}/have HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    async with serve(one_file) as gateway:
        stream, out = await _raw(gateway, request * 3 + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await stream.aclose()
        assert out.count(b"200 OK") == 3
        assert out.count(b"404 Not Found") == 1


async def test_slow_loris_is_cut_and_others_are_served(one_file: Any, serve: Any) -> None:
    limits = GatewayLimits(head_timeout_seconds=1.0, idle_timeout_seconds=1.0)
    async with serve(one_file, limits) as gateway:
        slow = [await trio.open_tcp_stream("127.0.0.1", gateway.port) for _ in range(20)]
        for stream in slow[:10]:
            await stream.send_all(b"GET / HT")
        assert (await _get(gateway, f"/ipfs/{one_file.dag.root}?format=raw")).status_code == 200
        for number, stream in enumerate(slow):
            out = b""
            while piece := await stream.receive_some():
                out += piece
            assert out.startswith(b"HTTP/1.1 408") if number < 10 else out == b""
            await stream.aclose()


async def test_too_many_connections_get_503_and_free_ones_are_used_again(one_file: Any, serve: Any) -> None:
    limits = GatewayLimits(connections_max=4, connections_per_address_max=3)
    async with serve(one_file, limits) as gateway:
        streams = []
        for _ in range(3):
            stream, out = await _raw(gateway, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"404" in out
            streams.append(stream)
        full = await _get(gateway, f"/ipfs/{one_file.dag.root}?format=raw")
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        for stream in streams:
            await stream.aclose()
        await _until(lambda: not gateway.connections)
        assert (await _get(gateway, f"/ipfs/{one_file.dag.root}?format=raw")).status_code == 200


async def test_a_reader_that_stops_reading_is_cut_and_its_file_closed(one_file: Any, serve: Any) -> None:
    limits = GatewayLimits(send_timeout_seconds=0.3)
    path = one_file.path
    path.write_bytes(os.urandom(24 * LEAF_BYTES))
    source = type(one_file)(path)
    async with serve(source, limits) as gateway:
        stream = await trio.open_tcp_stream("127.0.0.1", gateway.port)
        target = run_target(source.dag.root, 0, source.dag.size_bytes - 1)
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await _until(lambda: gateway.connections)
        await _until(lambda: not gateway.connections)
        await stream.aclose()
    held = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and link.exists()]
    assert str(path) not in held


async def test_a_file_that_becomes_shorter_ends_the_connection_not_the_gateway(one_file: Any, serve: Any) -> None:
    async with serve(one_file) as gateway:
        os.truncate(one_file.path, LEAF_BYTES + 5)
        with pytest.raises(httpx.RemoteProtocolError):
            await _get(gateway, run_target(one_file.dag.root, 0, 3 * LEAF_BYTES))
        assert (await _get(gateway, f"/ipfs/{one_file.dag.root}?format=raw")).status_code == 200


async def test_a_source_that_raises_ends_the_connection_not_the_gateway(one_file: Any, serve: Any) -> None:
    async with serve(one_file) as gateway:
        one_file.have = lambda root: 1 / 0
        with pytest.raises(httpx.HTTPError):
            await _get(gateway, f"/octonode/v1/blocks/{one_file.dag.root}/have")
        assert (await _get(gateway, f"/ipfs/{one_file.dag.root}?format=raw")).status_code == 200


async def test_uploads_are_paced_over_all_connections(autojump_clock: Any) -> None:
    pace = Pace(1000)
    started = trio.current_time()

    async def connection() -> None:
        for _ in range(10):
            await pace.take(500)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection)
        nursery.start_soon(connection)
    assert 8.9 <= trio.current_time() - started <= 10.1
    await Pace(0).take(10**12)
    assert trio.current_time() - started <= 10.1


async def test_a_taken_port_says_what_to_do(one_file: Any, serve: Any) -> None:
    async with serve(one_file) as gateway:
        with pytest.raises(ConfigError, match=r"gateway\.listen"):
            await Gateway(f"127.0.0.1:{gateway.port}", one_file).run()
