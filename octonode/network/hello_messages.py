"""What peers ask each other on HELLO_PROTOCOL, as frozen dataclasses and as bytes. Pure. Spec: protocols/hello.md.

One stream is one request and one answer, each a frame that holds a msgpack map. `ask` names the request; `answer` names
the answer, or is `error`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from octonode.errors import TABLE, OctonodeError, RemoteProtocolError, from_wire
from octonode.protocol import codec, fields
from octonode.protocol.limits import DEFAULT_LIMITS, Limits

KIB = 1024
ANNOUNCEMENTS_MAX = 16
DIALBACK_ADDRESSES_MAX = 8
NONCE_BYTES = 16
_CID_BYTES_MAX, _NAME_BYTES_MAX, _TEXT_BYTES_MAX = 128, 128, 512
_UNPACK = Limits(depth_max=4, map_keys_max=16, values_max=256)

Outcome = Literal["reached", "refused", "closed", "silent", "stranger"]
"""Of a dial-back: reached; not tried, since it is not the asker's own address; connection refused; no answer in time;
something answers there that does not speak libp2p."""
OUTCOMES = frozenset({"reached", "refused", "closed", "silent", "stranger"})


@dataclass(frozen=True, slots=True)
class HelloLimits:
    """Bounds of the hello service. The table in protocols/hello.md lists them with these names."""

    request_bytes_max: int = 16 * KIB
    answer_bytes_max: int = 512 * KIB
    manifest_bytes_max: int = 384 * KIB
    announcements_max: int = ANNOUNCEMENTS_MAX
    requests_per_second: float = 20.0
    """One peer, all kinds of request together."""
    requests_burst: int = 60
    handlers_max: int = 64
    """Requests of all peers that are answered at the same time; OVERLOADED beyond."""
    handlers_per_peer_max: int = 32
    """Streams of one peer, those on which it has said nothing yet among them: who is silent takes nobody's place."""
    request_timeout_seconds: float = 5.0
    """From opening the stream to the whole answer; for the answering side, for each frame."""
    dialback_timeout_seconds: float = 4.0
    """One address."""
    dialbacks_per_minute: float = 4.0
    """One peer; burst 2."""
    dialbacks_running_max: int = 4
    """All peers."""


@dataclass(frozen=True, slots=True)
class Announce:
    announcement: bytes
    """The asker's own, signed; of nobody else."""


@dataclass(frozen=True, slots=True)
class FindProviders:
    root: str


@dataclass(frozen=True, slots=True)
class FindPeers:
    count: int = ANNOUNCEMENTS_MAX


@dataclass(frozen=True, slots=True)
class FindManifest:
    """By publisher and name, or by the CID of the manifest."""

    publisher: str = ""
    name: str = ""
    cid: str = ""


@dataclass(frozen=True, slots=True)
class Ping:
    nonce: bytes


@dataclass(frozen=True, slots=True)
class DialBack:
    addresses: tuple[str, ...]
    """`/tcp/<port>` stands for that port at the IP address we are seen at."""


@dataclass(frozen=True, slots=True)
class Announced:
    announcement: bytes
    """The answering peer's own."""
    observed: str = ""
    """The IP address at which the answering peer sees the asker."""


@dataclass(frozen=True, slots=True)
class Announcements:
    announcements: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    manifest: bytes
    """Signed; empty: not here."""


@dataclass(frozen=True, slots=True)
class Pong:
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Dialled:
    address: str
    """As it was asked for."""
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DialledBack:
    observed: str
    results: tuple[Dialled, ...]


Request = Announce | FindProviders | FindPeers | FindManifest | Ping | DialBack
Answer = Announced | Announcements | Manifest | Pong | DialledBack


def encode_request(request: Request) -> bytes:
    return codec.pack(_request_map(request))


def _request_map(request: Request) -> dict[str, Any]:
    match request:
        case Announce(announcement):
            return {"ask": "announce", "announcement": announcement}
        case FindProviders(root):
            return {"ask": "providers", "root": root}
        case FindPeers(count):
            return {"ask": "peers", "count": count}
        case FindManifest(publisher, name, cid):
            return {"ask": "manifest", **({"cid": cid} if cid else {"publisher": publisher, "name": name})}
        case Ping(nonce):
            return {"ask": "ping", "nonce": nonce}
        case DialBack(addresses):
            return {"ask": "dialback", "addresses": list(addresses)}


def decode_request(data: bytes) -> Request:
    """Raises RemoteProtocolError: BAD_MESSAGE, TOO_LARGE, or UNSUPPORTED for a request that is not known here."""
    value = fields.as_map(codec.unpack(data, _UNPACK), "a request")
    ask = fields.text(value, "ask", bytes_max=64)
    reader = _REQUESTS.get(ask)
    if reader is None:
        raise RemoteProtocolError(f"requests of kind {ask!r} are not known here", code="UNSUPPORTED")
    return reader(value)


def _read_find_manifest(value: dict[str, Any]) -> FindManifest:
    cid = fields.text(value, "cid", "", bytes_max=_CID_BYTES_MAX)
    if cid:
        return FindManifest(cid=cid)
    return FindManifest(fields.peer_id(value, "publisher"), fields.text(value, "name", bytes_max=_NAME_BYTES_MAX))


_REQUESTS: dict[str, Callable[[dict[str, Any]], Request]] = {
    "announce": lambda v: Announce(fields.raw(v, "announcement", bytes_max=DEFAULT_LIMITS.announcement_bytes_max)),
    "providers": lambda v: FindProviders(fields.text(v, "root", bytes_max=_CID_BYTES_MAX)),
    "peers": lambda v: FindPeers(fields.natural(v, "count", ANNOUNCEMENTS_MAX, most=ANNOUNCEMENTS_MAX)),
    "manifest": _read_find_manifest,
    "ping": lambda v: Ping(fields.exact_bytes(v, "nonce", NONCE_BYTES)),
    "dialback": lambda v: DialBack(fields.texts(v, "addresses", most=DIALBACK_ADDRESSES_MAX, bytes_max=256)),
}


def encode_answer(answer: Answer) -> bytes:
    return codec.pack(_answer_map(answer))


def _answer_map(answer: Answer) -> dict[str, Any]:
    match answer:
        case Announced(announcement, observed):
            return {"answer": "announced", "announcement": announcement, "observed": observed}
        case Announcements(announcements):
            return {"answer": "announcements", "announcements": list(announcements)}
        case Manifest(manifest):
            return {"answer": "manifest", "manifest": manifest}
        case Pong(nonce):
            return {"answer": "pong", "nonce": nonce}
        case DialledBack(observed, results):
            rows = [{"address": r.address, "outcome": r.outcome, "detail": r.detail} for r in results]
            return {"answer": "dialled", "observed": observed, "results": rows}


def encode_error(error: OctonodeError) -> bytes:
    """An error as answer: code, message and, where it is known, when to come back."""
    value: dict[str, Any] = {"answer": "error", "code": error.code, "message": error.message[:_TEXT_BYTES_MAX]}
    if error.retry_after_seconds is not None:
        value["retry_after_ms"] = int(error.retry_after_seconds * 1000)
    return codec.pack(value)


def decode_answer(data: bytes) -> Answer:
    """Raises RemoteProtocolError for what is no answer, and the peer's own error, made by `errors.from_wire`."""
    value = fields.as_map(codec.unpack(data, _UNPACK), "an answer")
    kind = fields.text(value, "answer", bytes_max=64)
    if kind == "error":
        raise _read_error(value)
    reader = _ANSWERS.get(kind)
    if reader is None:
        raise RemoteProtocolError(f"answers of kind {kind!r} are not known here", code="UNSUPPORTED")
    return reader(value)


def _read_error(value: dict[str, Any]) -> OctonodeError:
    code = fields.text(value, "code", bytes_max=64)
    message = fields.text(value, "message", "", bytes_max=4 * _TEXT_BYTES_MAX)
    retry_after_ms = fields.natural(value, "retry_after_ms", 0, most=3_600_000)
    error = from_wire(code, f"the peer says: {message}", retry_after_ms / 1000 if retry_after_ms else None)
    assert error.code in TABLE
    return error


def _read_announcements(value: dict[str, Any]) -> Announcements:
    found = fields.items(value, "announcements", most=ANNOUNCEMENTS_MAX)
    if not all(type(i) is bytes and len(i) <= DEFAULT_LIMITS.announcement_bytes_max for i in found):
        raise RemoteProtocolError("field announcements must hold signed announcements")
    return Announcements(tuple(found))


def _read_dialled(value: dict[str, Any]) -> DialledBack:
    results = []
    for item in fields.items(value, "results", most=DIALBACK_ADDRESSES_MAX):
        row = fields.as_map(item, "a result")
        results.append(
            Dialled(
                fields.text(row, "address", bytes_max=256),
                fields.choice(row, "outcome", OUTCOMES),
                fields.text(row, "detail", "", bytes_max=_TEXT_BYTES_MAX),
            )
        )
    return DialledBack(fields.text(value, "observed", "", bytes_max=64), tuple(results))


_ANSWERS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "announced": lambda v: Announced(
        fields.raw(v, "announcement", bytes_max=DEFAULT_LIMITS.announcement_bytes_max),
        fields.text(v, "observed", "", bytes_max=64),
    ),
    "announcements": _read_announcements,
    "manifest": lambda v: Manifest(fields.raw(v, "manifest", bytes_max=HelloLimits().manifest_bytes_max)),
    "pong": lambda v: Pong(fields.exact_bytes(v, "nonce", NONCE_BYTES)),
    "dialled": _read_dialled,
}
