"""The hash chain over the pieces of an answer, and the checkpoints a provider signs along it.

The chain runs per emitted piece and knows nothing of frames: however pieces were packed into messages, the digest is
the same. Spec: protocols/receipt.md, section "Transcript".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.identity import Signer
from octonode.ids import CHECKPOINT_DOMAIN, TRANSCRIPT_DOMAIN, PeerId
from octonode.protocol import fields, signed
from octonode.protocol.limits import DEFAULT_LIMITS, Limits


class Transcript:
    """h0 = sha256(domain + request); h(i) = sha256(h(i-1) + length of piece i as 4 bytes big-endian + piece i).

    `request_sha256` is the hash of the signed request's header bytes, so a chain belongs to one request.
    """

    __slots__ = ("count", "digest")

    def __init__(self, request_sha256: bytes) -> None:
        assert len(request_sha256) == 32
        self.digest = sha256(TRANSCRIPT_DOMAIN + request_sha256).digest()
        """The last link, 32 bytes."""
        self.count = 0
        """Pieces in the chain."""

    def add(self, piece: str) -> None:
        text = piece.encode()
        self.digest = sha256(self.digest + len(text).to_bytes(4, "big") + text).digest()
        self.count += 1

    def extend(self, pieces: Iterable[str]) -> None:
        for piece in pieces:
            self.add(piece)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A provider's word, in the middle of an answer, that it has written this much."""

    request: bytes
    """sha256 of the signed request's header bytes."""
    provider: PeerId
    pieces: int
    digest: bytes
    """The transcript's link after `pieces` pieces."""
    at_ms: int


def checkpoint_due(pieces_since: int, ms_since: int, limits: Limits = DEFAULT_LIMITS) -> bool:
    """True when a provider owes a checkpoint: 64 pieces, or a second with at least one piece, since the last."""
    if pieces_since <= 0:
        return False
    return pieces_since >= limits.checkpoint_pieces or ms_since >= limits.checkpoint_ms


def sign_checkpoint(signer: Signer, request_sha256: bytes, transcript: Transcript, now_ms: int) -> bytes:
    """The bytes of a signed checkpoint of `transcript` as it stands, for `StatusUpdate.checkpoint`."""
    value = {
        "request": request_sha256,
        "provider": signer.peer_id,
        "pieces": transcript.count,
        "digest": transcript.digest,
        "at_ms": now_ms,
    }
    return signed.seal_document("checkpoint", CHECKPOINT_DOMAIN, signer, value)


def verify_checkpoint(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """The checkpoint in `data`, signed by the provider it names. Raises VerificationFailed."""
    try:
        document = signed.open_document("checkpoint", CHECKPOINT_DOMAIN, data, limits.checkpoint_bytes_max)
        value = document.value
        checkpoint = Checkpoint(
            request=fields.exact_bytes(value, "request", 32),
            provider=fields.peer_id(value, "provider"),
            pieces=fields.natural(value, "pieces"),
            digest=fields.exact_bytes(value, "digest", 32),
            at_ms=fields.natural(value, "at_ms"),
        )
    except RemoteProtocolError as error:
        raise VerificationFailed(f"checkpoint: {error.message}") from None
    if checkpoint.provider != document.signer:
        raise VerificationFailed("checkpoint: signed by another peer than the provider it names")
    return checkpoint
