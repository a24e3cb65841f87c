"""Tiers: the boundary table, and which memory of a machine counts."""

from __future__ import annotations

import pytest

from octonode.hardware import tiers
from octonode.hardware.facts import Gpu, GpuPartition

GB = tiers.GIGABYTE
MIB = 1024 * 1024


def nvidia(memory_bytes: int | None, **fields: object) -> Gpu:
    return Gpu(vendor="nvidia", index=0, memory_bytes=memory_bytes, **fields)  # type: ignore[arg-type]


def amd(memory_bytes: int) -> Gpu:
    return Gpu(vendor="amd", index=0, memory_bytes=memory_bytes)


@pytest.mark.parametrize(
    ("gigabytes", "name"),
    [
        (0, "edge"),
        (7.9, "edge"),
        (8, "consumer"),
        (16, "consumer"),
        (23.9, "consumer"),
        (24, "prosumer"),
        (48, "prosumer"),
        (79, "prosumer"),
        (80, "enterprise"),
        (640, "enterprise"),
    ],
)
def test_the_highest_floor_that_is_met(gigabytes: float, name: str) -> None:
    assert tiers.tier_of(round(gigabytes * GB)).name == name


def test_one_byte_under_a_floor_is_under_it() -> None:
    for lower, upper in zip(tiers.TIERS, tiers.TIERS[1:], strict=False):
        assert tiers.tier_of(upper.floor_bytes) is upper
        assert tiers.tier_of(upper.floor_bytes - 1) is lower


@pytest.mark.parametrize(
    ("card", "mib", "name"),
    [
        ("RTX 3070, 8 GB", 8192, "consumer"),
        ("T4, 16 GB, ECC on", 15360, "consumer"),
        ("L4, 24 GB, ECC on", 23034, "prosumer"),
        ("RTX 4090, 24 GB", 24564, "prosumer"),
        ("L40S, 48 GB", 46068, "prosumer"),
        ("A100, 80 GB", 81920, "enterprise"),
        ("H100, 80 GB", 81559, "enterprise"),
    ],
)
def test_a_card_is_of_the_tier_its_box_names(card: str, mib: int, name: str) -> None:
    """Total memory as nvidia-smi shows it for these cards."""
    assert tiers.tier_of(tiers.usable_vram_bytes([nvidia(mib * MIB)])).name == name, card


def test_gpus_of_one_vendor_add_up_and_vendors_do_not() -> None:
    assert tiers.usable_vram_bytes([nvidia(12 * GB), nvidia(12 * GB)]) == 24 * GB
    assert tiers.usable_vram_bytes([nvidia(12 * GB), amd(16 * GB)]) == 16 * GB
    assert tiers.usable_vram_bytes([nvidia(12 * GB), nvidia(12 * GB), amd(16 * GB)]) == 24 * GB


def test_a_mig_instance_stands_alone() -> None:
    parts = (GpuPartition(None, None, 40 * GB), GpuPartition(None, None, 20 * GB), GpuPartition(None, None, None))
    split = nvidia(80 * GB, partitioned=True, partitions=parts)
    assert tiers.usable_vram_bytes([split]) == 40 * GB
    assert tiers.usable_vram_bytes([split, split]) == 40 * GB
    assert tiers.usable_vram_bytes([split, nvidia(48 * GB)]) == 48 * GB
    assert tiers.usable_vram_bytes([nvidia(80 * GB, partitioned=True)]) == 0


def test_what_does_not_tell_its_memory_counts_as_none() -> None:
    assert tiers.usable_vram_bytes([]) == 0
    assert tiers.usable_vram_bytes([nvidia(None)]) == 0
    assert tiers.usable_vram_bytes([nvidia(None), nvidia(8 * GB)]) == 8 * GB


def test_the_stake_table_of_the_mission() -> None:
    assert {tier.name: tier.stake_octo_a for tier in tiers.TIERS} == {
        "edge": 0,
        "consumer": 1_000,
        "prosumer": 5_000,
        "enterprise": 10_000,
    }


@pytest.mark.parametrize(
    ("name", "attested", "shown"),
    [
        ("edge", None, "no stake needed"),
        ("consumer", None, "self-declared"),
        ("consumer", 999, "self-declared"),
        ("consumer", 1_000, "attested"),
        ("enterprise", 5_000, "self-declared"),
    ],
)
def test_without_a_sufficient_attestation_a_tier_is_self_declared(name: str, attested: int | None, shown: str) -> None:
    assert tiers.standing(tiers.BY_NAME[name], attested) == shown


def test_a_tier_is_described_in_a_line() -> None:
    line = "consumer (self-declared): LLMs of 7B to 13B; needs 8 GB of VRAM and 1,000 OCTO-A"
    assert tiers.describe(tiers.BY_NAME["consumer"]) == line
    assert "needs" not in tiers.describe(tiers.BY_NAME["edge"]).partition("):")[2]
