"""How far a worker is held, in a word; which GPUs its process sees; and the watch over its GPU memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import Engine, EngineEvent, LoadRequest, Made, Step
from octonode.engines.plan import Policy
from octonode.engines.process import worker_environment
from octonode.engines.sandbox import level
from octonode.engines.supervisor import policy_from
from octonode.errors import EngineCrashed
from octonode.protocol.work.text import EmbedRequest

ALL = ("limits", "landlock abi 7", "no capabilities", "seccomp")
SERVER = "a server of its own"


@pytest.mark.parametrize(
    ("layers", "word"),
    [
        ((), ""),
        (ALL, "full"),
        (("limits", "landlock abi 3 (TCP not covered)", "no capabilities", "seccomp"), "full"),
        (
            ("limits", "landlock abi 3 (TCP not covered)", "no capabilities", "seccomp: off (EINVAL)"),
            "partial: seccomp: off (EINVAL); landlock abi 3 (TCP not covered)",
        ),
        (
            ("limits", "landlock: off (the kernel says ENOSYS)", *ALL[2:]),
            "partial: landlock: off (the kernel says ENOSYS)",
        ),
        (("limits", ALL[1], "capabilities: kept (EPERM)", "seccomp"), "partial: capabilities: kept (EPERM)"),
        (
            ("limits (not first to the out-of-memory killer)", *ALL[1:]),
            "partial: limits (not first to the out-of-memory killer)",
        ),
        (("limits", "landlock: off (ENOSYS)", "no capabilities", "seccomp: off (EINVAL)"), "off: ENOSYS; EINVAL"),
        (("limits", "sandbox: off (none for darwin yet)"), "off: none for darwin yet"),
        (("limits", "sandbox: off (engines.sandbox = false)"), "off: engines.sandbox = false"),
        (
            ("own process group", "loopback only", f"landlock: off ({SERVER})", f"seccomp: off ({SERVER})"),
            f"off: {SERVER}",
        ),
    ],
)
def test_the_layers_in_a_word(layers: tuple[str, ...], word: str) -> None:
    assert level(layers) == word


def test_a_worker_sees_the_gpus_it_was_given(tmp_path: Path) -> None:
    ours = {"CUDA_VISIBLE_DEVICES": "0,1,2", "PATH": "/secret"}
    assert worker_environment(ours, tmp_path, 1)["CUDA_VISIBLE_DEVICES"] == "0,1,2", "nothing was chosen"
    given = worker_environment(ours, tmp_path, 1, ("cuda:2",))
    assert (given["CUDA_VISIBLE_DEVICES"], given["CUDA_DEVICE_ORDER"]) == ("2", "PCI_BUS_ID")
    assert worker_environment(ours, tmp_path, 1, ("cpu",))["CUDA_VISIBLE_DEVICES"] == ""


def test_the_limit_comes_from_the_settings() -> None:
    assert policy_from(EnginesConfig(gpu_memory_bytes_max=7)).gpu_memory_bytes_max == 7
    assert policy_from(EnginesConfig()).gpu_memory_bytes_max == 0


@pytest.mark.process
async def test_a_real_worker_sees_its_devices_and_tells_how_it_is_held(supervise, ask, generate):  # type: ignore[no-untyped-def]
    load = LoadRequest("probe", None, "bafy-test-root", devices=("cuda:1", "cuda:MIG-7"))
    async with supervise(load) as supervisor:
        engine = await supervisor.wait_ready(load.model_root)
        (status,) = supervisor.status()
        assert (status.isolation, status.devices) == (level(status.sandbox), load.devices)
        answer = await generate(engine, ask("environment"))
        assert "CUDA_VISIBLE_DEVICES=1,MIG-7" in answer.text
    async with supervise(load, settings=EnginesConfig(sandbox=False)) as supervisor:
        await supervisor.wait_ready(load.model_root)
        assert supervisor.status()[0].isolation == "off: engines.sandbox = false"


@pytest.mark.process
async def test_a_worker_over_its_gpu_memory_is_ended_and_others_go_on(supervise, settle):  # type: ignore[no-untyped-def]
    """The reading is made up, since no GPU is here; the process and its end are real."""
    load = LoadRequest("probe", None, "bafy-test-root")
    policy = Policy(gpu_memory_bytes_max=1 << 30, back_off_first_seconds=0.01, crashes_before_quarantine=2)
    async with supervise(load, policy=policy) as supervisor:
        await supervisor.wait_ready(load.model_root)
        pid = supervisor.status()[0].pid
        supervisor.note_gpu_memory({pid: 1 << 30, os.getpid(): 1 << 40})
        assert supervisor.status()[0].gpu_bytes == 1 << 30
        supervisor.note_gpu_memory({pid: (1 << 30) + 1})
        await settle(lambda: supervisor.status()[0].crashes == 1)
        assert "engines.gpu_memory_bytes_max" in supervisor.status()[0].reason
        await supervisor.wait_ready(load.model_root)
        assert supervisor.status()[0].pid != pid


@pytest.mark.process
async def test_wait_gone_ends_with_the_process(supervise):  # type: ignore[no-untyped-def]
    load = LoadRequest("probe", None, "bafy-test-root")
    async with supervise(load) as supervisor:
        await supervisor.wait_ready(load.model_root)
        pid = supervisor.status()[0].pid
        supervisor.set_desired({})
        with trio.fail_after(30):
            await supervisor.wait_gone(load.model_root)
        assert not Path(f"/proc/{pid}").exists()
        await supervisor.wait_gone("never there")


@pytest.mark.process
async def test_the_watchdog_ends_a_maker_that_hangs_and_leaves_one_that_steps(supervise):  # type: ignore[no-untyped-def]
    policy = Policy(no_progress_timeout_seconds=1.5, back_off_first_seconds=0.01)
    load = LoadRequest("scripted", None, "bafy-test-root", category="embeddings", options={"hang_at_request": 0})
    async with supervise(load, policy=policy) as supervisor:
        engine = await supervisor.wait_ready(load.model_root)
        with pytest.raises(EngineCrashed) as caught:
            await made_by(engine)
        assert "no progress" in caught.value.message
    slow = replace(load, options={"seconds_per_request": 3.0, "steps": 30})
    async with supervise(slow, policy=policy) as supervisor:
        events = await made_by(await supervisor.wait_ready(load.model_root))
        assert sum(isinstance(each, Step) for each in events) >= 1, "twice the watchdog's patience in all"
        assert any(isinstance(each, Made) for each in events)
        assert supervisor.status()[0].crashes == 0


async def made_by(engine: Engine) -> list[EngineEvent]:
    async with engine.make(EmbedRequest(("a text",))) as events:
        return [event async for event in events]
