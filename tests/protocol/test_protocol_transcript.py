from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.identity import NodeKey
from octonode.ids import CHECKPOINT_DOMAIN, RECEIPT_DOMAIN
from octonode.protocol.limits import Limits
from octonode.protocol.signed import decode_dag_cbor, seal_document
from octonode.protocol.transcript import Checkpoint, Transcript, checkpoint_due, sign_checkpoint, verify_checkpoint

REQUEST = sha256(b"header").digest()
PROVIDER, STRANGER = NodeKey(b"p" * 32), NodeKey(b"s" * 32)


def digest_of(pieces: list[str], request: bytes = REQUEST) -> bytes:
    chain = Transcript(request)
    chain.extend(pieces)
    return chain.digest


@given(st.lists(st.text(max_size=6), max_size=20), st.data())
@settings(max_examples=100, deadline=None)
def test_framing_does_not_change_the_chain(pieces: list[str], data: st.DataObject) -> None:
    chain, left = Transcript(REQUEST), list(pieces)
    while left:
        size = data.draw(st.integers(1, len(left)))
        chain.extend(left[:size])
        del left[:size]
    assert (chain.digest, chain.count) == (digest_of(pieces), len(pieces))


@given(st.lists(st.text(max_size=4), max_size=6), st.lists(st.text(max_size=4), max_size=6))
@settings(max_examples=100, deadline=None)
def test_other_pieces_give_another_chain_even_for_the_same_text(left: list[str], right: list[str]) -> None:
    assert (digest_of(left) == digest_of(right)) == (left == right)


def test_a_chain_belongs_to_one_request() -> None:
    assert digest_of(["a"]) != digest_of(["a"], sha256(b"another").digest())


def test_a_checkpoint_comes_back_as_signed() -> None:
    chain = Transcript(REQUEST)
    chain.extend(["a", "b"])
    data = sign_checkpoint(PROVIDER, REQUEST, chain, 5)
    assert verify_checkpoint(data) == Checkpoint(REQUEST, PROVIDER.peer_id, 2, chain.digest, 5)


def test_a_checkpoint_that_was_tampered_with_is_refused() -> None:
    data = sign_checkpoint(PROVIDER, REQUEST, Transcript(REQUEST), 5)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(VerificationFailed):
            verify_checkpoint(changed)


def test_a_checkpoint_in_anothers_name_or_of_another_purpose_is_refused() -> None:
    value = {"request": REQUEST, "provider": PROVIDER.peer_id, "pieces": 1, "digest": REQUEST, "at_ms": 5}
    for domain, signer in ((CHECKPOINT_DOMAIN, STRANGER), (RECEIPT_DOMAIN, PROVIDER)):
        with pytest.raises(VerificationFailed):
            verify_checkpoint(seal_document("checkpoint", domain, signer, value))


@pytest.mark.parametrize(
    ("pieces", "ms", "due"),
    [(0, 0, False), (0, 9999, False), (1, 999, False), (1, 1000, True), (63, 999, False), (64, 0, True), (65, 0, True)],
)
def test_a_checkpoint_is_due_by_pieces_or_by_time(pieces: int, ms: int, due: bool) -> None:
    assert checkpoint_due(pieces, ms) is due
    assert checkpoint_due(pieces, ms, replace(Limits(), checkpoint_pieces=1)) is (pieces > 0)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_and_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(VerificationFailed):
        verify_checkpoint(data)
    with pytest.raises(RemoteProtocolError):
        decode_dag_cbor(b"\xbf" + data, "document")
