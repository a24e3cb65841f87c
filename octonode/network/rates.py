"""How often each peer may ask: token buckets, one a peer, bounded in number. Pure; time is `now_ms`."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

PEERS_MAX = 4096


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at_ms: int


class Rates:
    """Each key may take `burst` at once and `per_second` on the long run.

    At most `peers_max` keys are remembered; beyond that the one that asked longest ago is forgotten and starts full.
    """

    def __init__(self, per_second: float, burst: int, peers_max: int = PEERS_MAX) -> None:
        assert per_second > 0
        assert burst >= 1
        self._per_ms = per_second / 1000
        self._burst = float(burst)
        self._peers_max = peers_max
        self._buckets: dict[Hashable, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now_ms: int) -> int:
        """0 when it may go on; else the milliseconds after which it may."""
        bucket = self._buckets.pop(key, None) or _Bucket(self._burst, now_ms)
        elapsed_ms = max(0, now_ms - bucket.filled_at_ms)  # a clock set back gives nothing and takes nothing
        bucket.tokens = min(self._burst, bucket.tokens + elapsed_ms * self._per_ms)
        bucket.filled_at_ms = now_ms
        self._buckets[key] = bucket
        if len(self._buckets) > self._peers_max:
            del self._buckets[next(iter(self._buckets))]
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0
        return int((1 - bucket.tokens) / self._per_ms) + 1
