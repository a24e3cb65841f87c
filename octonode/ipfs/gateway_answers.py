"""What a gateway's answers say to caches: validators, ranges, headers; protocols/gateway.md is the page. Sans-IO.

Sources: RFC 9110 (sections 8.8, 13 and 14), RFC 9111, https://specs.ipfs.tech/http-gateways/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway_query import CAR_TYPE, FILE_TYPE, IPFS_PREFIX, RAW_TYPE, BadQuery, GatewayQuery

Headers = list[tuple[str, str]]

IMMUTABLE: Final = "public, max-age=29030400, immutable"
TAGS_MAX: Final = 64
"""Tags of one If-None-Match that are looked at; those behind are as if they were not there."""
_TAG: Final = re.compile(r'\s*(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')
_RANGE: Final = re.compile(r"(\d{0,19})-(\d{0,19})")
_TYPES: Final = {"raw": RAW_TYPE, "car": f"{CAR_TYPE}; version=1; order=dfs; dups=y", "file": FILE_TYPE}

REASONS: Final = {
    200: "OK",
    206: "Partial Content",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    416: "Range Not Satisfiable",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}
CODES: Final = {
    404: "NOT_FOUND",
    406: "UNSUPPORTED",
    408: "DEADLINE",
    431: "TOO_LARGE",
    500: "INTERNAL",
    501: "UNSUPPORTED",
    503: "OVERLOADED",
}
"""Everything else is BAD_REQUEST."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The conditions of one request, as its headers say them."""

    head_only: bool = False
    if_none_match: str = ""
    if_range: str = ""
    range: str = ""

    def names(self, etag: str) -> bool:
        """Whether If-None-Match lists `etag`, compared weakly: a cache that compresses marks it as weak."""
        position = 0
        for _ in range(TAGS_MAX):
            found = _TAG.match(self.if_none_match, position)
            if found is None:
                return False
            if found[1] == etag:
                return True
            position = found.end()
        return False

    def has(self, etag: str) -> bool:
        """Whether the asker has the answer already; `*` stands for whatever there is."""
        return self.if_none_match.strip() == "*" or self.names(etag)

    def part(self, etag: str, size_bytes: int) -> tuple[int, int] | None:
        """(first byte, bytes) of the one range asked for; None: the whole. Raises BadQuery (416).

        The whole is the answer to several ranges, to one that is no range, to any of nothing, to HEAD, and where
        If-Range names another version: by its ETag, since content by CID has no date.
        """
        another = self.if_range and self.if_range.strip() != etag
        if self.head_only or not self.range or another or size_bytes == 0:
            return None
        unit, _, text = self.range.partition("=")
        found = _RANGE.fullmatch(text.strip())
        if unit.strip().lower() != "bytes" or found is None or found[0] == "-":
            return None
        first, last = _ends(found[1], found[2], size_bytes)
        if found[1] and found[2] and int(found[2]) < int(found[1]):
            return None
        if first > last:
            headers = (("Content-Range", f"bytes */{size_bytes}"),)
            raise BadQuery(416, f"the range lies outside the {size_bytes} bytes of the answer", headers)
        return first, last - first + 1


def _ends(first: str, last: str, size_bytes: int) -> tuple[int, int]:
    """First and last byte of a range as written; the first behind the last where it holds nothing."""
    if not first:
        length = min(int(last), size_bytes)
        return size_bytes - length, size_bytes - 1
    return int(first), min(int(last), size_bytes - 1) if last else size_bytes - 1


def etag_of(query: GatewayQuery, file: Cid | None = None) -> str:
    """The strong validator of what `query` is answered with: one for each representation, as the same bytes always."""
    if query.kind == "file":
        return f'"{file or query.cid}"'
    if query.kind == "raw":
        return f'"{query.cid}.raw"'
    if query.whole_block:
        return f'"{query.cid}.block.car"'
    last = "*" if query.last_byte is None else query.last_byte
    return f'"{query.cid}.{query.first_byte}-{last}{"" if query.nodes else ".n"}.car"'


def named_by_cid(query: GatewayQuery) -> bool:
    """Whether the ETag follows from the request alone, so that nothing need be looked up to say: you have it."""
    return query.kind in ("raw", "car") or (query.kind == "file" and not query.path)


def content_headers(query: GatewayQuery, etag: str, roots: Sequence[Cid] = ()) -> Headers:
    """What an answer says of its content, without its length. `roots`: of each step of the path, the last its own."""
    if query.kind == "have":
        return [("Content-Type", "application/octet-stream"), ("Cache-Control", "no-store")]
    path = quote("/".join((str(query.cid), *query.path)), safe="/")
    headers = [
        ("Content-Type", _TYPES[query.kind]),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", IMMUTABLE),
        ("ETag", etag),
        ("Accept-Ranges", "bytes"),
        ("X-Ipfs-Path", f"{IPFS_PREFIX}{path}"),
        ("X-Ipfs-Roots", ",".join(map(str, roots or (query.cid,)))),
    ]
    if query.negotiated:
        headers.append(("Vary", "Accept"))
    return headers


def head(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}", "Server: octonode"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def error(
    status: int,
    message: str,
    *,
    close: bool = False,
    head_only: bool = False,
    more: Sequence[tuple[str, str]] = (),
) -> bytes:
    """A whole response that no cache keeps: what is missing now may be here in a moment."""
    said = {"error": {"code": CODES.get(status, "BAD_REQUEST"), "message": message}}
    body = json.dumps(said).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    headers += more
    if status == 503:
        headers.append(("Retry-After", "1"))
    if close:
        headers.append(("Connection", "close"))
    return head(status, headers) + (b"" if head_only else body)
