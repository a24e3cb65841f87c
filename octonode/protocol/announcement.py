"""What a node says of itself to its peers, signed and short-lived. Spec: protocols/announcement.md."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.identity import Signer
from octonode.ids import ANNOUNCEMENT_DOMAIN, PeerId
from octonode.protocol import fields, signed
from octonode.protocol.limits import DEFAULT_LIMITS, Limits

STATES = frozenset({"active", "leaving"})
ACCESS = frozenset({"token", "peers", "open"})
TIERS = frozenset({"edge", "consumer", "prosumer", "enterprise"})
PRICE_BASES = frozenset({"tokens", "seconds", "tokens_per_second"})
ADDRESSES_MAX, ENGINES_MAX, MODELS_MAX, HARDWARE_KEYS_MAX, MODES_MAX, SKILLS_MAX = 16, 16, 64, 24, 8, 16
_CID_BYTES_MAX, _NAME_BYTES_MAX, _SHORT_BYTES_MAX = 128, 200, 64
_SIGNATURE_OVERHEAD_BYTES = 192
"""What `{announcement, signature, signer}` adds to the announcement's own bytes, rounded up."""

HardwareValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Serving:
    """A model that takes tasks here, with figures measured on this node."""

    root: str
    manifest: str = ""
    """CID of the signed manifest, or empty."""
    name: str = ""
    """`<publisher peer id>/<name>`, or empty."""
    version: str = ""
    context_tokens: int = 0
    parallel: int = 1
    """Requests decoded at the same time."""
    running: int = 0
    tokens_per_second: float = 0.0
    first_token_ms: int = 0
    quantization: str = ""
    skills: tuple[str, ...] = ("chat",)
    """What it can be asked for."""
    first_token_long_ms: int = 0
    """Of a prompt of `long_tokens` tokens; `first_token_ms` is of a short one."""
    long_tokens: int = 0
    tokens_per_second_together: float = 0.0
    """Of all streams it takes at once."""
    results_per_second: float = 0.0
    """Of a skill other than chat: small requests, as many together as it takes at once."""
    loads_in_ms: int = 0
    """0: it is loaded. Else it is whole there, and is loaded once it is asked for, which took this long last time."""
    price_basis: str = "tokens"
    """`tokens`: the prices are µOCTO per million tokens; `seconds`, `tokens_per_second`: per second."""
    price_in_micro_octo: int = 0
    price_out_micro_octo: int = 0
    modes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Modes it offers beside the plain one, each with its own (in, out) price. Others may come."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A model whose blocks are handed on."""

    root: str
    manifest: str = ""
    name: str = ""
    version: str = ""
    complete: bool = True


@dataclass(frozen=True, slots=True)
class StorageRoom:
    """Bytes for models that others pin here; `used` of them are."""

    total_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Announcement:
    peer_id: PeerId
    sequence: int
    """Rises with every announcement of a peer, over restarts too; the highest one stands."""
    issued_at_ms: int
    expires_at_ms: int
    state: Literal["active", "leaving"] = "active"
    addresses: tuple[str, ...] = ()
    """Multiaddrs it may be dialled at."""
    gateway_port: int = 0
    """Port of the block gateway; its host is the address of the authenticated connection. 0: none."""
    tier: str = "edge"
    hardware: dict[str, HardwareValue] = field(default_factory=dict)
    engines: tuple[str, ...] = ()
    serving: tuple[Serving, ...] = ()
    holding: tuple[Holding, ...] = ()
    access: str = "token"
    region: str = ""
    agent_version: str = ""
    role: str = "full"
    """`storage`: keeps models and runs none. Others may come; who does not know one takes it for `full`."""
    storage: StorageRoom | None = None
    """Set where listed peers may pin models here."""
    trimmed: bool = False
    """True when entries of `serving` or `holding` were left out to stay under the size."""


def sign_announcement(signer: Signer, announcement: Announcement, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """dag-cbor `{announcement: bytes, signature, signer}`. `signer` must be `announcement.peer_id`.

    Raises LocalProtocolError: TOO_LARGE above `limits.announcement_bytes_max` (use `fit` first), BAD_REQUEST for a
    field that others would refuse.
    """
    assert announcement.peer_id == signer.peer_id, "a node announces itself alone"
    value = _as_map(announcement)
    data = signed.seal_document("announcement", ANNOUNCEMENT_DOMAIN, signer, value)
    if len(data) > limits.announcement_bytes_max:
        message = f"an announcement of {len(data)} bytes is over {limits.announcement_bytes_max}; fit it first"
        raise LocalProtocolError(message, code="TOO_LARGE")
    try:
        _read(value)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"announcement: {error.message}", code="BAD_REQUEST") from None
    return data


def fit(announcement: Announcement, limits: Limits = DEFAULT_LIMITS) -> Announcement:
    """`announcement` with the last entries of `holding`, then of `serving`, left out until it can be signed.

    Nothing is lost to the network by it: provider records name every model, and hello answers for each.
    """
    room = limits.announcement_bytes_max - _SIGNATURE_OVERHEAD_BYTES
    kept = replace(
        announcement,
        serving=announcement.serving[:MODELS_MAX],
        holding=announcement.holding[:MODELS_MAX],
    )
    while len(signed.encode_dag_cbor(_as_map(kept))) > room and (kept.holding or kept.serving):
        if kept.holding:
            kept = replace(kept, holding=kept.holding[:-1], trimmed=True)
        else:
            kept = replace(kept, serving=kept.serving[:-1], trimmed=True)
    if len(kept.serving) + len(kept.holding) < len(announcement.serving) + len(announcement.holding):
        kept = replace(kept, trimmed=True)
    return kept


def open_announcement(data: bytes, now_ms: int, limits: Limits = DEFAULT_LIMITS) -> Announcement:
    """The announcement in `data`: signed by the peer it names, and fresh at `now_ms`.

    Raises RemoteProtocolError: TOO_LARGE, BAD_MESSAGE, BAD_SIGNATURE, CLOCK_SKEW (issued in the future), EXPIRED.
    Whether its sequence is newer than the one known is the peerbook's to say.
    """
    document = signed.open_document("announcement", ANNOUNCEMENT_DOMAIN, data, limits.announcement_bytes_max)
    announcement = _read(document.value)
    if announcement.peer_id != document.signer:
        raise RemoteProtocolError("an announcement signed by another peer than it names", code="BAD_SIGNATURE")
    ahead_ms = announcement.issued_at_ms - now_ms
    if ahead_ms > limits.clock_skew_ms_max:
        message = f"an announcement issued {ahead_ms // 1000} s in the future: check the clocks of both machines"
        raise RemoteProtocolError(message, code="CLOCK_SKEW")
    if announcement.expires_at_ms <= now_ms:
        raise RemoteProtocolError("the announcement has expired", code="EXPIRED")
    if announcement.expires_at_ms - announcement.issued_at_ms > limits.announcement_ttl_ms_max:
        raise RemoteProtocolError("an announcement must expire within an hour of its issue")
    return announcement


def _as_map(announcement: Announcement) -> dict[str, Any]:
    value = _lean(announcement)
    for key in ("addresses", "engines"):
        if key in value:
            value[key] = list(value[key])
    for key, models in (("serving", announcement.serving), ("holding", announcement.holding)):
        if models:
            value[key] = [_listed(_lean(model)) for model in models]
    if announcement.storage is not None:
        value["storage"] = _lean(announcement.storage)
    return {"version": 1, **value}


def _listed(value: dict[str, Any]) -> dict[str, Any]:
    """Lists for `skills` and the pairs of `modes`: dag-cbor knows no tuples."""
    if "skills" in value:
        value["skills"] = list(value["skills"])
    if "modes" in value:
        value["modes"] = {mode: list(prices) for mode, prices in value["modes"].items()}
    return value


def _lean(item: Announcement | Serving | Holding | StorageRoom) -> dict[str, Any]:
    """Fields by name, without those at their default: 4 KiB are dear."""
    value = {entry.name: getattr(item, entry.name) for entry in dataclasses.fields(item)}
    defaults = {entry.name: entry.default for entry in dataclasses.fields(item)}
    return {name: held for name, held in value.items() if held != defaults[name] and held != {}}


def _read(value: dict[str, Any]) -> Announcement:
    if fields.natural(value, "version") != 1:
        raise RemoteProtocolError("the announcement's version is not known here", code="UNSUPPORTED")
    return Announcement(
        peer_id=fields.peer_id(value, "peer_id"),
        sequence=fields.natural(value, "sequence"),
        issued_at_ms=fields.natural(value, "issued_at_ms"),
        expires_at_ms=fields.natural(value, "expires_at_ms"),
        state=fields.choice(value, "state", STATES, "active"),
        addresses=_lines(value, "addresses", most=ADDRESSES_MAX, bytes_max=256),
        gateway_port=fields.natural(value, "gateway_port", 0, most=65535),
        tier=fields.choice(value, "tier", TIERS, "edge"),
        hardware=_read_hardware(value),
        engines=_lines(value, "engines", most=ENGINES_MAX, bytes_max=_SHORT_BYTES_MAX),
        serving=tuple(_read_serving(item) for item in fields.items(value, "serving", most=MODELS_MAX)),
        holding=tuple(_read_holding(item) for item in fields.items(value, "holding", most=MODELS_MAX)),
        access=fields.choice(value, "access", ACCESS, "token"),
        region=_line(value, "region", "", bytes_max=_SHORT_BYTES_MAX),
        agent_version=_line(value, "agent_version", "", bytes_max=_SHORT_BYTES_MAX),
        role=_line(value, "role", "full", bytes_max=_SHORT_BYTES_MAX),
        storage=_read_storage(value["storage"]) if "storage" in value else None,
        trimmed=fields.boolean(value, "trimmed", False),
    )


def _read_storage(item: Any) -> StorageRoom:
    value = fields.as_map(item, "storage")
    return StorageRoom(
        total_bytes=fields.natural(value, "total_bytes", 0),
        used_bytes=fields.natural(value, "used_bytes", 0),
        free_bytes=fields.natural(value, "free_bytes", 0),
    )


def _line(value: dict[str, Any], key: str, *default: str, bytes_max: int) -> str:
    return _printable(key, fields.text(value, key, *default, bytes_max=bytes_max))


def _lines(value: dict[str, Any], key: str, *, most: int, bytes_max: int) -> tuple[str, ...]:
    return tuple(_printable(key, text) for text in fields.texts(value, key, most=most, bytes_max=bytes_max))


def _printable(key: str, text: str) -> str:
    """These texts are shown in terminals, which obey control characters."""
    if not text.isprintable():
        raise RemoteProtocolError(f"field {key} holds characters that are not printable")
    return text


def _read_hardware(value: dict[str, Any]) -> dict[str, HardwareValue]:
    hardware = fields.plain_map(value, "hardware", depth=1)
    if len(hardware) > HARDWARE_KEYS_MAX or not all(type(i) in (str, int, float, bool) for i in hardware.values()):
        raise RemoteProtocolError(f"field hardware holds at most {HARDWARE_KEYS_MAX} texts, numbers and bools")
    for text in (*hardware, *(item for item in hardware.values() if type(item) is str)):
        _printable("hardware", text)
    return hardware


def _read_serving(item: Any) -> Serving:
    value = fields.as_map(item, "serving")
    return Serving(
        root=_line(value, "root", bytes_max=_CID_BYTES_MAX),
        manifest=_line(value, "manifest", "", bytes_max=_CID_BYTES_MAX),
        name=_line(value, "name", "", bytes_max=_NAME_BYTES_MAX),
        version=_line(value, "version", "", bytes_max=_SHORT_BYTES_MAX),
        context_tokens=fields.natural(value, "context_tokens", 0),
        parallel=fields.natural(value, "parallel", 1),
        running=fields.natural(value, "running", 0),
        tokens_per_second=fields.number(value, "tokens_per_second", 0.0),
        first_token_ms=fields.natural(value, "first_token_ms", 0),
        quantization=_line(value, "quantization", "", bytes_max=_SHORT_BYTES_MAX),
        first_token_long_ms=fields.natural(value, "first_token_long_ms", 0),
        long_tokens=fields.natural(value, "long_tokens", 0),
        tokens_per_second_together=fields.number(value, "tokens_per_second_together", 0.0),
        results_per_second=fields.number(value, "results_per_second", 0.0),
        loads_in_ms=fields.natural(value, "loads_in_ms", 0),
        skills=_lines(value, "skills", most=SKILLS_MAX, bytes_max=_SHORT_BYTES_MAX) or ("chat",),
        price_basis=fields.choice(value, "price_basis", PRICE_BASES, "tokens"),
        price_in_micro_octo=fields.natural(value, "price_in_micro_octo", 0),
        price_out_micro_octo=fields.natural(value, "price_out_micro_octo", 0),
        modes=_read_modes(value),
    )


def _read_modes(value: dict[str, Any]) -> dict[str, tuple[int, int]]:
    modes = fields.plain_map(value, "modes", depth=2)
    if len(modes) > MODES_MAX:
        raise RemoteProtocolError(f"field modes holds at most {MODES_MAX} modes")
    for mode, prices in modes.items():
        _printable("modes", mode)
        good = type(prices) is list and len(prices) == 2 and len(mode.encode()) <= _SHORT_BYTES_MAX
        if not good or not all(type(price) is int and 0 <= price <= fields.INTEGER_MAX for price in prices):
            raise RemoteProtocolError("field modes maps names to two prices, each a whole number of 0 or more")
    return {mode: (prices[0], prices[1]) for mode, prices in modes.items()}


def _read_holding(item: Any) -> Holding:
    value = fields.as_map(item, "holding")
    return Holding(
        root=_line(value, "root", bytes_max=_CID_BYTES_MAX),
        manifest=_line(value, "manifest", "", bytes_max=_CID_BYTES_MAX),
        name=_line(value, "name", "", bytes_max=_NAME_BYTES_MAX),
        version=_line(value, "version", "", bytes_max=_SHORT_BYTES_MAX),
        complete=fields.boolean(value, "complete", True),
    )
