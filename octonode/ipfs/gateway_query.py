"""What a request to the block gateway asks for; protocols/gateway.md is the page. Sans-IO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from octonode.ipfs.cid import Cid, CidError

BLOCKS_PREFIX: Final = "/octonode/v1/blocks/"
IPFS_PREFIX: Final = "/ipfs/"
RAW_TYPE: Final = "application/vnd.ipld.raw"
CAR_TYPE: Final = "application/vnd.ipld.car"
FILE_TYPE: Final = "application/octet-stream"
TARGET_CHARACTERS_MAX: Final = 2048
PATH_STEPS_MAX: Final = 32
_PARAMETERS_MAX: Final = 16
_ACCEPTS_MAX: Final = 32
"""Types of one Accept that are looked at."""


@dataclass(frozen=True, slots=True)
class GatewayQuery:
    kind: Literal["raw", "car", "file", "have"]
    cid: Cid
    path: tuple[str, ...] = ()
    """Names below the root, of a file alone."""
    negotiated: bool = False
    """The kind was chosen by Accept: a cache must keep the others apart."""
    first_byte: int = 0
    last_byte: int | None = None
    """Inclusive, as in IPIP-402; None: to the end."""
    whole_block: bool = False
    """A CAR of the one block that the CID names (dag-scope=block)."""
    nodes: bool = True
    """False: leaves alone, for an asker that has the nodes (our own parameter, nodes=n)."""


class BadQuery(ValueError):
    """A request this gateway does not answer; `status` and the text go back to the asker."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


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
        raise BadQuery(404, f"this is a block gateway: ask for {IPFS_PREFIX}{{cid}}, with ?format=raw or format=car")
    text, slash, below = parts.path.removeprefix(IPFS_PREFIX).partition("/")
    return _content_query(_cid(text), _path(below) if slash else (), parameters, accept)


def _path(text: str) -> tuple[str, ...]:
    """The names in a path below a root; an empty last one stands for a directory."""
    try:
        steps = tuple(unquote(step, errors="strict") for step in text.split("/"))
    except UnicodeDecodeError:
        raise BadQuery(400, "the path is not UTF-8") from None
    if len(steps) > PATH_STEPS_MAX:
        raise BadQuery(400, f"a path has at most {PATH_STEPS_MAX} steps")
    named = (*steps[:-1], steps[-1] or "-")
    if any(step in ("", ".", "..") or "/" in step or not step.isprintable() for step in named):
        raise BadQuery(400, "a path is made of file names")
    return steps


def _cid(text: str) -> Cid:
    try:
        return Cid.parse(text)
    except CidError as error:
        raise BadQuery(400, error.message) from None


def _content_query(cid: Cid, path: tuple[str, ...], parameters: dict[str, str], accept: str) -> GatewayQuery:
    wanted, negotiated = parameters.get("format", ""), "format" not in parameters
    if not wanted:
        wanted, negotiated = _accepted(accept), True
    if wanted == "file":
        return GatewayQuery("file", cid, path, negotiated)
    if wanted not in ("raw", "car"):
        raise BadQuery(400, "say format=raw, format=car, or none for the bytes of a file")
    if path:
        raise BadQuery(400, "below a path there are only files here; ask for a block by its own CID")
    if wanted == "raw":
        return GatewayQuery("raw", cid, (), negotiated)
    return _car_query(cid, parameters, negotiated)


def _car_query(cid: Cid, parameters: dict[str, str], negotiated: bool) -> GatewayQuery:
    scope = parameters.get("dag-scope", "all")
    if scope == "block":
        return GatewayQuery("car", cid, (), negotiated, whole_block=True)
    if scope not in ("all", "entity"):
        raise BadQuery(400, "dag-scope is one of block, entity, all")
    first, last = 0, None
    if "entity-bytes" in parameters:
        first, last = _entity_bytes(parameters["entity-bytes"])
    return GatewayQuery("car", cid, (), negotiated, first, last, nodes=parameters.get("nodes", "y") != "n")


def _accepted(accept: str) -> str:
    """`raw`, `car` or `file`: what an Accept header likes best. Raises BadQuery (406) when it takes none of them."""
    liked: list[tuple[float, str]] = []
    for item in accept.split(",")[:_ACCEPTS_MAX]:
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if name:
            liked.append((_quality(parameters), name))
    for quality, name in sorted(liked, key=lambda each: -each[0]):
        if quality > 0:
            found = _KINDS.get(name, "" if name.startswith("application/vnd.ipld.") else "file")
            if found:
                return found
    if liked:
        raise BadQuery(406, f"there are {RAW_TYPE}, {CAR_TYPE} and {FILE_TYPE} here")
    return "file"


_KINDS: Final = {RAW_TYPE: "raw", CAR_TYPE: "car"}


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


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
