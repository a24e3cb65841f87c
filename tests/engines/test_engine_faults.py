"""What goes wrong in workers: crashes, hangs, failed loads. Real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import Pieces, Prefill
from octonode.engines.plan import Policy
from octonode.errors import EngineCrashed, NotFound, OctonodeError

pytestmark = pytest.mark.process
ROOT = "bafy-test-root"
QUICK = Policy(silence_timeout_seconds=30.0, back_off_first_seconds=0.01, back_off_max_seconds=0.05)


async def state_of(supervisor, state):
    """Waits for a state of the one model and returns its status."""
    while (status := supervisor.status()[0]).state != state:
        await supervisor.wait_changed(supervisor.changes)
    return status


@pytest.mark.parametrize(
    ("number", "pieces_before"), [(signal.SIGKILL, 0), (signal.SIGSEGV, 6)], ids=["at the first token", "mid-stream"]
)
async def test_a_worker_killed_mid_stream_fails_its_requests_and_is_replaced(
    any_engine, supervise, ask, generate, number, pieces_before
):
    async with supervise(any_engine(tokens_per_second=100, answer_tokens=10_000)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        first = supervisor.status()[0]
        answer = generate.new_answer()

        def at_that_piece(event):
            if isinstance(event, Pieces) and len(answer.pieces) >= pieces_before:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(first.pid, number)

        with pytest.raises(EngineCrashed) as caught:
            await generate(engine, ask("A long story.", max_tokens=400), answer, at_that_piece)
        assert len(answer.pieces) > pieces_before
        assert caught.value.code == "ENGINE_CRASHED"
        assert caught.value.detail["signal"] == number.name
        with pytest.raises(OctonodeError) as late:
            await generate(engine, ask())  # the handle of a dead worker says so
        assert late.value.code in ("ENGINE_CRASHED", "MODEL_UNAVAILABLE")
        again = await supervisor.wait_ready(ROOT)
        second = supervisor.status()[0]
        assert second.pid != first.pid
        assert second.crashes == 1
        assert not psutil.pid_exists(first.pid)
        assert (await generate(again, ask(max_tokens=3))).finished.tokens_out == 3


async def test_a_worker_killed_in_prefill_fails_its_request(any_engine, supervise, ask, generate):
    load = any_engine(prefill_tokens_per_second=50, prefill_chunk_tokens=8)
    async with supervise(load) as supervisor:
        engine = await supervisor.wait_ready(ROOT)

        def at_the_first_step(event):
            assert isinstance(event, Prefill)
            os.kill(pid, signal.SIGKILL)

        pid = supervisor.status()[0].pid
        with pytest.raises(EngineCrashed):
            await generate(engine, ask("red green blue white " * 80), None, at_the_first_step)


async def test_a_worker_killed_while_loading_is_started_again(any_engine, supervise):
    async with supervise(any_engine(load_seconds=0.3)) as supervisor:
        status = await state_of(supervisor, "starting")
        os.kill(status.pid, signal.SIGKILL)
        await supervisor.wait_ready(ROOT)
        assert supervisor.status()[0].crashes == 1


@pytest.mark.parametrize("at", [0, 5])
async def test_every_piece_before_a_crash_arrives_and_the_last_words_of_the_worker_too(
    scripted, supervise, ask, generate, at
):
    async with supervise(scripted(crash_at_piece=at, crash_signal="SIGSEGV")) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        answer = generate.new_answer()
        with pytest.raises(EngineCrashed) as caught:
            await generate(engine, ask(), answer)
        assert len(answer.pieces) == at
        assert caught.value.detail["signal"] == "SIGSEGV"
        assert f"crashing at piece {at}" in caught.value.detail["stderr_tail"]
        assert "SIGSEGV" in caught.value.message


async def test_a_stopped_worker_is_noticed_killed_and_replaced(any_engine, supervise, ask, generate):
    """SIGSTOP leaves the process and its socket alive: only the missing heartbeat tells."""
    policy = replace(QUICK, silence_timeout_seconds=2.5)
    async with supervise(any_engine(tokens_per_second=100, answer_tokens=10_000), policy=policy) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        pid = supervisor.status()[0].pid

        def at_a_piece(event):
            if isinstance(event, Pieces):
                os.kill(pid, signal.SIGSTOP)

        with pytest.raises(EngineCrashed) as caught:
            await generate(engine, ask("A long story.", max_tokens=400), None, at_a_piece)
        assert "hung" in caught.value.message
        assert not psutil.pid_exists(pid)
        again = await supervisor.wait_ready(ROOT)
        assert (await generate(again, ask(max_tokens=3))).finished.tokens_out == 3


@pytest.mark.parametrize("fault", [{"hang_at_piece": 2}, {"hang_in_prefill": True}])
async def test_an_engine_that_hangs_while_its_worker_beats_is_killed(scripted, supervise, ask, generate, fault):
    policy = replace(QUICK, no_progress_timeout_seconds=1.5)
    async with supervise(scripted(**fault), policy=policy) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        with pytest.raises(EngineCrashed) as caught:
            await generate(engine, ask())
        assert "no progress" in caught.value.message


async def test_slow_prefill_is_progress(scripted, supervise, ask, generate):
    """Twice as long as the watchdog's patience in all, but never without a step for that long."""
    policy = replace(QUICK, no_progress_timeout_seconds=1.5)
    load = scripted(prefill_tokens_per_second=20, prefill_chunk_tokens=2)
    async with supervise(load, policy=policy) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        answer = await generate(engine, ask("word " * 60, max_tokens=2))
        assert answer.finished.tokens_in == 60
        assert supervisor.status()[0].crashes == 0


async def test_a_model_that_always_crashes_is_quarantined_until_released(scripted, supervise):
    load = scripted(crash_at_load=True, crash_signal="SIGSEGV")
    async with supervise(load, policy=QUICK) as supervisor:  # by default at the third death at load
        with pytest.raises(EngineCrashed) as caught:
            await supervisor.wait_ready(ROOT)
        assert "SIGSEGV" in caught.value.message
        status = await state_of(supervisor, "quarantined")
        assert status.crashes == 3
        assert status.pid == 0
        assert "SIGSEGV" in status.reason
        assert "crashing at load" in status.stderr_tail
        assert supervisor.engine(ROOT) is None
        supervisor.release(ROOT)
        with pytest.raises(EngineCrashed):
            await supervisor.wait_ready(ROOT)
        assert (await state_of(supervisor, "quarantined")).crashes == 3
        supervisor.set_desired({ROOT: scripted()})  # wanted differently: it gets a fresh chance
        await supervisor.wait_ready(ROOT)
        assert supervisor.status()[0].crashes == 0


@pytest.mark.model
async def test_a_truncated_model_fails_to_load_with_the_engine_s_own_words(llama, smollm2, supervise, tmp_path):
    cut = tmp_path / "cut.gguf"
    with smollm2.open("rb") as file:
        cut.write_bytes(file.read(20_000_000))
    async with supervise(llama(path=cut), policy=replace(QUICK, crashes_before_quarantine=2)) as supervisor:
        with pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready(ROOT)
        assert caught.value.code == "ENGINE_FAILED"
        assert "is the file whole" in caught.value.message
        assert caught.value.detail["stderr_tail"]
        assert supervisor.status()[0].crashes == 2


@pytest.mark.model
async def test_a_pickle_named_gguf_is_refused_at_once(llama, supervise, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    async with supervise(llama(path=path)) as supervisor:
        with pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready(ROOT)
        assert caught.value.code == "FORMAT_REFUSED"
        assert supervisor.status()[0].crashes == 1, "trying again cannot help"


async def test_an_unknown_engine_is_refused_at_once(scripted, supervise):
    async with supervise(replace(scripted(), engine="vllmm")) as supervisor:
        with pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready(ROOT)
        assert caught.value.code == "CONFIG"


async def test_a_load_that_takes_too_long_is_ended(scripted, supervise):
    policy = replace(QUICK, load_timeout_seconds=1.0, crashes_before_quarantine=1)
    async with supervise(scripted(load_seconds=600), policy=policy) as supervisor:
        with pytest.raises(EngineCrashed) as caught:
            await supervisor.wait_ready(ROOT)
        assert "load_timeout_seconds" in caught.value.message


async def test_a_worker_over_its_memory_is_ended(scripted, supervise):
    policy = replace(QUICK, memory_bytes_max=150 << 20, crashes_before_quarantine=1)
    async with supervise(scripted(resident_bytes=300 << 20), policy=policy) as supervisor:
        await state_of(supervisor, "quarantined")  # it is ready until its memory is looked at
        with pytest.raises(EngineCrashed) as caught:
            await supervisor.wait_ready(ROOT)
        assert "memory_bytes_max" in caught.value.message


async def test_an_interpreter_that_is_not_there_is_told(scripted, supervise, tmp_path):
    settings = EnginesConfig(python=str(tmp_path / "no-python"))
    policy = replace(QUICK, crashes_before_quarantine=2)
    async with supervise(scripted(), settings=settings, policy=policy) as supervisor:
        with pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready(ROOT)
        assert "engines.python" in caught.value.message


@pytest.mark.parametrize("junk", ["b'\\xff' * 64", "b'\\0\\0\\0\\x02\\x91\\x07'", "b'\\0\\0\\0\\x03\\x92\\x03\\x01'"])
async def test_a_worker_that_talks_junk_is_ended(scripted, supervise, tmp_path, junk):
    """The process behind the line may be taken over by the file it parsed."""
    fake = tmp_path / "python"
    lines = (f"#!{sys.executable}", "import os, sys, time", f"os.write(int(sys.argv[4]), {junk})", "time.sleep(600)")
    fake.write_text("\n".join(lines), encoding="ascii")
    fake.chmod(0o700)
    policy = replace(QUICK, crashes_before_quarantine=1)
    async with supervise(scripted(), settings=EnginesConfig(python=str(fake)), policy=policy) as supervisor:
        with pytest.raises(EngineCrashed) as caught:
            await supervisor.wait_ready(ROOT)
        assert "broke the rules of its line" in caught.value.message


async def test_a_model_no_longer_wanted_ends_its_requests_first(any_engine, supervise, ask):
    async with supervise(any_engine(tokens_per_second=50)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        pid = supervisor.status()[0].pid
        async with engine.generate(ask("A story.", max_tokens=20)) as events:
            supervisor.set_desired({})
            assert supervisor.engine(ROOT) is None
            got = [event async for event in events]
        assert got[-1].tokens_out == 20
        while supervisor.status():
            await supervisor.wait_changed(supervisor.changes)
        assert not psutil.pid_exists(pid)
        with pytest.raises(NotFound) as caught:
            await supervisor.wait_ready(ROOT)
        assert caught.value.code == "MODEL_NOT_FOUND"


async def test_a_changed_request_is_loaded_anew(scripted, supervise):
    async with supervise(scripted(context_tokens=100)) as supervisor:
        await supervisor.wait_ready(ROOT)
        supervisor.set_desired({ROOT: scripted(context_tokens=200)})
        engine = await supervisor.wait_ready(ROOT)
        assert engine.facts.context_tokens == 200
        assert supervisor.status()[0].crashes == 0


async def test_nothing_is_left_behind(any_engine, supervise, ask, tmp_path):
    async with supervise(any_engine(tokens_per_second=10)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        pid = supervisor.status()[0].pid
        await engine.generate(ask()).__aenter__()
    assert not psutil.pid_exists(pid)
    assert list((tmp_path / "workers").iterdir()) == []


DAEMON = """
import sys, os, trio
from pathlib import Path
from octonode.config import EnginesConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.supervisor import Supervisor

async def main():
    supervisor = Supervisor(EnginesConfig(), directory=Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.set_desired({"r": LoadRequest("scripted", None, "r")})
        await supervisor.wait_ready("r")
        print(supervisor.status()[0].pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_worker_dies_with_its_daemon_even_when_it_is_stopped(tmp_path: Path, settle, stopped: bool):
    daemon = subprocess.Popen(  # noqa: ASYNC220 - a moment's wait is fine here
        [sys.executable, "-c", DAEMON, str(tmp_path / "w")], stdout=subprocess.PIPE, text=True
    )
    assert daemon.stdout is not None
    pid = int(await trio.to_thread.run_sync(daemon.stdout.readline))
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    await settle(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
