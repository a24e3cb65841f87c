"""The probe of CPU, memory, disk and AMD cards, on files in a folder and on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import msgpack
import psutil

from octonode.hardware import amd, apple
from octonode.hardware.facts import Cpu, Gpu, Hardware, summary
from octonode.hardware.probe import probe
from octonode.protocol.announcement import HARDWARE_KEYS_MAX

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD  EPYC 9654  96-Core Processor
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512_vnni

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd sve\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="ascii")


def test_this_machine(home: Path) -> None:
    found = probe(home)
    assert found.memory_bytes > 2**27
    assert 0 < found.memory_available_bytes <= found.memory_bytes <= psutil.virtual_memory().total
    assert 0 < found.disk_free_bytes <= found.disk_total_bytes
    assert 1 <= found.cpu.cores_physical <= found.cpu.cores_logical == len(os.sched_getaffinity(0))
    assert found.cpu.model


def test_a_home_that_does_not_exist_has_the_disk_of_its_parent(tmp_path: Path) -> None:
    assert probe(tmp_path / "not" / "yet").disk_total_bytes == probe(tmp_path).disk_total_bytes > 0


def test_cpu_model_and_instruction_sets_are_of_the_first_processor(tmp_path: Path) -> None:
    write(tmp_path, {"cpuinfo": EPYC})
    cpu = probe(tmp_path, proc=tmp_path, sys_root=tmp_path).cpu
    assert cpu.model == "AMD EPYC 9654 96-Core Processor"
    assert cpu.instruction_sets == ("avx", "avx2", "fma", "f16c", "avx512", "avx512_vnni")


def test_arm_names_its_features_otherwise(tmp_path: Path) -> None:
    write(tmp_path, {"cpuinfo": ARM})
    assert probe(tmp_path, proc=tmp_path, sys_root=tmp_path).cpu.instruction_sets == ("neon", "sve")


def test_a_machine_that_tells_nothing_is_an_edge_node(tmp_path: Path) -> None:
    found = probe(tmp_path, proc=tmp_path / "none", sys_root=tmp_path / "none")
    assert found.cpu.model
    assert found.cpu.instruction_sets == ()
    assert [gpu for gpu in found.gpus if gpu.vendor == "amd"] == []


def test_the_limit_of_a_control_group_is_our_memory(tmp_path: Path) -> None:
    write(tmp_path, {"fs/cgroup/memory.max": "1073741824\n"})
    found = probe(tmp_path, sys_root=tmp_path)
    assert found.memory_bytes == 2**30
    assert found.memory_available_bytes <= 2**30
    write(tmp_path, {"fs/cgroup/memory.max": "max\n"})
    assert probe(tmp_path, sys_root=tmp_path).memory_bytes == psutil.virtual_memory().total


def test_amd_cards_by_sysfs(tmp_path: Path) -> None:
    card = "class/drm/card1/device"
    write(
        tmp_path,
        {
            "class/drm/card0/device/vendor": "0x8086\n",  # Intel's graphics
            "class/drm/card10/device/vendor": "0x1002\n",  # tells nothing more
            "class/drm/card1-DP-1/device/vendor": "0x1002\n",  # a connector, not a card
            f"{card}/vendor": "0x1002\n",
            f"{card}/product_name": "AMD Radeon PRO W7900\n",
            f"{card}/uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n",
            f"{card}/mem_info_vram_total": "51522830336\n",
            f"{card}/mem_info_vram_used": "31457280\n",
            f"{card}/gpu_busy_percent": "busy\n",  # not a number
            f"{card}/hwmon/hwmon3/temp1_input": "46000\n",
            f"{card}/hwmon/hwmon3/power1_input": "17500000\n",
        },
    )
    assert amd.probe(tmp_path) == (
        Gpu(
            vendor="amd",
            index=1,
            name="AMD Radeon PRO W7900",
            uuid="0000:03:00.0",
            memory_bytes=51522830336,
            memory_used_bytes=31457280,
            temperature_celsius=46,
            power_watts=17.5,
        ),
        Gpu(vendor="amd", index=10),
    )
    assert probe(tmp_path, sys_root=tmp_path).tier.name in ("prosumer", "enterprise")


def test_the_memory_of_rocm_processes(tmp_path: Path) -> None:
    proc = "class/kfd/kfd/proc"
    write(
        tmp_path,
        {
            f"{proc}/77/vram_12345": "1000\n",
            f"{proc}/77/vram_54321": "234\n",
            f"{proc}/77/sdma_12345": "9\n",
            f"{proc}/78/vram_12345": "?\n",
            f"{proc}/odd/vram_12345": "5\n",
        },
    )
    assert amd.process_bytes(tmp_path) == {77: 1234}
    assert amd.process_bytes(tmp_path / "none") == {}


def test_a_mac_shares_its_memory_with_its_gpu() -> None:
    """On recorded answers of sysctl: no Mac is here."""
    told = {"machdep.cpu.brand_string": "Apple M4 Max", "hw.memsize": str(64 * 2**30)}
    (gpu,) = apple.probe("darwin", told.get)
    assert (gpu.vendor, gpu.name, gpu.memory_bytes) == ("apple", "Apple M4 Max", 48 * 2**30)
    small = told | {"hw.memsize": str(24 * 2**30)}
    assert apple.probe("darwin", small.get)[0].memory_bytes == 16 * 2**30
    raised = told | {"iogpu.wired_limit_mb": str(60 * 1024)}
    assert apple.probe("darwin", raised.get)[0].memory_bytes == 60 * 2**30
    assert apple.probe("darwin", {"machdep.cpu.brand_string": "Intel(R) Core(TM) i9"}.get) == ()
    assert apple.probe("darwin", lambda name: None) == ()
    assert apple.probe("linux", told.get) == ()


def machine(*gpus: Gpu, **fields: object) -> Hardware:
    cpu = Cpu(
        "A CPU with a name " * 20, 96, 192, ("avx", "avx2", "fma", "f16c", "avx512", "avx512_vnni", "avx512_bf16")
    )
    sizes = {
        "memory_bytes": 2**44,
        "memory_available_bytes": 2**43,
        "disk_total_bytes": 2**50,
        "disk_free_bytes": 2**49,
    }
    return Hardware(cpu=cpu, gpus=gpus, **(sizes | fields))  # type: ignore[arg-type]


def test_a_summary_fits_an_announcement_and_shows_no_serial_number() -> None:
    gpus = tuple(
        Gpu("nvidia", n, "NVIDIA H100 " * 20, uuid="GPU-secret", memory_bytes=80 * 10**9, compute_capability=(9, 0))
        for n in range(8)
    )
    facts = summary(machine(*gpus, cuda_version="12.8"))
    assert len(facts) <= HARDWARE_KEYS_MAX
    assert len(msgpack.packb(facts)) <= 512
    assert "GPU-secret" not in str(facts)
    assert all(type(value) in (str, int, float, bool) for value in facts.values())
    assert facts["gpus"] == 8
    assert facts["vram_bytes"] == 640 * 10**9
    assert facts["standing"] == "self-declared"
    assert facts["compute_capability"] == "9.0"


def test_the_largest_gpu_is_named() -> None:
    facts = summary(
        machine(Gpu("amd", 0, "small", memory_bytes=1), Gpu("nvidia", 1, "large", memory_bytes=2), Gpu("amd", 2))
    )
    assert facts["gpu"] == "large"
    assert facts["mig"] is False


def test_a_machine_without_a_gpu_names_none() -> None:
    facts = summary(machine())
    assert facts["gpus"] == 0
    assert facts["standing"] == "no stake needed"
    assert "gpu" not in facts
