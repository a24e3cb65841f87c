"""vLLM's processes under the supervisor: started, watched, killed, started again, ended without a trace."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio

from octonode.config_engines import VllmConfig
from octonode.engines.contract import Pieces
from octonode.engines.servers.vllm import VllmServer
from octonode.errors import EngineCrashed, OctonodeError

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.timeout(900)]
ROOT = "bafy-test-root"
LONG = "Tell me about the sea."
"""To which this model never finds an end."""


def processes_of(status):
    first = psutil.Process(status.pid)
    return [first, *first.children(recursive=True)]


async def test_a_life_with_a_killed_worker_in_it(load, supervise, ask, generate, settle):
    """One long test, since each start takes half a minute."""
    async with supervise(load) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        facts, status = engine.facts, supervisor.status()[0]
        assert (facts.engine, facts.backend, facts.context_tokens, facts.parallel) == ("vllm", "cpu", 512, 4)
        assert facts.build.startswith("vllm 0.")
        assert facts.quantization == "bfloat16"
        assert "loopback only" in status.sandbox
        before = processes_of(status)
        environment = psutil.Process(status.pid).children()[0].environ()
        assert environment["HF_HUB_OFFLINE"] == "1"
        assert not any(name.startswith("OCTONODE") for name in environment)
        directory = Path(os.readlink(f"/proc/{status.pid}/cwd"))

        async with engine.generate(ask(LONG, max_tokens=400)) as events:
            await settle(lambda: (told := supervisor.status()[0].server_load) is not None and told.running == 1)
            assert await anext(events)
        await settle(lambda: supervisor.status()[0].server_load.running == 0)
        assert supervisor.status()[0].resident_bytes > 500 << 20, "over all its processes"

        worker = next(each for each in before if "Worker" in each.name())
        answer = generate.new_answer()

        def at_the_fourth_piece(event):
            if isinstance(event, Pieces) and len(answer.pieces) >= 3 and worker.is_running():
                os.kill(worker.pid, signal.SIGKILL)

        with pytest.raises(EngineCrashed) as caught:
            await generate(engine, ask(LONG, max_tokens=400), answer, at_the_fourth_piece)
        assert caught.value.code == "ENGINE_CRASHED"
        assert caught.value.detail["stderr_tail"]
        again = await supervisor.wait_ready(ROOT)
        assert (await generate(again, ask(max_tokens=3))).finished.tokens_out == 3
        assert supervisor.status()[0].crashes == 1
        assert not any(each.is_running() for each in before)
        assert not directory.exists()
        last = processes_of(supervisor.status()[0])
    assert not any(each.is_running() for each in last)


PARSE = """
import sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
print(arguments.tensor_parallel_size, arguments.pipeline_parallel_size, arguments.distributed_executor_backend,
      arguments.quantization, arguments.speculative_config["method"], arguments.uds, arguments.enable_prefix_caching)
"""


async def test_vllm_knows_every_option_of_ours(load, python, tmp_path):
    """What one machine without a GPU cannot run, its own parser of the command line takes at least."""
    settings = VllmConfig(
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        distributed_executor_backend="ray",
        ray_address="10.0.0.1:6379",
        quantization="fp8",
        speculative_ngram_tokens=4,
        enable_prefix_caching=False,
        enforce_eager=True,
    )
    launch = await VllmServer(settings, python).launch(load, tmp_path)
    own = launch.command[launch.command.index("vllm.entrypoints.openai.api_server") + 1 :]
    environment = {**launch.environment, "PATH": "/usr/bin:/bin"}
    done = await trio.run_process(
        [python, "-P", "-c", PARSE, *own], env=environment, capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert done.stdout.decode().splitlines()[-1] == "2 2 ray fp8 ngram http.sock False"


async def test_what_vllm_cannot_do_is_told_with_its_own_words(load, supervise, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["NoSuchModel"]}', encoding="utf-8")
    policy_load = replace(load, model_path=tmp_path / "model")
    async with supervise(policy_load, policy=_once()) as supervisor:
        with pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready(ROOT)
        assert caught.value.code == "ENGINE_CRASHED"
        assert "ended with status 1" in caught.value.message
        assert caught.value.detail["stderr_tail"]


def _once():
    from tests.vllm.conftest import PATIENT

    return replace(PATIENT, crashes_before_quarantine=1)
