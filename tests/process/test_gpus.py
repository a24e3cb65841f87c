"""A daemon whose driver is our stand-in for NVIDIA's (tests/hardware/fake_nvml.c), and one without room for a model."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from octonode.hardware.live import LiveReader
from tests.process.fleet import Fleet, fails, octonode, works

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "hardware" / "fake_nvml.c"
SMOLLM2 = ROOT / "build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which it is found."""
    folder = tmp_path_factory.mktemp("driver")
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is needed: the Makefile names it among the prerequisites"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", SOURCE], check=True)
    return {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML_STEP": "1"}


def test_live_figures_and_isolation_are_shown_everywhere(
    fleet: Fleet, tmp_path: Path, scripted: Path, driver: dict[str, str]
) -> None:
    node = fleet.start(tmp_path / "home", "--model", f"file:{scripted}", extra=driver)
    fleet.event(node, "model", state="serving")
    first = fleet.until(lambda: [each for each in works(node.home, "status")["gpus"] if each["gpu"] == "2"])[0]
    assert first["name"] == "Fake L40S"
    assert (first["memory_bytes"], first["memory_used_bytes"]) == (48305799168, 5000000000)
    assert (first["temperature_celsius"], first["power_watts"]) == (63, 250.25)
    fleet.until(lambda: works(node.home, "status")["gpus"][-1]["utilization_percent"] > first["utilization_percent"])
    facts = works(node.home, "status")
    assert [each["gpu"] for each in facts["gpus"]] == ["0", "0.0", "0.1", "1", "2"]
    assert facts["gpus"][3]["memory_bytes"] is None, "what the driver does not say is null"
    (worker,) = facts["workers"]
    assert (worker["engine"], worker["state"], worker["isolation"]) == ("scripted", "ready", "full")
    assert worker["memory_bytes"] > 0
    text = octonode(node.home, "status").out
    assert "GPU 2 Fake L40S" in text
    assert "5.0 GB of 48.3 GB  63 °C  250 W" in text
    assert f"worker {worker['pid']} scripted" in text
    assert "isolation full" in text
    metrics = httpx.get(f"{node.api}/metrics").text
    assert 'octonode_gpu_temperature_celsius{gpu="2"} 63.0' in metrics
    assert 'octonode_gpu_memory_bytes{gpu="0.0"} 4.2144' in metrics
    assert 'octonode_workers{engine="scripted",isolation="full"} 1.0' in metrics
    found = {each["check"]: each for each in octonode(node.home, "doctor", "--json").json["findings"]}
    assert "Fake H100 80GB" in found["driver"]["summary"]
    assert "for CUDA 12.8" in found["driver"]["summary"]
    assert "/cu128 " in found["engine xllamacpp"]["fix"], "it is there, and built for the CPU alone"
    assert "isolation full" in next(each["summary"] for name, each in found.items() if name.startswith("worker"))
    assert fleet.stop(node) == 0


@pytest.mark.model
def test_a_model_that_needs_more_memory_than_there_is(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    if LiveReader().read().gpus:
        pytest.fail("this machine has a GPU: what is asked for here may fit it", pytrace=False)
    settings = {"OCTONODE_ENGINES_PARALLEL": "200000", "OCTONODE_ENGINES_CONTEXT_TOKENS": "8192"}
    node = fleet.start(tmp_path / "home", "--model", f"file:{scripted}", extra=settings)
    fleet.event(node, "model", state="serving")
    works(node.home, "models", "add", str(SMOLLM2), "--name", "smol")
    message = fails(node.home, "models", "serve", "smol", code="MODEL_UNAVAILABLE", exit_code=4)
    assert "it needs " in message
    assert "are missing; " in message
    assert "lower engines.parallel" in message
    facts = works(node.home, "status")
    assert [(each["engine"], each["state"]) for each in facts["workers"]] == [("scripted", "ready")], "undisturbed"
    assert fleet.stop(node) == 0
