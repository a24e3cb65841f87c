"""TensorRT-LLM's server through the supervisor, with a strict stand-in for `trtllm-serve`: no GPU is met here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio

from octonode.config import EnginesConfig
from octonode.config_engines import TensorRtConfig
from octonode.engines.contract import GenerateRequest, LoadRequest, Pieces
from octonode.engines.plan import Policy
from octonode.engines.select import BY_NAME
from octonode.engines.servers.registry import ServerSettings
from octonode.engines.supervisor import Supervisor
from octonode.errors import EngineCrashed, OctonodeError
from tests.engines.test_engine_conformance import (  # noqa: F401 - collected here, over the engine of this file
    test_a_greedy_answer_is_the_same_twice_and_has_its_facts,
    test_a_prompt_over_the_context_is_refused_and_costs_nothing,
    test_a_stop_string_ends_the_answer_and_is_not_in_it,
    test_an_answer_ends_where_the_context_does,
    test_cancelling_the_reader_cancels_a_waiting_request,
    test_leaving_early_cancels_decoding,
    test_max_tokens_ends_the_answer,
    test_more_requests_than_slots_all_end,
    test_pieces_join_to_whole_characters,
    test_requests_run_at_the_same_time,
    test_sampling_repeats_with_its_seed_and_not_without,
)

pytestmark = pytest.mark.process
ROOT = "bafy-test-root"
QUICK = Policy(silence_timeout_seconds=30.0, back_off_first_seconds=0.01, back_off_max_seconds=0.05)
MakeProgram = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path) -> MakeProgram:
    """Path of a `trtllm-serve` that plays a release, with faults by name."""

    def make(release: str = "1.2", **faults: float) -> str:
        path = tmp_path / "trtllm-serve"
        given = " ".join(f"--fault {name}={number}" for name, number in faults.items())
        stand_in = f"exec {sys.executable} -m octonode.testing.trtllm_serve --release {release} {given} -- "
        path.write_text(f'#!/bin/sh\n{stand_in}"$@"\n', encoding="utf-8")
        path.chmod(0o700)
        return str(path)

    return make


@pytest.fixture
def load(tmp_path: Path) -> LoadRequest:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}', encoding="utf-8")
    return LoadRequest("tensorrt-llm", folder, ROOT, 512, 2)


@pytest.fixture
def supervise(tmp_path: Path, program: MakeProgram):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def run(
        load: LoadRequest, path: str = "", *, policy: Policy = QUICK, settings: TensorRtConfig | None = None
    ) -> AsyncIterator[Supervisor]:
        pace = {"token_seconds": 1 / float(rate)} if (rate := load.options.get("tokens_per_second")) else {}
        engines = EnginesConfig(pythons=(f"tensorrt-llm={path or program(**pace)}",))
        servers = ServerSettings(tensorrt_llm=settings or TensorRtConfig())
        supervisor = Supervisor(engines, directory=tmp_path / "workers", policy=policy, servers=servers)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.run)
                supervisor.set_desired({load.model_root: load})
                yield supervisor
                nursery.cancel_scope.cancel()

    return run


@pytest.fixture
def any_engine(load: LoadRequest):  # type: ignore[no-untyped-def]
    def make(*, context_tokens: int = 512, parallel: int = 2, **options: float) -> LoadRequest:
        return replace(load, context_tokens=context_tokens, parallel=parallel, options=dict(options))

    return make


async def state_of(supervisor, state):
    while (status := supervisor.status()[0]).state != state:
        await supervisor.wait_changed(supervisor.changes)
    return status


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def family(pid):
    return [each.pid for each in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]


@pytest.mark.parametrize("release", ["0.18.2", "1.2"])
async def test_each_release_gets_the_options_that_it_knows(supervise, load, program, ask, generate, release):
    settings = TensorRtConfig(tensor_parallel_size=2, backend="pytorch")
    async with supervise(load, program(release, load_seconds=0.5), settings=settings) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        assert engine.facts.build == f"tensorrt-llm {release}"
        assert engine.facts.flags["note"] == BY_NAME["tensorrt-llm"].tested
        assert engine.facts.quantization == "fp8"
        command = psutil.Process(supervisor.status()[0].pid).children()[0].cmdline()
        assert ("--extra_llm_api_options" in command) == (release == "1.2")
        assert ("--kv_cache_free_gpu_memory_fraction" in command) == (release == "0.18.2")
        assert command[command.index("--tp_size") + 1] == "2"
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3
        prompted = await generate(engine, GenerateRequest((), 3, 0.0, prompt="three bare words"))
        assert prompted.finished.tokens_in == 3
        assert "loopback only" in supervisor.status()[0].sandbox


async def test_an_option_that_a_release_lacks_is_refused_before_it_starts(supervise, load, program):
    settings = TensorRtConfig(expert_parallel_size=2)
    async with supervise(load, program("0.18.2"), settings=settings) as supervisor:
        with pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready(ROOT)
        assert caught.value.code == "CONFIG"
        assert "--ep_size" in caught.value.message
        assert supervisor.status()[0].crashes == 1, "trying again cannot help"


@pytest.mark.parametrize("arguments", [("--no_such_option", "1"), ("--uds", "x")])
async def test_the_stand_in_takes_no_argument_that_its_release_lacks(supervise, load, arguments):
    settings = TensorRtConfig(extra_arguments=arguments)
    policy = replace(QUICK, crashes_before_quarantine=2)
    async with supervise(load, policy=policy, settings=settings) as supervisor:
        with pytest.raises(EngineCrashed) as caught:
            await supervisor.wait_ready(ROOT)
        assert "ended with status 2" in caught.value.message
        assert f"No such option: {arguments[0]}" in caught.value.detail["stderr_tail"]


async def test_a_program_that_is_not_there_is_told(supervise, load, tmp_path):
    async with supervise(load, path=str(tmp_path / "none")) as supervisor:
        with pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready(ROOT)
        assert caught.value.code == "CONFIG"
        assert "engines.pythons" in caught.value.message


async def test_a_load_that_takes_too_long_is_ended_with_all_its_processes(supervise, load, program):
    policy = replace(QUICK, load_timeout_seconds=3.0, crashes_before_quarantine=1)
    async with supervise(load, program(load_seconds=600), policy=policy) as supervisor:
        with pytest.raises(EngineCrashed) as caught:
            await supervisor.wait_ready(ROOT)
        assert "load_timeout_seconds" in caught.value.message


async def test_a_busy_server_is_a_busy_engine_and_no_crash(supervise, load, program, ask, generate):
    async with supervise(load, path=program(busy=1)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        with pytest.raises(OctonodeError) as caught:
            await generate(engine, ask())
        assert caught.value.code == "OVERLOADED"
        assert caught.value.retry_after_seconds
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3
        assert supervisor.status()[0].crashes == 0


async def test_a_broken_stream_of_a_living_server_fails_its_request_alone(supervise, load, program, ask, generate):
    async with supervise(load, path=program(break_at=4)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        answer = generate.new_answer()
        with pytest.raises(OctonodeError) as caught:
            await generate(engine, ask(), answer)
        assert caught.value.code == "ENGINE_FAILED"
        assert len(answer.pieces) == 4
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3
        assert supervisor.status()[0].crashes == 0


async def test_a_server_that_dies_mid_stream_is_a_crash_that_takes_its_ranks_along(
    supervise, load, program, ask, generate
):
    async with supervise(load, path=program(die_at=4)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        before = family(supervisor.status()[0].pid)
        answer = generate.new_answer()
        with pytest.raises(EngineCrashed) as caught:
            await generate(engine, ask(), answer)
        assert len(answer.pieces) == 4
        assert caught.value.detail["signal"] == "SIGKILL"
        assert "the engine has died" in caught.value.detail["stderr_tail"]
        again = await supervisor.wait_ready(ROOT)
        assert len(before) == 3, "keeper, server, and a rank in a session of its own"
        assert not any(map(psutil.pid_exists, before))
        assert (await generate(again, ask(max_tokens=3))).finished.tokens_out == 3
        assert supervisor.status()[0].crashes == 1


async def test_a_killed_keeper_takes_the_server_along(supervise, load, ask, generate, settle):
    async with supervise(replace(load, options={"tokens_per_second": 50})) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        keeper, server, rank = family(supervisor.status()[0].pid)
        await settle(lambda: supervisor.status()[0].resident_bytes > 0)

        def at_a_piece(event):
            if isinstance(event, Pieces) and alive(keeper):
                os.kill(keeper, signal.SIGKILL)

        with pytest.raises(EngineCrashed):
            await generate(engine, ask("A long story.", max_tokens=400), None, at_a_piece)
        await supervisor.wait_ready(ROOT)
        assert not alive(server)
        assert not alive(rank)


async def test_its_metrics_are_read(supervise, load, ask, settle):
    async with supervise(replace(load, options={"tokens_per_second": 20})) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        async with engine.generate(ask("A long story.", max_tokens=400)):
            await settle(lambda: (told := supervisor.status()[0].server_load) is not None and told.running == 1)
            told = supervisor.status()[0].server_load
            assert told.cache_usage == 0.01
            assert told.steps > 0
        await settle(lambda: supervisor.status()[0].resident_bytes > 0)


async def test_an_answer_that_goes_on_is_refused_for_it_cannot(supervise, load, generate):
    async with supervise(load) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        messages = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hel"})
        with pytest.raises(OctonodeError) as caught:
            await generate(engine, GenerateRequest(messages, 3))
        assert caught.value.code == "UNSUPPORTED"


async def test_a_model_no_longer_wanted_ends_its_requests_first_and_leaves_nothing(supervise, load, ask):
    async with supervise(replace(load, options={"tokens_per_second": 50})) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        pids = family(supervisor.status()[0].pid)
        directory = Path(os.readlink(f"/proc/{pids[0]}/cwd"))
        async with engine.generate(ask("A story.", max_tokens=20)) as events:
            supervisor.set_desired({})
            assert supervisor.engine(ROOT) is None
            got = [event async for event in events]
        assert got[-1].tokens_out == 20
        while supervisor.status():
            await supervisor.wait_changed(supervisor.changes)
        assert not any(map(psutil.pid_exists, pids))
        assert not directory.exists()


DAEMON = """
import sys, trio
from pathlib import Path
from octonode.config import EnginesConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.supervisor import Supervisor

async def main():
    settings = EnginesConfig(pythons=("tensorrt-llm=" + sys.argv[2],))
    supervisor = Supervisor(settings, directory=Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.set_desired({"r": LoadRequest("tensorrt-llm", Path(sys.argv[1]), "r")})
        await supervisor.wait_ready("r")
        print(supervisor.status()[0].pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_server_dies_with_its_daemon_and_with_all_it_started(tmp_path: Path, settle, program):
    daemon = subprocess.Popen(  # noqa: ASYNC220 - a moment's wait is fine here
        [sys.executable, "-c", DAEMON, str(tmp_path / "w"), program()], stdout=subprocess.PIPE, text=True
    )
    assert daemon.stdout is not None
    pid = int(await trio.to_thread.run_sync(daemon.stdout.readline))
    pids = family(pid)
    assert len(pids) == 3
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    await settle(lambda: not any(psutil.pid_exists(each) for each in pids))
