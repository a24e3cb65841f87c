"""Metrics: what is counted, how many series there can be, and that the import is paid only when used."""

from __future__ import annotations

import subprocess
import sys

from octonode.errors import TABLE
from octonode.hardware.facts import GpuLive
from octonode.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_task_counts_outcome_tokens_first_token_and_speed() -> None:
    metrics = Metrics("0.1.0")
    metrics.task_ended("asked", "completed", seconds=2.5, first_token_seconds=0.5, tokens_in=7, tokens_out=21)
    assert value(metrics, "octonode_tasks_total", role="asked", outcome="completed") == 1
    assert value(metrics, "octonode_tokens_total", role="asked", direction="in") == 7
    assert value(metrics, "octonode_tokens_total", role="asked", direction="out") == 21
    assert value(metrics, "octonode_first_token_seconds_sum", role="asked") == 0.5
    assert value(metrics, "octonode_tokens_per_second_sum", role="asked") == 10  # 20 tokens in 2 s
    assert value(metrics, "octonode_build_info", version="0.1.0") == 1


def test_a_task_without_a_token_leaves_the_histograms_of_tokens_alone() -> None:
    metrics = Metrics()
    metrics.task_ended("served", "failed", seconds=1.0)
    assert value(metrics, "octonode_tasks_total", role="served", outcome="failed") == 1
    assert value(metrics, "octonode_first_token_seconds_count", role="served") is None


def test_what_an_alert_divides_by_is_there_before_the_first_task() -> None:
    metrics = Metrics()
    assert value(metrics, "octonode_tasks_total", role="served", outcome="failed") == 0
    assert value(metrics, "octonode_tokens_total", role="asked", direction="out") == 0


def test_peers_cannot_make_series() -> None:
    metrics = Metrics()
    before = metrics.exposition().count(b"\n")
    for number in range(1000):
        metrics.refused(f"MADE_UP_{number}")
        metrics.protocol_error(f"MADE_UP_{number}")
    assert value(metrics, "octonode_refusals_total", code="INTERNAL") == 1000
    assert metrics.exposition().count(b"\n") <= before + 4
    for code in TABLE:
        metrics.refused(code)
        metrics.protocol_error(code)
    assert metrics.exposition().count(b"\n") <= before + 4 * len(TABLE)


def test_gpu_readings_that_a_driver_does_not_give_are_left_out() -> None:
    metrics = Metrics()
    metrics.gpus([GpuLive("nvidia", 0, utilization_percent=97), GpuLive("nvidia", 1, 2, memory_used_bytes=5)])
    assert value(metrics, "octonode_gpu_utilization_percent", gpu="0") == 97
    assert value(metrics, "octonode_gpu_memory_used_bytes", gpu="0") is None
    assert value(metrics, "octonode_gpu_memory_used_bytes", gpu="1.2") == 5
    metrics.gpus([GpuLive("nvidia", 0, memory_bytes=7, temperature_celsius=63, power_watts=250.25)])
    assert value(metrics, "octonode_gpu_utilization_percent", gpu="0") == 97, "the last that was told"
    assert value(metrics, "octonode_gpu_memory_bytes", gpu="0") == 7
    assert value(metrics, "octonode_gpu_temperature_celsius", gpu="0") == 63
    assert value(metrics, "octonode_gpu_power_watts", gpu="0") == 250.25


def test_workers_are_counted_by_how_far_they_are_held() -> None:
    metrics = Metrics()
    metrics.isolation([("llama", "full"), ("llama", "full"), ("vllm", "off: a server of its own")])
    assert value(metrics, "octonode_workers", engine="llama", isolation="full") == 2
    assert value(metrics, "octonode_workers", engine="vllm", isolation="off") == 1
    metrics.isolation([("llama", "partial: seccomp: off (EINVAL)")])
    assert value(metrics, "octonode_workers", engine="llama", isolation="partial") == 1
    assert value(metrics, "octonode_workers", engine="vllm", isolation="off") is None, "it ended"


def test_two_nodes_of_one_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.refused("OVERLOADED")
    assert value(other, "octonode_refusals_total", code="OVERLOADED") is None


def test_the_module_alone_does_not_import_prometheus() -> None:
    code = "import sys, octonode.metrics; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
