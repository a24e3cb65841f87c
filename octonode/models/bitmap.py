"""Which leaves are held: bit `i % 8` of byte `i // 8` is leaf i. As integers they are fast sets of leaves. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterator


def size_of(leaf_count: int) -> int:
    """Bytes of a bitmap of `leaf_count` leaves."""
    return (leaf_count + 7) // 8


def full(leaf_count: int) -> int:
    return (1 << leaf_count) - 1


def from_bytes(data: bytes, leaf_count: int) -> int:
    """The set in `data`; a short bitmap means that the rest is missing, bits behind the last leaf are dropped."""
    return int.from_bytes(data, "little") & full(leaf_count)


def to_bytes(bits: int, leaf_count: int) -> bytes:
    return bits.to_bytes(size_of(leaf_count), "little")


def lowest(bits: int) -> int:
    """The first leaf of a set that is not empty."""
    assert bits
    return (bits & -bits).bit_length() - 1


def members(bits: int) -> Iterator[int]:
    while bits:
        number = lowest(bits)
        yield number
        bits &= bits - 1


def run_length(bits: int, first: int, longest: int) -> int:
    """How many leaves from `first` on are in the set without a gap, at most `longest`."""
    window = (bits >> first) & full(longest)
    gaps = ~window & full(longest)
    return lowest(gaps) if gaps else longest
