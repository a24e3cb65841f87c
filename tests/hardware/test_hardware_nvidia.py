"""The NVIDIA probe through the real binding, against a stand-in of ours for NVIDIA's library (fake_nvml.c).

Each case is a child process: the binding loads the library once a process, and by LD_LIBRARY_PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octonode.hardware.facts import Gpu, GpuPartition
from octonode.hardware.nvidia import NvidiaFacts

SOURCE = Path(__file__).with_name("fake_nvml.c")
PROBE = "from octonode.hardware.nvidia import probe; print(repr(probe()))"
INIT_FAILS = """
int nvmlInitWithFlags(unsigned flags) {{ (void)flags; return {code}; }}
"""


def build(folder: Path, source: str, *flags: str) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is needed: the Makefile names it among the prerequisites"
    file = folder / "nvml.c"
    file.write_text(source, encoding="ascii")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", library, file], check=True)
    return folder


def probed(folder: Path | None) -> NvidiaFacts:
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder)} if folder else dict(os.environ)
    done = subprocess.run([sys.executable, "-c", PROBE], env=environ, check=True, capture_output=True, text=True)
    names = {"NvidiaFacts": NvidiaFacts, "Gpu": Gpu, "GpuPartition": GpuPartition}
    found = eval(done.stdout, names)
    assert isinstance(found, NvidiaFacts)
    return found


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> NvidiaFacts:
    return probed(build(tmp_path_factory.mktemp("nvml"), SOURCE.read_text(encoding="ascii")))


def test_mig_shows_its_instances_and_empty_slots_are_left_out(fake: NvidiaFacts) -> None:
    gpu = fake.gpus[0]
    assert gpu.partitioned
    assert gpu.partitions == (
        GpuPartition("MIG-1", "Fake H100 MIG", 42144366592, 2001048576),
        GpuPartition("MIG-2", "Fake H100 MIG", 10468982784, 1048576),
    )


def test_a_field_that_is_not_supported_is_none_and_the_others_stand(fake: NvidiaFacts) -> None:
    gpu = fake.gpus[0]
    assert gpu.utilization_percent is None
    assert (gpu.name, gpu.uuid, gpu.index) == ("Fake H100 80GB", "GPU-1", 0)
    assert (gpu.memory_bytes, gpu.memory_used_bytes) == (85520809984, 1048576)
    assert (gpu.temperature_celsius, gpu.power_watts, gpu.compute_capability) == (41, 71.5, (9, 0))


def test_a_gpu_that_tells_its_name_alone_is_still_there(fake: NvidiaFacts) -> None:
    assert fake.gpus[1] == Gpu(vendor="nvidia", index=1, name="Fake Mute")


def test_a_function_that_the_driver_lacks_is_none(fake: NvidiaFacts) -> None:
    assert fake.driver is None
    assert fake.cuda_version == "12.8"
    assert fake.problem is None


def test_no_library_means_no_gpu_and_no_problem(tmp_path: Path) -> None:
    if probed(None).gpus:
        pytest.fail("this machine has an NVIDIA GPU: the case cannot be made here", pytrace=False)
    assert probed(tmp_path) == NvidiaFacts()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, None),  # DriverNotLoaded
        (18, "restart the machine"),  # LibRmVersionMismatch
        (4, "group that owns /dev/nvidia"),  # NoPermission
        (999, "does not answer"),  # Unknown
    ],
)
def test_a_driver_that_does_not_answer_says_what_to_do(tmp_path: Path, code: int, words: str | None) -> None:
    found = probed(build(tmp_path, INIT_FAILS.format(code=code)))
    assert found.gpus == ()
    if words is None:
        assert found.problem is None
    else:
        assert found.problem is not None
        assert words in found.problem


def test_gpus_that_fell_off_the_bus_are_counted_as_a_problem(tmp_path: Path) -> None:
    lost = "int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = &parent; return i == 0 ? 0 : 15; }"
    lines = SOURCE.read_text(encoding="ascii").splitlines()
    source = "\n".join(lost if "GetHandleByIndex_v2" in line else line for line in lines)
    found = probed(build(tmp_path, source))
    assert len(found.gpus) == 1
    assert found.problem == "2 of 3 NVIDIA GPUs do not answer; see: nvidia-smi"


def test_a_whole_gpu_tells_everything(fake: NvidiaFacts) -> None:
    assert fake.gpus[2] == Gpu(
        vendor="nvidia",
        index=2,
        name="Fake L40S",
        uuid="GPU-3",
        memory_bytes=48305799168,
        memory_used_bytes=5000000000,
        utilization_percent=87,
        temperature_celsius=63,
        power_watts=250.25,
        compute_capability=(8, 9),
    )


READ = """
from octonode.hardware.live import LiveReader
reader = LiveReader()
readings = [reader.read() for _ in range(3)]
reader.close()
reader.close()
after = reader.read()
first = readings[0]
print([each.gpus[2].utilization_percent for each in readings], after.gpus[2].utilization_percent)
print(sorted(first.process_bytes.items()))
for each in first.live:
    print(each.label, each.memory_used_bytes, each.utilization_percent, each.temperature_celsius, each.power_watts)
"""


def readings(folder: Path) -> list[str]:
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_NVML_STEP": "1"}
    done = subprocess.run([sys.executable, "-c", READ], env=environ, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("flags", [(), ("-DOLD_DRIVER",)], ids=["driver of today", "driver before 510"])
def test_a_reading_is_taken_anew_each_time_and_tells_the_memory_of_processes(tmp_path: Path, flags: tuple[str]) -> None:
    loads, processes, *gpus = readings(build(tmp_path, SOURCE.read_text(encoding="ascii"), *flags))
    assert loads == "[87, 88, 89] 90", "it opens the driver again after it was closed"
    # 4242 is on the L40S and on a MIG instance; what 4243 holds the driver does not say
    assert processes == "[(4242, 5000000000), (4244, 7)]"
    assert gpus == [
        "0 1048576 None 41 71.5",
        "0.0 2001048576 None None None",
        "0.1 1048576 None None None",
        "1 None None None None",
        "2 5000000000 87 63 250.25",
    ]


def test_without_a_driver_a_reading_is_empty(tmp_path: Path) -> None:
    code = "from octonode.hardware.nvidia import Session; s = Session(); print(s.read(), s.close(), s.read())"
    environ = {**os.environ, "LD_LIBRARY_PATH": str(build(tmp_path, INIT_FAILS.format(code=9)))}
    done = subprocess.run([sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "((), {}) None ((), {})"
