"""Content keys against the golden vectors of protocols/discovery.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octonode.ids import PeerId
from octonode.network import keys

VECTORS = json.loads(
    (Path(__file__).parents[2] / "protocols" / "vectors" / "discovery.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("vector", VECTORS["roots"], ids=lambda v: v["root"][:8])
def test_keys_of_a_root(vector: dict[str, str]) -> None:
    root = bytes.fromhex(vector["root"])
    assert keys.blocks_key(root).hex() == vector["blocks_key"]
    assert keys.serve_key(root).hex() == vector["serve_key"]
    assert keys.multihash(keys.serve_key(root)).hex() == vector["multihash"]


@pytest.mark.parametrize("vector", VECTORS["peers"], ids=lambda v: v["peer_id"][-6:])
def test_keys_of_a_peer(vector: dict[str, str | int]) -> None:
    peer_id = PeerId(str(vector["peer_id"]))
    assert keys.tier_bucket(peer_id) == vector["tier_bucket"]
    assert keys.record_key(peer_id) == vector["record_key"]


@pytest.mark.parametrize("vector", VECTORS["tiers"], ids=lambda v: v["tier"])
def test_keys_of_a_tier(vector: dict[str, str | int]) -> None:
    assert keys.tier_key(str(vector["tier"]), int(vector["bucket"])).hex() == vector["tier_key"]


@pytest.mark.parametrize("vector", VECTORS["names"], ids=lambda v: v["name_key"][:8])
def test_keys_of_a_name(vector: dict[str, str]) -> None:
    assert keys.name_key(PeerId(vector["publisher"]), vector["name"]).hex() == vector["name_key"]


def test_no_two_questions_share_a_key() -> None:
    root = bytes(range(32))
    tiers = {keys.tier_key("edge", bucket) for bucket in range(keys.TIER_BUCKETS)}
    assert len({keys.blocks_key(root), keys.serve_key(root)} | tiers) == 2 + keys.TIER_BUCKETS


def test_a_bucket_needs_a_peer_id() -> None:
    with pytest.raises(ValueError):
        keys.tier_bucket(PeerId("not-a-peer"))
