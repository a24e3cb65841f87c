"""Who of those that fetch the same model at once takes which leaves from the ones that hold it whole. Sans-IO.

Each fetcher computes the same table from the names it knows, by rendezvous hashing (Thaler and Ravishankar, 1998): no
message says who takes what, and one that comes or goes moves only the leaves of its own share. What a share's owner has
fetched the others take from it, so a model leaves its first holder about once, however many want it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

GROUP_LEAVES_MAX: Final = 16
"""Neighbouring leaves go to one owner, so that it can ask for them in one run."""
GROUPS: Final = 64
"""At least so many groups, where there are leaves enough: shares come out about equal. The size of a group depends on
the model alone, so that all who share have the same groups, whoever each of them knows."""


def share_out(names: Collection[str], leaf_count: int) -> dict[str, int]:
    """The set of leaves (see models.bitmap) of each name; every leaf is in exactly one. Empty for no names."""
    shares = dict.fromkeys(sorted(names), 0)
    if not shares:
        return {}
    group_leaves = max(1, min(GROUP_LEAVES_MAX, leaf_count // GROUPS))
    keys = [(name, hashlib.sha256(name.encode())) for name in shares]
    for number, first in enumerate(range(0, leaf_count, group_leaves)):
        owner = max(keys, key=lambda pair: (_weight(pair[1], number), pair[0]))[0]
        count = min(group_leaves, leaf_count - first)
        shares[owner] |= ((1 << count) - 1) << first
    return shares


def _weight(key: hashlib._Hash, group: int) -> bytes:
    mixed = key.copy()
    mixed.update(group.to_bytes(8, "big"))
    return mixed.digest()
