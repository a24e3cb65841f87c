"""What a request to the block gateway asks for; protocols/gateway.md is the page. Sans-IO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, urlsplit

from octonode.ipfs.cid import Cid, CidError

BLOCKS_PREFIX: Final = "/octonode/v1/blocks/"
IPFS_PREFIX: Final = "/ipfs/"
RAW_TYPE: Final = "application/vnd.ipld.raw"
CAR_TYPE: Final = "application/vnd.ipld.car"
TARGET_CHARACTERS_MAX: Final = 2048
_PARAMETERS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class GatewayQuery:
    kind: Literal["raw", "car", "have"]
    cid: Cid
    first_byte: int = 0
    last_byte: int | None = None
    """Inclusive, as in IPIP-402; None: to the end."""
    whole_block: bool = False
    """A CAR of the one block that the CID names (dag-scope=block)."""
    nodes: bool = True
    """False: leaves alone, for an asker that has the nodes (our own parameter, nodes=n)."""


class BadQuery(ValueError):
    """A request this gateway does not answer; `status` and the text go back to the asker."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def parse_target(target: str, accept: str = "") -> GatewayQuery:
    """What the request target asks for. Raises BadQuery with the HTTP status to answer."""
    if len(target) > TARGET_CHARACTERS_MAX:
        raise BadQuery(400, f"a request target has at most {TARGET_CHARACTERS_MAX} characters")
    try:
        parts = urlsplit(target)
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=_PARAMETERS_MAX)
    except ValueError:
        raise BadQuery(400, "the request target is malformed") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise BadQuery(400, "a query parameter is given twice")
    if parts.path.startswith(BLOCKS_PREFIX):
        root, slash, leaf = parts.path.removeprefix(BLOCKS_PREFIX).partition("/")
        if not slash or leaf != "have":
            raise BadQuery(404, f"there is only {BLOCKS_PREFIX}{{root}}/have")
        return GatewayQuery("have", _cid(root))
    if not parts.path.startswith(IPFS_PREFIX):
        raise BadQuery(404, f"this is a block gateway: ask for {IPFS_PREFIX}{{cid}}?format=raw or format=car")
    text = parts.path.removeprefix(IPFS_PREFIX)
    if "/" in text:
        raise BadQuery(400, "paths below a CID are not resolved here; ask for each block or file by its own CID")
    return _block_query(_cid(text), parameters, accept)


def _cid(text: str) -> Cid:
    try:
        return Cid.parse(text)
    except CidError as error:
        raise BadQuery(400, error.message) from None


def _block_query(cid: Cid, parameters: dict[str, str], accept: str) -> GatewayQuery:
    wanted = parameters.get("format") or {RAW_TYPE: "raw", CAR_TYPE: "car"}.get(accept.partition(";")[0].strip(), "")
    if wanted == "raw":
        return GatewayQuery("raw", cid)
    if wanted != "car":
        raise BadQuery(400, "say format=raw or format=car; this gateway serves blocks, not web pages")
    scope = parameters.get("dag-scope", "all")
    if scope == "block":
        return GatewayQuery("car", cid, whole_block=True)
    if scope not in ("all", "entity"):
        raise BadQuery(400, "dag-scope is one of block, entity, all")
    first, last = 0, None
    if "entity-bytes" in parameters:
        first, last = _entity_bytes(parameters["entity-bytes"])
    return GatewayQuery("car", cid, first, last, nodes=parameters.get("nodes", "y") != "n")


def _entity_bytes(text: str) -> tuple[int, int | None]:
    first, colon, last = text.partition(":")
    digits = (
        len(text) <= 40 and first.isascii() and first.isdigit() and last.isascii() and (last.isdigit() or last == "*")
    )
    if not colon or not digits:
        raise BadQuery(400, "entity-bytes is FROM:TO or FROM:*, in bytes of the file, TO included")
    start, end = int(first), None if last == "*" else int(last)
    if end is not None and end < start:
        raise BadQuery(416, "entity-bytes ends before it begins")
    return start, end


def run_target(root: Cid, first_byte: int, last_byte: int) -> str:
    """The target that asks for the leaves of `root` from `first_byte` to `last_byte`, both included, without nodes."""
    return f"{IPFS_PREFIX}{root}?format=car&dag-scope=entity&entity-bytes={first_byte}:{last_byte}&nodes=n"


def block_target(cid: Cid) -> str:
    return f"{IPFS_PREFIX}{cid}?format=raw"


def have_target(root: Cid) -> str:
    return f"{BLOCKS_PREFIX}{root}/have"
