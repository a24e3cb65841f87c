"""The receipt a provider signs for every finished task: who did what, with which model and engine, at what price.

It names the request by the hash of its signed header, so it can be shown to a third party without the prompt.
Spec, and the program that checks one without this code: protocols/receipt.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from octonode.errors import LocalProtocolError, RemoteProtocolError, VerificationFailed
from octonode.identity import Signer
from octonode.ids import RECEIPT_DOMAIN, PeerId
from octonode.protocol import fields, signed
from octonode.protocol.limits import DEFAULT_LIMITS, Limits

PRIVACY_LEVELS = frozenset({"private", "confidential", "shared", "public"})
PRICE_BASES = frozenset({"tokens", "seconds", "tokens_per_second"})
FINISH_REASONS = frozenset({"stop", "length", "cancel"})
_CID_BYTES_MAX = 128


@dataclass(frozen=True, slots=True)
class EngineFingerprint:
    """What must be equal for two nodes to give the same bits for the same request."""

    build: str
    backend: str
    instruction_set: str
    flags: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Price:
    """Integers of µOCTO. The rates are per million tokens for basis `tokens`, else per second."""

    basis: str = "tokens"
    rate_in_micro_octo: int = 0
    rate_out_micro_octo: int = 0
    total_micro_octo: int = 0


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds since 1970 by the provider's clock; `first_piece_at_ms` is 0 when there was no piece."""

    received_at_ms: int
    started_at_ms: int
    first_piece_at_ms: int
    finished_at_ms: int


@dataclass(frozen=True, slots=True)
class Receipt:
    request: bytes
    """sha256 of the signed request's header bytes."""
    task: bytes
    asker: PeerId
    provider: PeerId
    model_root: str
    manifest: str
    """CID of the signed manifest the model was verified by; empty where there was none."""
    engine: EngineFingerprint
    parameters: dict[str, Any]
    """As applied, defaults filled in, the seed aside."""
    seed: int | None
    """The seed that was used; None where the engine was not seeded."""
    tokens_in: int
    tokens_out: int
    pieces: int
    transcript: bytes
    """The last link of the transcript chain."""
    finish_reason: str
    price: Price
    privacy: str
    """The level that was met."""
    privacy_evidence: str
    """By what it was met: `none`, or a quote's digest once there is one."""
    times: Times


def sign_receipt(signer: Signer, receipt: Receipt, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """dag-cbor `{receipt: bytes, signature, signer}`; keep these bytes. `signer` must be `receipt.provider`.

    Raises LocalProtocolError: BAD_REQUEST for values others would refuse, TOO_LARGE for endless parameters.
    """
    assert receipt.provider == signer.peer_id, "a receipt is signed by its provider"
    value = {"version": 1, **_plain(asdict(receipt))}
    try:
        _read(value)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"receipt: {error.message}", code="BAD_REQUEST") from None
    data = signed.seal_document("receipt", RECEIPT_DOMAIN, signer, value)
    if len(data) > limits.receipt_bytes_max:
        raise LocalProtocolError(f"a receipt of {len(data)} bytes is over {limits.receipt_bytes_max}", code="TOO_LARGE")
    return data


def verify_receipt(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Receipt:
    """The receipt in `data`, signed by the provider it names. Raises VerificationFailed.

    That it belongs to a certain task is `check_receipt`'s to say.
    """
    try:
        document = signed.open_document("receipt", RECEIPT_DOMAIN, data, limits.receipt_bytes_max)
        receipt = _read(document.value)
    except RemoteProtocolError as error:
        raise VerificationFailed(f"receipt: {error.message}") from None
    if receipt.provider != document.signer:
        raise VerificationFailed("receipt: signed by another peer than the provider it names")
    return receipt


def check_receipt(receipt: Receipt, **expected: Any) -> None:
    """Compare fields of `receipt` with what the asker saw: `check_receipt(r, request=h, tokens_out=12)`.

    Raises VerificationFailed naming the first field that differs.
    """
    for name, value in expected.items():
        told = getattr(receipt, name)
        if told != value:
            raise VerificationFailed(f"receipt: {name} is {_show(told)}, and {_show(value)} was seen here")


def _show(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


def _plain(value: Any) -> Any:
    """Tuples as lists, inside and out: dag-cbor knows lists alone."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _read(value: dict[str, Any]) -> Receipt:
    if fields.natural(value, "version") != 1:
        raise RemoteProtocolError("its version is not known here", code="UNSUPPORTED")
    return Receipt(
        request=fields.exact_bytes(value, "request", 32),
        task=fields.exact_bytes(value, "task", 16),
        asker=fields.peer_id(value, "asker"),
        provider=fields.peer_id(value, "provider"),
        model_root=fields.text(value, "model_root", bytes_max=_CID_BYTES_MAX),
        manifest=fields.text(value, "manifest", bytes_max=_CID_BYTES_MAX),
        engine=_read_engine(fields.plain_map(value, "engine")),
        parameters=fields.plain_map(value, "parameters"),
        seed=None if value.get("seed") is None else fields.integer(value, "seed"),
        tokens_in=fields.natural(value, "tokens_in"),
        tokens_out=fields.natural(value, "tokens_out"),
        pieces=fields.natural(value, "pieces"),
        transcript=fields.exact_bytes(value, "transcript", 32),
        finish_reason=fields.choice(value, "finish_reason", FINISH_REASONS),
        price=_read_price(fields.plain_map(value, "price")),
        privacy=fields.choice(value, "privacy", PRIVACY_LEVELS),
        privacy_evidence=fields.text(value, "privacy_evidence"),
        times=_read_times(fields.plain_map(value, "times")),
    )


def _read_engine(value: dict[str, Any]) -> EngineFingerprint:
    flags = fields.plain_map(value, "flags")
    if not all(type(item) in (str, int, float, bool) for item in flags.values()):
        raise RemoteProtocolError("field flags must hold texts, numbers and bools alone")
    return EngineFingerprint(
        build=fields.text(value, "build"),
        backend=fields.text(value, "backend"),
        instruction_set=fields.text(value, "instruction_set"),
        flags=flags,
    )


def _read_price(value: dict[str, Any]) -> Price:
    return Price(
        basis=fields.choice(value, "basis", PRICE_BASES),
        rate_in_micro_octo=fields.natural(value, "rate_in_micro_octo"),
        rate_out_micro_octo=fields.natural(value, "rate_out_micro_octo"),
        total_micro_octo=fields.natural(value, "total_micro_octo"),
    )


def _read_times(value: dict[str, Any]) -> Times:
    return Times(
        received_at_ms=fields.natural(value, "received_at_ms"),
        started_at_ms=fields.natural(value, "started_at_ms"),
        first_piece_at_ms=fields.natural(value, "first_piece_at_ms"),
        finished_at_ms=fields.natural(value, "finished_at_ms"),
    )
