"""What a node counts, for `/metrics` and the alert rules in configs/prometheus-rules.yml.

One `Metrics` a node, built by `node` and handed to whoever counts. A label never holds what a peer chose (no peer ids,
no model names): the number of series is bounded by this file and the error table. Prometheus' client costs 45 ms to
import, so it is imported when a `Metrics` is made and not before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Protocol

from octonode.errors import TABLE

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Role = Literal["asked", "served"]
"""`asked`: tasks this node put to an engine or a peer; `served`: tasks it took."""

Outcome = Literal["completed", "failed", "canceled", "rejected"]

FIRST_TOKEN_BUCKETS_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)
TASK_BUCKETS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 600)
SPEED_BUCKETS_TOKENS_PER_SECOND = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class GpuReading(Protocol):
    """One GPU or MIG instance: `hardware.facts.GpuLive`."""

    @property
    def label(self) -> str: ...

    @property
    def utilization_percent(self) -> int | None: ...

    @property
    def memory_used_bytes(self) -> int | None: ...

    @property
    def memory_bytes(self) -> int | None: ...

    @property
    def temperature_celsius(self) -> int | None: ...

    @property
    def power_watts(self) -> float | None: ...


class Metrics:
    """All counters of one node on a registry of its own; two nodes in one process do not meet."""

    def __init__(self, version: str = "") -> None:
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            Info,
            ProcessCollector,
            disable_created_metrics,
        )

        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of birth for each series would double them
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)  # memory, CPU seconds, open files: read from /proc at each scrape
        self.build = Info("octonode_build", "Version of this node", registry=r)
        self.build.info({"version": version})

        self.tasks = Counter("octonode_tasks", "Tasks ended", ["role", "outcome"], registry=r)
        self.task_seconds = Histogram(
            "octonode_task_seconds",
            "From request to terminal frame",
            ["role"],
            buckets=TASK_BUCKETS_SECONDS,
            registry=r,
        )
        self.first_token_seconds = Histogram(
            "octonode_first_token_seconds",
            "From request to first token",
            ["role"],
            buckets=FIRST_TOKEN_BUCKETS_SECONDS,
            registry=r,
        )
        self.tokens = Counter("octonode_tokens", "Tokens of ended tasks", ["role", "direction"], registry=r)
        self.tokens_per_second = Histogram(
            "octonode_tokens_per_second",
            "Speed of one answer after its first token",
            ["role"],
            buckets=SPEED_BUCKETS_TOKENS_PER_SECOND,
            registry=r,
        )
        self.tasks_open = Gauge("octonode_tasks_open", "Tasks now", ["state"], registry=r)
        self.refusals = Counter("octonode_refusals", "Requests refused, by error code", ["code"], registry=r)
        self.next_candidates = Counter("octonode_next_candidates", "Times the next candidate was asked", registry=r)

        self.peers = Gauge("octonode_peers", "Peers", ["state"], registry=r)
        self.gossip_dropped = Counter("octonode_gossip_dropped", "Gossip messages dropped", ["reason"], registry=r)
        self.protocol_errors = Counter(
            "octonode_protocol_errors", "Faults of peers, by error code", ["code"], registry=r
        )
        self.block_bytes = Counter("octonode_block_bytes", "Bytes of model blocks", ["direction"], registry=r)
        self.blocks_bad = Counter("octonode_blocks_bad", "Blocks fetched whose hash was wrong", registry=r)

        self.engine_crashes = Counter("octonode_engine_crashes", "Worker processes that died", ["engine"], registry=r)
        self.models_loaded = Gauge("octonode_models_loaded", "Models loaded now", registry=r)
        self._add_gpus(r)
        self.loop_lag_seconds = Gauge("octonode_loop_lag_seconds", "Lateness of the event loop, last seen", registry=r)
        self._touch()

    registry: CollectorRegistry

    def _add_gpus(self, r: CollectorRegistry) -> None:
        from prometheus_client import Gauge

        said = "As the driver says; 0.1 is the second MIG instance of GPU 0"
        self.gpu_utilization = Gauge("octonode_gpu_utilization_percent", said, ["gpu"], registry=r)
        self.gpu_memory_used = Gauge("octonode_gpu_memory_used_bytes", said, ["gpu"], registry=r)
        self.gpu_memory = Gauge("octonode_gpu_memory_bytes", said, ["gpu"], registry=r)
        self.gpu_temperature = Gauge("octonode_gpu_temperature_celsius", said, ["gpu"], registry=r)
        self.gpu_power = Gauge("octonode_gpu_power_watts", said, ["gpu"], registry=r)
        self.workers = Gauge("octonode_workers", "Loaded, by engine and isolation", ["engine", "isolation"], registry=r)

    def _touch(self) -> None:
        """Series that an alert divides by must be there, at 0, before the first event."""
        for role in ("asked", "served"):
            for outcome in ("completed", "failed", "canceled", "rejected"):
                self.tasks.labels(role, outcome)
            for direction in ("in", "out"):
                self.tokens.labels(role, direction)
        for direction in ("fetched", "served"):
            self.block_bytes.labels(direction)
        for state in ("connected", "known"):
            self.peers.labels(state)
        for state in ("queued", "running"):
            self.tasks_open.labels(state)

    def task_ended(
        self,
        role: Role,
        outcome: Outcome,
        *,
        seconds: float,
        first_token_seconds: float | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
    ) -> None:
        """Count one task; `first_token_seconds` is None where none was emitted."""
        self.tasks.labels(role, outcome).inc()
        self.task_seconds.labels(role).observe(seconds)
        self.tokens.labels(role, "in").inc(tokens_in)
        self.tokens.labels(role, "out").inc(tokens_out)
        if first_token_seconds is None:
            return
        self.first_token_seconds.labels(role).observe(first_token_seconds)
        decode_seconds = seconds - first_token_seconds
        if tokens_out > 1 and decode_seconds > 0:
            self.tokens_per_second.labels(role).observe((tokens_out - 1) / decode_seconds)

    def refused(self, code: str) -> None:
        self.refusals.labels(known_code(code)).inc()

    def protocol_error(self, code: str, count: int = 1) -> None:
        """Count faults of peers; what is no error code is no fault."""
        if code in TABLE:
            self.protocol_errors.labels(code).inc(count)

    def gpus(self, readings: Iterable[GpuReading]) -> None:
        """What is None leaves the last value of its series as it was."""
        for each in readings:
            for gauge, value in (
                (self.gpu_utilization, each.utilization_percent),
                (self.gpu_memory_used, each.memory_used_bytes),
                (self.gpu_memory, each.memory_bytes),
                (self.gpu_temperature, each.temperature_celsius),
                (self.gpu_power, each.power_watts),
            ):
                if value is not None:
                    gauge.labels(each.label).set(value)

    def isolation(self, workers: Iterable[tuple[str, str]]) -> None:
        """(engine, `full`, `partial: why` or `off: why`) of each loaded worker; those not named any more are gone."""
        counts: dict[tuple[str, str], int] = {}
        for engine, level in workers:
            key = (engine, level.partition(":")[0])
            counts[key] = counts.get(key, 0) + 1
        self.workers.clear()
        for (engine, level), count in counts.items():
            self.workers.labels(engine, level).set(count)

    def exposition(self) -> bytes:
        """The text a Prometheus server scrapes."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


def known_code(code: str) -> str:
    """`code`, or INTERNAL where a peer made one up."""
    return code if code in TABLE else "INTERNAL"
