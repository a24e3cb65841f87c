from __future__ import annotations

from dataclasses import replace
from typing import Any

import cbrrr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.identity import NodeKey
from octonode.ids import ANNOUNCEMENT_DOMAIN, CHECKPOINT_DOMAIN
from octonode.protocol.announcement import (
    Announcement,
    Holding,
    Serving,
    StorageRoom,
    fit,
    open_announcement,
    sign_announcement,
)
from octonode.protocol.signed import seal_document

NODE, STRANGER = NodeKey(b"p" * 32), NodeKey(b"s" * 32)
NOW_MS = 1_800_000_000_000
ROOT = "bafybei" + "a" * 52
PLAIN = Announcement(NODE.peer_id, 7, NOW_MS, NOW_MS + 120_000)

printable = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
short, count, port = st.text(printable, max_size=20), st.integers(0, 2**63 - 1), st.integers(0, 65535)
servings = st.builds(
    Serving,
    short,
    short,
    short,
    short,
    count,
    count,
    count,
    st.floats(0, 1e9),
    count,
    short,
    price_out_micro_octo=count,
    modes=st.dictionaries(short, st.tuples(count, count), max_size=3),
)
holdings = st.builds(Holding, short, short, short, short, st.booleans())
announcements = st.builds(
    Announcement,
    peer_id=st.just(NODE.peer_id),
    sequence=count,
    issued_at_ms=st.integers(NOW_MS - 1000, NOW_MS),
    expires_at_ms=st.integers(NOW_MS + 1, NOW_MS + 1000),
    state=st.sampled_from(["active", "leaving"]),
    addresses=st.lists(short, max_size=3).map(tuple),
    gateway_port=port,
    tier=st.sampled_from(["edge", "consumer", "prosumer", "enterprise"]),
    hardware=st.dictionaries(short, short | count | st.booleans() | st.floats(0, 10), max_size=3),
    engines=st.lists(short, max_size=3).map(tuple),
    serving=st.lists(servings, max_size=2).map(tuple),
    holding=st.lists(holdings, max_size=2).map(tuple),
    access=st.sampled_from(["token", "peers", "open"]),
    region=short,
    agent_version=short,
    role=st.sampled_from(["full", "storage"]) | short,
    storage=st.none() | st.builds(StorageRoom, count, count, count),
    trimmed=st.booleans(),
)


@given(announcements)
@settings(max_examples=100, deadline=None)
def test_what_is_signed_opens_equal(announcement: Announcement) -> None:
    assert open_announcement(sign_announcement(NODE, announcement), NOW_MS) == announcement


def refused(data: bytes, now_ms: int = NOW_MS) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        open_announcement(data, now_ms)
    return caught.value.code


def test_a_changed_byte_is_refused() -> None:
    data = sign_announcement(NODE, PLAIN)
    for at in range(len(data)):
        assert refused(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) in ("BAD_SIGNATURE", "BAD_MESSAGE")


def document(data: bytes) -> dict[str, Any]:
    value: dict[str, Any] = cbrrr.decode_dag_cbor(cbrrr.decode_dag_cbor(data)["announcement"])
    return value


def test_an_announcement_in_anothers_name_is_refused() -> None:
    value = document(sign_announcement(NODE, PLAIN))
    assert refused(seal_document("announcement", ANNOUNCEMENT_DOMAIN, STRANGER, value)) == "BAD_SIGNATURE"
    assert refused(seal_document("announcement", CHECKPOINT_DOMAIN, NODE, value)) == "BAD_SIGNATURE"


def test_times_are_checked() -> None:
    data = sign_announcement(NODE, PLAIN)
    assert refused(data, NOW_MS + 120_000) == "EXPIRED"
    assert refused(data, NOW_MS - 60_001) == "CLOCK_SKEW"
    assert open_announcement(data, NOW_MS - 60_000) == PLAIN
    long = sign_announcement(NODE, replace(PLAIN, expires_at_ms=NOW_MS + 3_600_001))
    assert refused(long) == "BAD_MESSAGE"
    assert refused(long, NOW_MS + 60_000) == "BAD_MESSAGE", "its life counts from its issue, not from now"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"gateway_port": 65536},
        {"tier": "god"},
        {"addresses": ["a"] * 17},
        {"addresses": [1]},
        {"hardware": {"a": [1]}},
        {"serving": [{}]},
        {"serving": [{"root": ROOT, "tokens_per_second": -1.0}]},
        {"serving": [{"root": ROOT, "price_out_micro_octo": 0.5}]},
        {"serving": [{"root": ROOT, "modes": {"async": [1]}}]},
        {"serving": [{"root": ROOT, "modes": {"async": [1, -2]}}]},
        {"serving": [{"root": ROOT, "modes": {"async": [1, True]}}]},
        {"serving": [{"root": ROOT, "modes": {"async": 1}}]},
        {"serving": [{"root": ROOT, "modes": {"a\x1b[2J": [1, 2]}}]},
        {"serving": [{"root": ROOT, "modes": {"x" * 65: [1, 2]}}]},
        {"serving": [{"root": ROOT, "modes": {str(number): [1, 2] for number in range(9)}}]},
        {"holding": [[]]},
        {"sequence": True},
        {"peer_id": "nobody"},
    ],
    ids=str,
)
def test_fields_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    value = {**document(sign_announcement(NODE, PLAIN)), **changes}
    assert refused(seal_document("announcement", ANNOUNCEMENT_DOMAIN, NODE, value)) in (
        "BAD_MESSAGE",
        "UNSUPPORTED",
        "TOO_LARGE",
    )


def test_unknown_fields_are_ignored() -> None:
    value = {**document(sign_announcement(NODE, PLAIN)), "later": {"a": 1}}
    assert open_announcement(seal_document("announcement", ANNOUNCEMENT_DOMAIN, NODE, value), NOW_MS) == PLAIN


def test_the_size_is_bounded_on_both_sides_and_fit_makes_it_hold() -> None:
    modes = {"realtime": (150, 300), "batch": (100, 200), "async": (50, 100)}
    serving = tuple(Serving(root=ROOT, name=f"{NODE.peer_id}/model-{number}", modes=modes) for number in range(70))
    holding = tuple(Holding(root=ROOT, manifest=ROOT, version=str(number)) for number in range(70))
    large = replace(PLAIN, serving=serving, holding=holding)
    with pytest.raises(LocalProtocolError) as caught:
        sign_announcement(NODE, large)
    assert caught.value.code == "TOO_LARGE"
    fitted = fit(large)
    data = sign_announcement(NODE, fitted)
    assert 3500 < len(data) <= 4096
    assert fitted.trimmed
    assert fitted.serving == serving[: len(fitted.serving)]
    assert open_announcement(data, NOW_MS) == fitted
    assert fit(PLAIN) == PLAIN
    assert refused(data + bytes(4096)) == "TOO_LARGE"


def test_what_others_would_refuse_is_not_signed() -> None:
    for announcement in (replace(PLAIN, tier="god"), replace(PLAIN, addresses=("a",) * 17)):
        with pytest.raises(LocalProtocolError):
            sign_announcement(NODE, announcement)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_raise_only_remote_protocol_errors(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("evil", ["\x1b]0;title\x07", "\x1b[2J", "two\nlines", "\u202egnp.exe", "\x9b31m"])
@pytest.mark.parametrize(
    "where",
    [
        lambda evil: {"region": evil},
        lambda evil: {"agent_version": evil},
        lambda evil: {"engines": (evil,)},
        lambda evil: {"addresses": (evil,)},
        lambda evil: {"hardware": {"gpu": evil}},
        lambda evil: {"hardware": {evil: 1}},
        lambda evil: {"serving": (Serving(ROOT, name=evil),)},
        lambda evil: {"serving": (Serving(ROOT, quantization=evil),)},
        lambda evil: {"holding": (Holding(ROOT, version=evil),)},
        lambda evil: {"holding": (Holding(evil),)},
    ],
)
def test_texts_for_people_hold_nothing_but_text(evil: str, where: Any) -> None:
    """They are shown in terminals, which obey control characters."""
    with pytest.raises(LocalProtocolError, match="printable"):
        sign_announcement(NODE, replace(PLAIN, **where(evil)))
    data = sign_announcement(NODE, replace(PLAIN, **where("@" * len(evil.encode()))))
    value = cbrrr.decode_dag_cbor(data)["announcement"].replace(b"@" * len(evil.encode()), evil.encode())
    forged = seal_document("announcement", ANNOUNCEMENT_DOMAIN, NODE, cbrrr.decode_dag_cbor(value))
    with pytest.raises(RemoteProtocolError, match="printable"):
        open_announcement(forged, NOW_MS)


OLD_KEYS = {
    "version", "peer_id", "sequence", "issued_at_ms", "expires_at_ms", "state", "addresses", "gateway_port", "tier",
    "hardware", "engines", "serving", "holding", "access", "region", "agent_version", "trimmed",
}  # fmt: skip
"""What version 1 had before roles and storage came."""


def test_roles_and_storage_are_keys_that_an_old_reader_passes_over() -> None:
    room = StorageRoom(100, 40, 60)
    told = replace(PLAIN, role="storage", storage=room, holding=(Holding(ROOT),))
    value = cbrrr.decode_dag_cbor(cbrrr.decode_dag_cbor(sign_announcement(NODE, told))["announcement"])
    assert set(value) - OLD_KEYS == {"role", "storage"}
    assert value["storage"] == {"total_bytes": 100, "used_bytes": 40, "free_bytes": 60}
    known = {name: item for name, item in value.items() if name in OLD_KEYS}
    again = open_announcement(seal_document("announcement", ANNOUNCEMENT_DOMAIN, NODE, known), NOW_MS)
    assert again == replace(told, role="full", storage=None)
    plain = cbrrr.decode_dag_cbor(cbrrr.decode_dag_cbor(sign_announcement(NODE, PLAIN))["announcement"])
    assert set(plain) <= OLD_KEYS  # a node of the usual role says nothing new


@pytest.mark.parametrize("storage", [7, {"total_bytes": -1}, {"used_bytes": "much"}, None])
def test_a_malformed_storage_is_refused(storage: Any) -> None:
    value = cbrrr.decode_dag_cbor(cbrrr.decode_dag_cbor(sign_announcement(NODE, PLAIN))["announcement"])
    data = seal_document("announcement", ANNOUNCEMENT_DOMAIN, NODE, {**value, "storage": storage})
    with pytest.raises(RemoteProtocolError) as caught:
        open_announcement(data, NOW_MS)
    assert caught.value.code == "BAD_MESSAGE"
