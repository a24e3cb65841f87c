"""Which devices processes may use, how they are named to them, and how partitions read."""

from __future__ import annotations

import pytest

from octonode.hardware.devices import Device, devices_of, environment
from octonode.hardware.facts import Gpu, GpuLive, GpuPartition, live

WHOLE = Gpu("nvidia", 0, "L40S", uuid="GPU-aaaa-1", memory_bytes=48, memory_used_bytes=5)
OTHER = Gpu("nvidia", 2, "L4", uuid="GPU-aabb-2", memory_bytes=24)
MUTE = Gpu("nvidia", 1, "mute")
SPLIT = Gpu(
    "nvidia",
    3,
    "H100",
    uuid="GPU-cccc",
    memory_bytes=80,
    partitioned=True,
    partitions=(
        GpuPartition("MIG-1", "MIG 3g.40gb", 40, 2),
        GpuPartition(None, "MIG 1g.10gb", 10),
        GpuPartition("MIG-3", None, None),
    ),
)
AMD = (Gpu("amd", 1, uuid="0000:83:00.0", memory_bytes=64), Gpu("amd", 4, uuid="0000:03:00.0", memory_bytes=32))
ALL = (WHOLE, MUTE, OTHER, SPLIT, *AMD)


def ids(*gpus: Gpu, **environ: str) -> list[str]:
    return [each.id for each in devices_of(gpus, environ)]


def test_whole_gpus_go_by_index_and_mig_instances_by_uuid() -> None:
    assert ids(*ALL) == ["cuda:0", "cuda:2", "cuda:MIG-1", "hip:0", "hip:1"]
    first, *_, mig, small, large = devices_of(ALL, {})
    assert first == Device("cuda:0", "nvidia", "L40S", 48, 5)
    assert mig == Device("cuda:MIG-1", "nvidia", "MIG 3g.40gb", 40, 2, alone=True)
    assert (small.memory_bytes, large.memory_bytes) == (32, 64), "AMD cards rank by PCI address"


@pytest.mark.parametrize(
    ("wish", "left"),
    [
        ("2", ["cuda:2"]),
        ("2,0", ["cuda:2", "cuda:0"]),
        ("GPU-aab", ["cuda:2"]),
        ("GPU-aa", []),  # means two of them
        ("MIG-1", ["cuda:MIG-1"]),
        ("0,7,2", ["cuda:0"]),  # what is not there ends the list
        ("", []),
        ("-1", []),
    ],
)
def test_what_the_daemon_may_not_see_is_left_out(wish: str, left: list[str]) -> None:
    assert ids(WHOLE, OTHER, SPLIT, CUDA_VISIBLE_DEVICES=wish) == left


def test_each_vendor_has_its_variable() -> None:
    assert ids(WHOLE, *AMD, HIP_VISIBLE_DEVICES="1") == ["cuda:0", "hip:1"]
    assert ids(WHOLE, *AMD, ROCR_VISIBLE_DEVICES="1") == ["cuda:0"], "their owner has placed them"


def test_a_process_sees_its_devices_and_no_others() -> None:
    assert environment(()) == {}
    assert environment(("cuda:2", "cuda:0")) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "2,0",
        "HIP_VISIBLE_DEVICES": "-1",
    }
    assert environment(("hip:1",))["HIP_VISIBLE_DEVICES"] == "1"
    assert environment(("hip:1",))["CUDA_VISIBLE_DEVICES"] == ""
    none = environment(("cpu",))
    assert (none["CUDA_VISIBLE_DEVICES"], none["HIP_VISIBLE_DEVICES"]) == ("", "-1")


def test_mig_instances_are_readings_of_their_own() -> None:
    readings = live([WHOLE, SPLIT])
    assert [each.label for each in readings] == ["0", "3", "3.0", "3.1", "3.2"]
    assert readings[2] == GpuLive("nvidia", 3, 0, "MIG 3g.40gb", 40, 2)
    assert readings[0].memory_used_bytes == 5
