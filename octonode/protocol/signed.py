"""Signed documents: dag-cbor `{<kind>: bytes, signature: bytes, signer: text}`.

`<kind>` holds the dag-cbor of the document as a byte string, so the signature is checked over the very bytes that
came and nothing is ever encoded again. Receipts, announcements and checkpoints are such documents.
Format: https://ipld.io/specs/codecs/dag-cbor/spec/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cbrrr

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.identity import Signer, verify
from octonode.ids import PeerId
from octonode.protocol import fields

DEPTH_MAX = 8
"""Containers inside containers of a document."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document whose signature holds."""

    value: dict[str, Any]
    signer: PeerId


def encode_dag_cbor(value: Any) -> bytes:
    """Raises LocalProtocolError for what dag-cbor has no place for: NaN, integers over 64 bits, other types."""
    try:
        encoded: bytes = cbrrr.encode_dag_cbor(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"this value has no place in dag-cbor: {error}", code="BAD_REQUEST") from None
    return encoded


def decode_dag_cbor(data: bytes, what: str) -> dict[str, Any]:
    """The map in `data`, strictly canonical, without links. Raises RemoteProtocolError."""
    try:
        value = cbrrr.decode_dag_cbor(data, cid_ctor=_refuse_link)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RemoteProtocolError(f"{what} is not dag-cbor: {error}") from None
    value = fields.as_map(value, what)
    fields.plain_map({what: value}, what, depth=DEPTH_MAX)
    return value


def seal_document(kind: str, domain: bytes, signer: Signer, value: dict[str, Any]) -> bytes:
    """The bytes of a signed document."""
    encoded = encode_dag_cbor(value)
    return encode_dag_cbor({kind: encoded, "signature": signer.sign(domain + encoded), "signer": signer.peer_id})


def open_document(kind: str, domain: bytes, data: bytes, bytes_max: int) -> Document:
    """The document in `data`, its signature checked. Raises RemoteProtocolError: TOO_LARGE, BAD_MESSAGE, BAD_SIGNATURE.

    The caller still compares `signer` with the peer the document must come from.
    """
    if len(data) > bytes_max:
        raise RemoteProtocolError(f"{kind} of {len(data)} bytes; at most {bytes_max} are taken", code="TOO_LARGE")
    outer = decode_dag_cbor(data, kind)
    if outer.keys() != {kind, "signature", "signer"}:
        raise RemoteProtocolError(f"a signed {kind} has the keys {kind}, signature and signer")
    encoded = fields.raw(outer, kind, bytes_max=bytes_max)
    signature = fields.exact_bytes(outer, "signature", 64)
    signer = fields.peer_id(outer, "signer")
    if not verify(signer, domain + encoded, signature):
        raise RemoteProtocolError(f"the signature of the {kind} does not hold", code="BAD_SIGNATURE")
    return Document(decode_dag_cbor(encoded, kind), signer)


def _refuse_link(_data: bytes) -> Any:
    raise ValueError("links are not used in signed documents; a CID is text here")
