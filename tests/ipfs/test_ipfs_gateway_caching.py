"""The gateway as an origin of caches: validators, conditions, ranges, and what no cache may keep."""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.ipfs.blocks import Body, FileRange
from octonode.ipfs.cid import raw_cid
from octonode.ipfs.gateway import Gateway
from octonode.ipfs.gateway_answers import TAGS_MAX, Asked, etag_of
from octonode.ipfs.gateway_query import CAR_TYPE, FILE_TYPE, RAW_TYPE, BadQuery, parse_target, run_target
from octonode.ipfs.unixfs import LEAF_BYTES

IMMUTABLE = "public, max-age=29030400, immutable"


async def _ask(gateway: Gateway, target: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"http://127.0.0.1:{gateway.port}{target}"
        return await client.request(method, url, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_a_file_by_its_root(one_file: Any, serve: Any) -> None:
    root, data = one_file.dag.root, one_file.path.read_bytes()
    async with serve(one_file) as gateway:
        answer = await _ask(gateway, f"/ipfs/{root}")
        assert answer.content == data
        told = {name: answer.headers[name] for name in answer.headers if name not in ("date", "server")}
        assert told == {
            "content-type": "application/octet-stream",
            "x-content-type-options": "nosniff",
            "cache-control": IMMUTABLE,
            "etag": f'"{root}"',
            "accept-ranges": "bytes",
            "x-ipfs-path": f"/ipfs/{root}",
            "x-ipfs-roots": str(root),
            "vary": "Accept",
            "content-length": str(len(data)),
        }
        assert answer.headers["date"].endswith(" GMT")
        head = await _ask(gateway, f"/ipfs/{root}", "HEAD")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(data))
        assert "last-modified" not in answer.headers


async def test_every_representation_has_a_validator_of_its_own(one_file: Any, serve: Any) -> None:
    root = one_file.dag.root
    targets = [
        f"/ipfs/{root}",
        f"/ipfs/{root}?format=raw",
        f"/ipfs/{root}?format=car",
        f"/ipfs/{root}?format=car&dag-scope=block",
        run_target(root, 0, LEAF_BYTES - 1),
    ]
    async with serve(one_file) as gateway:
        tags = {}
        for target in targets:
            for method in ("GET", "HEAD"):
                answer = await _ask(gateway, target, method)
                assert answer.status_code == 200
                assert answer.headers["cache-control"] == IMMUTABLE
                assert tags.setdefault(target, answer.headers["etag"]) == answer.headers["etag"]
            for said in (tags[target], f'"x", W/{tags[target]}', "*"):
                same = await _ask(gateway, target, if_none_match=said)
                assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tags[target])
                assert same.headers["cache-control"] == IMMUTABLE
            assert (await _ask(gateway, target, if_none_match=tags[target][:-2] + '"')).status_code == 200
        assert len(set(tags.values())) == len(targets)


async def test_what_accept_decides_varies_and_what_the_target_says_does_not(one_file: Any, serve: Any) -> None:
    root = one_file.dag.root
    async with serve(one_file) as gateway:
        liked = {RAW_TYPE: RAW_TYPE, f"text/html;q=0.5, {CAR_TYPE};version=1": CAR_TYPE, "*/*": FILE_TYPE}
        for accept, kind in liked.items():
            answer = await _ask(gateway, f"/ipfs/{root}", accept=accept)
            assert answer.headers["vary"] == "Accept"
            assert answer.headers["content-type"].partition(";")[0] == kind
        answer = await _ask(gateway, f"/ipfs/{root}?format=raw", accept=CAR_TYPE)
        assert answer.headers["content-type"] == RAW_TYPE
        assert "vary" not in answer.headers
        refused = await _ask(gateway, f"/ipfs/{root}", accept="application/vnd.ipld.dag-json")
        assert (refused.status_code, refused.json()["error"]["code"]) == (406, "UNSUPPORTED")


@pytest.mark.parametrize(
    ("said", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("bytes= 5-9", 5, 9),
        (f"bytes={LEAF_BYTES - 3}-{LEAF_BYTES + 2}", LEAF_BYTES - 3, LEAF_BYTES + 2),
        (f"bytes={3 * LEAF_BYTES}-", 3 * LEAF_BYTES, 3 * LEAF_BYTES + 16),
        ("bytes=-1", 3 * LEAF_BYTES + 16, 3 * LEAF_BYTES + 16),
        ("bytes=-99999999999", 0, 3 * LEAF_BYTES + 16),
        ("bytes=7-99999999999", 7, 3 * LEAF_BYTES + 16),
    ],
)
async def test_one_range(one_file: Any, serve: Any, said: str, first: int, last: int) -> None:
    root, data = one_file.dag.root, one_file.path.read_bytes()
    async with serve(one_file) as gateway:
        part = await _ask(gateway, f"/ipfs/{root}", range=said)
        assert part.status_code == 206
        assert part.content == data[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"
        assert part.headers["content-length"] == str(last - first + 1)
        assert part.headers["cache-control"] == IMMUTABLE
        whole = await _ask(gateway, f"/ipfs/{root}", "HEAD", range=said)  # a range is a matter of GET
        assert (whole.status_code, whole.headers["content-length"]) == (200, str(len(data)))


@pytest.mark.parametrize(
    "said", ["bytes=0-1,3-4", "lines=1-2", "bytes=9-5", "bytes=-", "bytes=a-b", "bytes", f"bytes={'1' * 30}-"]
)
async def test_several_ranges_and_what_is_no_range_get_the_whole(one_file: Any, serve: Any, said: str) -> None:
    async with serve(one_file) as gateway:
        answer = await _ask(gateway, f"/ipfs/{one_file.dag.root}", range=said)
        assert (answer.status_code, len(answer.content)) == (200, one_file.dag.size_bytes)


async def test_a_range_behind_the_end_is_not_kept(one_file: Any, serve: Any) -> None:
    async with serve(one_file) as gateway:
        size = one_file.dag.size_bytes
        for said in (f"bytes={size}-", "bytes=-0", f"bytes={size + 5}-{size + 9}"):
            answer = await _ask(gateway, f"/ipfs/{one_file.dag.root}", range=said)
            assert answer.status_code == 416
            assert answer.headers["content-range"] == f"bytes */{size}"
            assert answer.headers["cache-control"] == "no-store"
        assert one_file.opened == 0


async def test_blocks_and_cars_have_ranges_too(one_file: Any, serve: Any) -> None:
    root = one_file.dag.root
    async with serve(one_file) as gateway:
        for target in (f"/ipfs/{root}?format=raw", f"/ipfs/{root}?format=car", run_target(root, 0, 2 * LEAF_BYTES)):
            whole = (await _ask(gateway, target)).content
            for first, last in ((0, 0), (3, 80), (len(whole) - 30, len(whole) - 1)):
                part = await _ask(gateway, target, range=f"bytes={first}-{last}")
                assert (part.status_code, part.content) == (206, whole[first : last + 1])
                assert part.headers["content-range"] == f"bytes {first}-{last}/{len(whole)}"
            assert (await _ask(gateway, target, range=f"bytes={len(whole)}-")).status_code == 416


async def test_if_range_names_the_version_that_the_range_is_of(one_file: Any, serve: Any) -> None:
    root = one_file.dag.root
    async with serve(one_file) as gateway:
        same = await _ask(gateway, f"/ipfs/{root}", range="bytes=0-9", if_range=f'"{root}"')
        assert (same.status_code, len(same.content)) == (206, 10)
        for other in (f'W/"{root}"', '"another"', "Fri, 27 Nov 2026 10:00:00 GMT"):
            whole = await _ask(gateway, f"/ipfs/{root}", range="bytes=0-9", if_range=other)
            assert (whole.status_code, len(whole.content)) == (200, one_file.dag.size_bytes)


async def test_no_cache_keeps_the_bitmap_or_an_error(one_file: Any, serve: Any) -> None:
    root, missing = one_file.dag.root, raw_cid(b"elsewhere")
    async with serve(one_file) as gateway:
        have = await _ask(gateway, f"/octonode/v1/blocks/{root}/have", if_none_match="*", range="bytes=0-0")
        assert (have.status_code, have.headers["cache-control"], have.content) == (200, "no-store", b"\xff")
        assert "etag" not in have.headers
        for target in (f"/ipfs/{missing}", f"/ipfs/{missing}?format=raw", "/", f"/ipfs/{root}?format=tar"):
            for said in ({}, {"if_none_match": "*"}):
                answer = await _ask(gateway, target, **said)
                assert answer.status_code in (400, 404)
                assert answer.headers["cache-control"] == "no-store"
        posted = await _ask(gateway, f"/ipfs/{root}", "POST")
        assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD")


async def test_a_file_that_is_touched_under_an_answer_is_not_kept_whole(one_file: Any, serve: Any) -> None:
    """The bytes that a cache would keep for ever must be those that were verified: the end is held back until then."""
    async with serve(one_file) as gateway:
        one_file.touched = True
        for said in ({}, {"range": "bytes=5-9"}):
            with pytest.raises(httpx.RemoteProtocolError):
                await _ask(gateway, f"/ipfs/{one_file.dag.root}", **said)
        one_file.touched = False
        assert (await _ask(gateway, f"/ipfs/{one_file.dag.root}")).status_code == 200


def test_tags_are_compared_whole_and_in_bounds() -> None:
    assert Asked(if_none_match='"a,b" , W/"c"').names('"a,b"')
    assert Asked(if_none_match='"a,b" , W/"c"').names('"c"')
    assert not Asked(if_none_match='"abc"').names('"ab"')
    assert not Asked(if_none_match='x"ab"').names('"ab"')
    assert not Asked(if_none_match="*").names('"ab"')
    assert Asked(if_none_match=" * ").has('"ab"')
    many = ", ".join(f'"{number}"' for number in range(TAGS_MAX + 1))
    assert Asked(if_none_match=many).names(f'"{TAGS_MAX - 1}"')
    assert not Asked(if_none_match=many).names(f'"{TAGS_MAX}"')


@given(st.text(max_size=80), st.text(max_size=80), st.integers(0, 2**62))
def test_any_range_is_a_part_the_whole_or_416(said: str, if_range: str, size_bytes: int) -> None:
    try:
        part = Asked(range=said, if_range=if_range).part('"tag"', size_bytes)
    except BadQuery as bad:
        assert bad.status == 416  # noqa: PT017
    else:
        assert part is None or (part[0] >= 0 and part[1] > 0 and sum(part) <= size_bytes)


@given(st.integers(0, 2**40), st.none() | st.integers(0, 2**40), st.integers(0, 2**40))
def test_well_formed_ranges(first: int, last: int | None, size_bytes: int) -> None:
    asked = Asked(range=f"bytes={first}-{'' if last is None else last}")
    end = size_bytes - 1 if last is None else min(last, size_bytes - 1)
    if size_bytes == 0 or (last is not None and last < first):
        assert asked.part('"tag"', size_bytes) is None
    elif first >= size_bytes:
        with pytest.raises(BadQuery):
            asked.part('"tag"', size_bytes)
    else:
        assert asked.part('"tag"', size_bytes) == (first, end - first + 1)


@given(st.text(max_size=100))
def test_any_tags_and_any_accept_are_read(text: str) -> None:
    assert Asked(if_none_match=text).names('"x"') in (True, False)
    try:
        query = parse_target(f"/ipfs/{raw_cid(b'x')}", text)
    except BadQuery as bad:
        assert bad.status == 406  # noqa: PT017
    else:
        assert query.negotiated
        assert etag_of(query).startswith('"')


@given(st.lists(st.binary(max_size=9), max_size=9), st.data())
def test_a_body_is_narrowed_to_any_part(pieces: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(pieces)
    first = data.draw(st.integers(0, len(whole)))
    size = data.draw(st.integers(0, len(whole) - first))
    fd = os.memfd_create("pieces")
    os.write(fd, whole)
    parts: list[bytes | FileRange] = []
    position = 0
    for number, piece in enumerate(pieces):
        parts.append(FileRange(fd, position, len(piece)) if number % 2 else piece)
        position += len(piece)
    body = Body(parts, (fd,))
    body.narrow(first, size)
    assert body.size_bytes == size
    assert body.read() == whole[first : first + size]
    body.close()
