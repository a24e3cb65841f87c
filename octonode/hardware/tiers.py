"""Hardware tiers: a table, and what it says of a machine. Pure.

A tier is the highest one whose floor the node's usable VRAM meets. The choices behind "usable":

- A gigabyte is 10^9 bytes, as cards are sold: an L4 of "24 GB" shows 24.15e9 bytes, an H100 of "80 GB" 85.5e9.
  Counted in GiB both would miss the tier that their box names.
- Total memory counts, not what is free now: a tier must not change because a model was loaded.
- The GPUs of one vendor in one machine add up, because llama.cpp and vLLM split one model over them; two cards of
  12 GB hold what one of 24 GB holds. GPUs of different vendors never add up (one engine, one backend): the larger
  sum stands.
- A MIG instance stands alone: a CUDA process sees one of them. A GPU in MIG mode counts with its largest instance,
  and only where that is more than the whole GPUs together.
- A GPU that does not tell its memory counts as none.

Nothing here is checked by anybody: without a stake attestation a tier is what the node says of itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

GIGABYTE = 10**9

TierName = Literal["edge", "consumer", "prosumer", "enterprise"]
Standing = Literal["no stake needed", "self-declared", "attested"]


@dataclass(frozen=True, slots=True)
class Tier:
    name: TierName
    floor_bytes: int
    """Usable VRAM from which on the tier holds."""
    stake_octo_a: int
    """OCTO-A that the tier asks for; 0: none."""
    models: str
    """What such a machine is good for, in a few words."""


TIERS: tuple[Tier, ...] = (
    Tier("edge", 0, 0, "small models on the CPU, embeddings, model hosting"),
    Tier("consumer", 8 * GIGABYTE, 1_000, "LLMs of 7B to 13B"),
    Tier("prosumer", 24 * GIGABYTE, 5_000, "LLMs of 13B to 70B"),
    Tier("enterprise", 80 * GIGABYTE, 10_000, "LLMs of 70B and more, diffusion"),
)
"""By rising floor; the mission's hardware matrix, with `edge` below it."""

BY_NAME: dict[str, Tier] = {tier.name: tier for tier in TIERS}


class Partition(Protocol):
    """A slice of a GPU that a process sees alone, such as a MIG instance."""

    @property
    def memory_bytes(self) -> int | None: ...


class Accelerator(Protocol):
    """What this table needs to know of a GPU."""

    @property
    def vendor(self) -> str: ...

    @property
    def memory_bytes(self) -> int | None: ...

    @property
    def partitioned(self) -> bool:
        """True when the GPU can be used through its partitions only, be there any or none."""
        ...

    @property
    def partitions(self) -> Sequence[Partition]: ...


def tier_of(usable_vram_bytes: int) -> Tier:
    """The highest tier whose floor is met."""
    assert usable_vram_bytes >= 0
    return next(tier for tier in reversed(TIERS) if usable_vram_bytes >= tier.floor_bytes)


def usable_vram_bytes(gpus: Iterable[Accelerator]) -> int:
    """The largest amount of GPU memory that one engine of this machine can use, as this module's head says."""
    whole: dict[str, int] = {}
    largest_partition = 0
    for gpu in gpus:
        if gpu.partitioned:
            largest_partition = max([largest_partition, *(part.memory_bytes or 0 for part in gpu.partitions)])
        else:
            whole[gpu.vendor] = whole.get(gpu.vendor, 0) + (gpu.memory_bytes or 0)
    return max([largest_partition, *whole.values()])


def standing(tier: Tier, attested_octo_a: int | None = None) -> Standing:
    """How a tier is to be shown. `attested_octo_a` is a verified attestation's stake, None where there is none."""
    if tier.stake_octo_a == 0:
        return "no stake needed"
    return "attested" if attested_octo_a is not None and attested_octo_a >= tier.stake_octo_a else "self-declared"


def describe(tier: Tier, attested_octo_a: int | None = None) -> str:
    """One line for people: `consumer (self-declared): LLMs of 7B to 13B; needs 8 GB of VRAM and 1,000 OCTO-A`."""
    how = standing(tier, attested_octo_a)
    if not tier.floor_bytes:
        return f"{tier.name} ({how}): {tier.models}"
    needs = f"needs {tier.floor_bytes // GIGABYTE} GB of VRAM and {tier.stake_octo_a:,} OCTO-A"
    return f"{tier.name} ({how}): {tier.models}; {needs}"
