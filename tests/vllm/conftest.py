"""The real vLLM, as it is built for processors, with the real SmolLM2 as SafeTensors: `make test-vllm`."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from octonode.config import EnginesConfig
from octonode.config_engines import VllmConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.plan import Policy
from octonode.engines.servers.openai_http import OpenAiServer
from octonode.engines.servers.registry import ServerSettings
from octonode.engines.servers.vllm import VllmServer
from octonode.engines.supervisor import Supervisor
from tests.engines.conftest import ask, generate, settle  # noqa: F401 - fixtures

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"
MODEL = REPOSITORY / "build" / "models" / "smollm2-safetensors"
ROOT = "bafy-test-root"
SETTINGS = VllmConfig(dtype="bfloat16", enforce_eager=True)
PATIENT = Policy(load_timeout_seconds=400.0, back_off_first_seconds=0.01, back_off_max_seconds=0.05)
READY_SECONDS = 400.0


@pytest.fixture(scope="session")
def python() -> str:
    if not PYTHON.is_file():
        pytest.fail(f"{PYTHON} is missing: run `make test-vllm`, which makes it", pytrace=False)
    return str(PYTHON)


@pytest.fixture(scope="session")
def model() -> Path:
    if not (MODEL / "model.safetensors").is_file():
        pytest.fail(f"{MODEL} is missing: run `python -m scripts.get_models smollm2-safetensors`", pytrace=False)
    return MODEL


@pytest.fixture
def load(model: Path) -> LoadRequest:
    return LoadRequest("vllm", model, ROOT, 512, 4, 2)


@pytest.fixture
def supervise(tmp_path: Path, python: str):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def run(
        load: LoadRequest, *, policy: Policy = PATIENT, vllm: VllmConfig = SETTINGS
    ) -> AsyncIterator[Supervisor]:
        settings = EnginesConfig(pythons=(f"vllm={python}",))
        servers = ServerSettings(vllm=vllm)
        supervisor = Supervisor(settings, directory=tmp_path / "workers", policy=policy, servers=servers)
        with trio.fail_after(900):
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.run)
                supervisor.set_desired({load.model_root: load})
                yield supervisor
                nursery.cancel_scope.cancel()

    return run


@pytest.fixture(scope="session")
def lasting_server(model: Path, python: str, lasting_children: set[int]) -> Iterator[str]:
    """URL of one vLLM that many tests share, started by the very command line and environment of ours."""
    with tempfile.TemporaryDirectory(prefix="octonode-vllm-") as name:
        kind = VllmServer(SETTINGS, python)
        launch = trio.run(kind.launch, LoadRequest("vllm", model, ROOT, 512, 4, 2), Path(name))
        with Path(name, "log").open("wb") as log:
            process = subprocess.Popen(launch.command, env=dict(launch.environment), cwd=name, stdout=log, stderr=log)
        lasting_children.add(process.pid)
        try:
            server = OpenAiServer(launch.address)
            deadline = time.monotonic() + READY_SECONDS
            while trio.run(server.health) != "well":
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"vLLM did not start:\n{Path(name, 'log').read_text('utf-8')[-3000:]}", pytrace=False)
                time.sleep(0.5)
            yield f"unix:{launch.address.socket_path}"
        finally:
            below = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(30)
            for each in below:
                if each.is_running():
                    each.kill()
