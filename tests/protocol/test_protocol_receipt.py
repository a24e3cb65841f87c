from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbrrr
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import LocalProtocolError, VerificationFailed
from octonode.identity import NodeKey
from octonode.ids import CHECKPOINT_DOMAIN, RECEIPT_DOMAIN
from octonode.protocol.messages import StatusUpdate, TaskRequest, TaskResponse
from octonode.protocol.receipt import (
    EngineFingerprint,
    Price,
    Receipt,
    Times,
    check_receipt,
    sign_receipt,
    verify_receipt,
)
from octonode.protocol.signed import seal_document
from octonode.protocol.transcript import Transcript

PAGE = Path(__file__).parents[2] / "protocols" / "receipt.md"
PROVIDER, ASKER, STRANGER = NodeKey(b"p" * 32), NodeKey(b"a" * 32), NodeKey(b"s" * 32)
RECEIPT = Receipt(
    request=b"r" * 32,
    task=b"t" * 16,
    asker=ASKER.peer_id,
    provider=PROVIDER.peer_id,
    model_root="bafymodel",
    manifest="",
    engine=EngineFingerprint("build 1", "cpu", "avx2", {"flash_attention": False}),
    parameters={"max_tokens": 5, "temperature": 0.5, "stop": ["a"]},
    seed=None,
    tokens_in=3,
    tokens_out=2,
    pieces=2,
    transcript=b"d" * 32,
    finish_reason="stop",
    price=Price("tokens", 1, 2, 3),
    privacy="public",
    privacy_evidence="none",
    times=Times(1, 2, 3, 4),
)


@pytest.mark.parametrize("seed", [None, 0, -5, 2**63 - 1])
def test_what_is_signed_verifies_equal(seed: int | None) -> None:
    receipt = replace(RECEIPT, seed=seed)
    assert verify_receipt(sign_receipt(PROVIDER, receipt)) == receipt


def test_a_tuple_among_the_parameters_is_signed_as_an_array() -> None:
    signed = verify_receipt(sign_receipt(PROVIDER, replace(RECEIPT, parameters={"stop": ("a", "b")})))
    assert signed.parameters == {"stop": ["a", "b"]}


def test_a_changed_byte_is_refused() -> None:
    data = sign_receipt(PROVIDER, RECEIPT)
    for at in range(len(data)):
        with pytest.raises(VerificationFailed):
            verify_receipt(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def document() -> dict[str, Any]:
    value: dict[str, Any] = cbrrr.decode_dag_cbor(cbrrr.decode_dag_cbor(sign_receipt(PROVIDER, RECEIPT))["receipt"])
    return value


def test_a_receipt_in_anothers_name_or_of_another_purpose_is_refused() -> None:
    for domain, signer in ((RECEIPT_DOMAIN, STRANGER), (CHECKPOINT_DOMAIN, PROVIDER)):
        with pytest.raises(VerificationFailed):
            verify_receipt(seal_document("receipt", domain, signer, document()))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"tokens_out": -1},
        {"tokens_out": 1.5},
        {"price": {"basis": "tokens"}},
        {"price": {**document()["price"], "total_micro_octo": 0.5}},
        {"seed": "7"},
        {"privacy": "secret"},
        {"engine": {"build": ""}},
        {"transcript": b""},
        {"asker": "nobody"},
    ],
    ids=str,
)
def test_fields_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(VerificationFailed):
        verify_receipt(seal_document("receipt", RECEIPT_DOMAIN, PROVIDER, {**document(), **changes}))


def test_a_link_is_not_bytes() -> None:
    with pytest.raises(VerificationFailed, match="links"):
        verify_receipt(
            seal_document("receipt", RECEIPT_DOMAIN, PROVIDER, {**document(), "request": cbrrr.CID(b"r" * 32)})
        )


def test_what_others_would_refuse_is_not_signed() -> None:
    for receipt in (
        replace(RECEIPT, privacy="secret"),
        replace(RECEIPT, tokens_in=-1),
        replace(RECEIPT, parameters={"x": float("nan")}),
        replace(RECEIPT, parameters={"x": "y" * 20_000}),
    ):
        with pytest.raises(LocalProtocolError):
            sign_receipt(PROVIDER, receipt)


def test_a_receipt_is_compared_with_what_was_seen() -> None:
    check_receipt(RECEIPT, request=b"r" * 32, tokens_out=2, provider=PROVIDER.peer_id)
    with pytest.raises(VerificationFailed, match="tokens_out is 2, and 3 was seen"):
        check_receipt(RECEIPT, request=b"r" * 32, tokens_out=3)
    with pytest.raises(VerificationFailed, match="transcript"):
        check_receipt(RECEIPT, transcript=bytes(32))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_and_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(VerificationFailed):
        verify_receipt(data)


def run_the_page(folder: Path, request: bytes, receipt: bytes) -> subprocess.CompletedProcess[str]:
    """Exactly the program that the page prints, on two files, in a process that cannot see this package."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert "octonode" not in re.sub(r'b"octonode/[a-z]+/1\\0"', "", program)
    (folder / "check.py").write_text(program, encoding="utf-8")
    (folder / "request.bin").write_bytes(request)
    (folder / "receipt.bin").write_bytes(receipt)
    command = [sys.executable, "check.py", "request.bin", "receipt.bin"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_program_of_the_page_checks_a_task_and_finds_every_forgery(link: Any, tmp_path: Path) -> None:
    link.ask(TaskRequest(model="bafymodel", input={"messages": []}))
    chain = Transcript(link.provider.request_sha256)
    chain.extend(["Hel", "lo"])
    link.say(link.provider, StatusUpdate(pieces=("Hel", "lo")))
    true = replace(RECEIPT, request=link.provider.request_sha256, task=link.provider.task, transcript=chain.digest)
    link.say(link.provider, TaskResponse(pieces_total=2, receipt=sign_receipt(link.provider_key, true)))
    request, receipt = link.asker.request_payload, link.asker.terminal.receipt

    good = run_the_page(tmp_path, request, receipt)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith(f"verified: {PROVIDER.peer_id} gave 2 tokens of bafymodel")

    header, signature, _ = msgpack.unpackb(request)
    forgeries = [
        (msgpack.packb((header, signature, msgpack.packb({"model": "other"}))), receipt),
        (msgpack.packb((header, bytes(64), msgpack.unpackb(request)[2])), receipt),
        (request, sign_receipt(link.provider_key, replace(true, model_root="other"))),
        (request, sign_receipt(link.provider_key, replace(true, request=bytes(32)))),
        (request, sign_receipt(STRANGER, replace(true, provider=STRANGER.peer_id))),
        (request, receipt.replace(b"bafymodel", b"bafymodem")),
    ]
    for forged_request, forged_receipt in forgeries:
        assert run_the_page(tmp_path, forged_request, forged_receipt).returncode != 0
