"""Name records: the golden bytes, any bytes, and what their rules refuse."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.identity import NodeKey
from octonode.ipfs.cid import Cid, dag_cbor_cid
from octonode.network.keys import name_record_key
from octonode.network.records import RecordRules
from octonode.protocol.name_record import (
    NAME_RECORD_BYTES_MAX,
    NAME_RECORD_LIFE_MS_MAX,
    VERSIONS_MAX,
    NamedVersion,
    NameRecord,
    fit,
    open_name_record,
    sign_name_record,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "protocols" / "vectors" / "name-record.json").read_text(encoding="utf-8")
)
KEY, OTHER = NodeKey(bytes(range(32))), NodeKey(bytes(range(32, 64)))
NOW_MS = 1_764_000_000_000


def record(*versions: NamedVersion, seq: int = 1, issued_at_ms: int = NOW_MS, **fields: Any) -> NameRecord:
    life = {"issued_at_ms": issued_at_ms, "expires_at_ms": issued_at_ms + NAME_RECORD_LIFE_MS_MAX, **fields}
    return NameRecord(KEY.peer_id, "tiny", seq, versions=versions, **life)


def version(text: str, **fields: Any) -> NamedVersion:
    return NamedVersion(text, dag_cbor_cid(text.encode()).raw, **fields)


def test_the_golden_record_is_read_and_made_again() -> None:
    data = bytes.fromhex(VECTORS["record"]["hex"])
    RecordRules(lambda: VECTORS["now_ms"]).validate(VECTORS["key"], data)
    read = open_name_record(data, VECTORS["now_ms"])
    fields = VECTORS["fields"]
    assert (read.publisher, read.name, read.seq, read.trimmed) == tuple(
        fields[key] for key in ("publisher", "name", "seq", "trimmed")
    )
    for each, told in zip(read.versions, fields["versions"], strict=True):
        assert Cid.from_bytes(each.manifest).text == told["manifest"]
        assert (each.version, each.deprecated, each.reason, each.replaced_by) == tuple(
            told[key] for key in ("version", "deprecated", "reason", "replaced_by")
        )
    assert sign_name_record(KEY, read) == data


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["why"])
def test_golden_records_that_every_node_refuses(case: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        RecordRules(lambda: case["now_ms"]).validate(case["key"], bytes.fromhex(case["hex"]))
    assert caught.value.code == case["code"]


@given(st.binary(max_size=600))
def test_any_bytes_are_a_record_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        open_name_record(data, NOW_MS)


@given(st.data())
def test_no_change_of_a_record_passes(data: st.DataObject) -> None:
    """Every byte of it is signed, or is the signature, or names its signer."""
    good = sign_name_record(KEY, record(version("1.0.0"), version("1.1.0", deprecated=True, reason="no")))
    place, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    bad = bytearray(good)
    bad[place] ^= 1 << bit
    with pytest.raises(RemoteProtocolError):
        open_name_record(bytes(bad), NOW_MS)


texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=80).filter(
    lambda text: text.isprintable() and len(text.encode()) <= 200
)
number = st.integers(0, 999)
releases = st.builds(lambda a, b, c: f"{a}.{b}.{c}", number, number, number)
named = st.builds(
    NamedVersion,
    releases,
    st.binary(min_size=32, max_size=32).map(lambda digest: b"\x01\x71\x12\x20" + digest),
    st.booleans(),
    texts,
    st.one_of(st.just(""), releases),
)


@given(st.lists(named, max_size=200, unique_by=lambda each: each.version), st.integers(1, 2**60), st.integers(0, 2**50))
def test_what_is_signed_is_read_back_and_always_fits(versions: list[NamedVersion], seq: int, issued_at_ms: int) -> None:
    made = fit(record(*versions, seq=seq, issued_at_ms=issued_at_ms))
    data = sign_name_record(KEY, made)
    assert len(data) <= NAME_RECORD_BYTES_MAX
    assert open_name_record(data, issued_at_ms) == made
    assert len(made.versions) <= VERSIONS_MAX
    assert made.versions == tuple(versions[len(versions) - len(made.versions) :])  # the oldest go
    assert made.trimmed == (len(made.versions) < len(versions))


def test_about_fifty_versions_fit() -> None:
    assert len(fit(record(*(version(f"1.{number}.0") for number in range(200)))).versions) >= 50


@pytest.mark.parametrize(
    "bad",
    [
        record(version("1.0.0"), version("1.0.0")),
        record(version("1.0.0", reason="line\nline")),
        record(version("1.0.0", reason="x" * 201)),
        record(version("1.0.0", replaced_by="next")),
        record(version("one")),
        record(seq=0),
        record(expires_at_ms=NOW_MS + NAME_RECORD_LIFE_MS_MAX + 1),
    ],
)
def test_our_own_mistakes_are_caught_before_they_are_signed(bad: NameRecord) -> None:
    with pytest.raises(LocalProtocolError):
        sign_name_record(KEY, bad)


def test_the_rules_choose_the_same_everywhere() -> None:
    key = name_record_key(KEY.peer_id, "tiny")
    old = sign_name_record(KEY, record(version("1.0.0"), seq=1, issued_at_ms=NOW_MS + 1000))
    new = sign_name_record(KEY, record(version("1.0.0"), seq=2))
    later = sign_name_record(KEY, record(version("1.0.0"), seq=2, issued_at_ms=NOW_MS + 1))
    twin = sign_name_record(KEY, record(version("1.0.1"), seq=2, issued_at_ms=NOW_MS + 1))  # said twice under one seq
    stranger = sign_name_record(OTHER, replace(record(seq=99), publisher=OTHER.peer_id))
    rules = RecordRules(lambda: NOW_MS + 2000)
    ranked = [b"junk", old, new, *sorted([later, twin])]
    for low, high in itertools.pairwise(ranked):
        assert rules.select(key, [low, high]) == 1
        assert rules.select(key, [high, low]) == 0
    assert rules.select(key, [stranger, old]) == 1
    assert rules.select(key, [new, new]) == 1  # what comes again counts as taken
    with pytest.raises(RemoteProtocolError):
        rules.validate("/octo-models/x", new)
    with pytest.raises(RemoteProtocolError):
        rules.validate(key[1:], new)
