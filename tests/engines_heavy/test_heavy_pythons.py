"""A daemon in .venv, which has no torch, drives workers in .venv-engines: by `engines.pythons` alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines_heavy.working import ROOT

pytestmark = pytest.mark.process
LIGHT = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "python"

DAEMON = """
import importlib.util, json, sys
from pathlib import Path
import trio
from octonode.config import EnginesConfig
from octonode.engines.contract import Made
from octonode.engines.select import load_request
from octonode.engines.supervisor import Supervisor
from octonode.protocol.work.image import ImageRequest

assert importlib.util.find_spec("torch") is None, "this environment is the light one"
folder, python, root, directory = sys.argv[1:]
settings = EnginesConfig(pythons=(f"diffusers={python}",), threads=1)

async def main():
    load = load_request(
        settings, model_root=root, model_path=None, model_folder=Path(folder), model_format="safetensors",
        category="diffusion", architecture="StableDiffusionPipeline",
    )
    supervisor = Supervisor(settings, directory=Path(directory))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.set_desired({root: load})
        engine = await supervisor.wait_ready(root)
        async with engine.make(ImageRequest("a boat", seed=1, steps=1)) as events:
            made = [event.result async for event in events if isinstance(event, Made)]
        layers = supervisor.status()[0].sandbox
        print(json.dumps([load.engine, engine.facts.build, len(made[0].images[0]), layers]))
        nursery.cancel_scope.cancel()

trio.run(main)
"""


def test_a_light_daemon_drives_a_heavy_worker(model_folder, tmp_path):  # type: ignore[no-untyped-def]
    if not LIGHT.is_file():
        pytest.fail(f"{LIGHT} is missing; run: make setup")
    command = [str(LIGHT), "-c", DAEMON, str(model_folder("tiny-sd")), sys.executable, ROOT, str(tmp_path / "workers")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=environment)
    assert done.returncode == 0, done.stderr
    engine, build, size, layers = json.loads(done.stdout)
    assert engine == "diffusers"
    assert "torch" in build
    assert size > 100
    assert "seccomp" in layers
