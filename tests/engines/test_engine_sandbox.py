"""What a worker can touch, tried from inside a real one. Where it is refused, it works without the sandbox."""

from __future__ import annotations

import os
import resource
import sys

import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.sandbox import FILE_BYTES_MAX, OPEN_FILES_MAX

pytestmark = pytest.mark.process
ROOT = "bafy-test-root"
PROBE = LoadRequest("probe", None, ROOT)


@pytest.fixture
def try_inside(supervise, ask, generate):
    """Runs commands of the probe in a real worker; their answers."""

    async def run(*commands: str, sandbox: bool = True) -> list[str]:
        async with supervise(PROBE, settings=EnginesConfig(sandbox=sandbox)) as supervisor:
            engine = await supervisor.wait_ready(ROOT)
            return [(await generate(engine, ask(command))).text for command in commands]

    return run


async def test_the_layers_are_reported(supervise):
    async with supervise(PROBE) as supervisor:
        await supervisor.wait_ready(ROOT)
        layers = supervisor.status()[0].sandbox
        assert layers[0].startswith("limits")
        assert [layer.split()[0].rstrip(":") for layer in layers[1:]] == ["landlock", "no", "seccomp"]
        assert not any("off" in layer for layer in layers), "this kernel has all of them"
    async with supervise(PROBE, settings=EnginesConfig(sandbox=False)) as supervisor:
        await supervisor.wait_ready(ROOT)
        assert "sandbox: off (engines.sandbox = false)" in supervisor.status()[0].sandbox


async def test_its_resources_are_limited(supervise):
    async with supervise(PROBE) as supervisor:
        await supervisor.wait_ready(ROOT)
        pid = supervisor.status()[0].pid
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0), "a core holds prompts"
        for limit, most in ((resource.RLIMIT_NOFILE, OPEN_FILES_MAX), (resource.RLIMIT_FSIZE, FILE_BYTES_MAX)):
            soft, hard = resource.prlimit(pid, limit)
            assert 0 < soft == hard <= most
        layers = supervisor.status()[0].sandbox
        first_to_go = int(await trio.Path(f"/proc/{pid}/oom_score_adj").read_text())
        assert first_to_go == 500 or "out-of-memory" in layers[0]


async def test_files_outside_are_neither_read_nor_written(try_inside, tmp_path):
    secret = tmp_path / "node.key"
    secret.write_bytes(b"k" * 32)
    outside = tmp_path / "planted"
    commands = (f"read {secret}", f"write {outside}", "read /etc/passwd", f"read /proc/{os.getpid()}/environ")
    assert await try_inside(*commands) == ["refused: PermissionError"] * 4
    assert not outside.exists()
    free = await try_inside(*commands, sandbox=False)
    assert free[0] == "done: 32 bytes"
    assert all(answer.startswith("done") for answer in free)


async def test_its_own_directory_is_all_it_has(try_inside, tmp_path):
    where, written, read = await try_inside("directory", "write scratch", "read scratch")
    assert where.startswith(f"done: {tmp_path / 'workers'}")
    assert (written, read) == ("done: 5 bytes", "done: 5 bytes")


async def test_no_connection_leaves_it(try_inside):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    command = f"connect 127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    assert await try_inside(command) == ["refused: PermissionError"]
    assert await try_inside(command, sandbox=False) == ["done: connected"]
    for listener in listeners:
        await listener.aclose()


async def test_it_starts_no_program_and_reaches_no_other_process(try_inside):
    commands = ("execute /bin/true", "fork", f"signal {os.getpid()}", f"trace {os.getpid()}")
    assert await try_inside(*commands) == ["refused: PermissionError"] * 4
    free = await try_inside(*commands[:3], sandbox=False)
    assert all(answer.startswith("done") for answer in free)


SECCOMP_ALONE = """
import ctypes, os, resource, signal, socket, sys
from octonode.engines import seccomp
libc = ctypes.CDLL(None, use_errno=True)
enter = len(sys.argv) > 2
if enter:
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert seccomp.install(libc) == "seccomp"
daemon = int(sys.argv[1])
def tkill():
    if libc.syscall({"x86_64": 200, "aarch64": 130}[os.uname().machine], daemon, 0) != 0: raise PermissionError
def tgkill():
    if libc.syscall({"x86_64": 234, "aarch64": 131}[os.uname().machine], daemon, daemon, 0) != 0: raise PermissionError
def limits(): resource.prlimit(daemon, resource.RLIMIT_NOFILE, resource.prlimit(daemon, resource.RLIMIT_NOFILE))
def pidfd(): signal.pidfd_send_signal(os.pidfd_open(daemon), 0)
for act in (lambda: os.kill(daemon, 0), tkill, tgkill, pidfd, limits):
    try:
        act()
        print("done")
    except PermissionError:
        print("refused")
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0, "its own limits are its own"
a, b = socket.socketpair()
a.send(b"x")
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.raise_signal(signal.SIGUSR1)  # what abort() does, too
os.kill(os.getpid(), signal.SIGUSR1)
"""


async def test_without_landlock_it_still_has_no_hand_on_the_daemon():
    """Landlock scopes signals from Linux 6.12 on alone, and limits of other processes on none."""
    command = [sys.executable, "-c", SECCOMP_ALONE, str(os.getpid())]
    free = await trio.run_process(command, capture_stdout=True)
    held = await trio.run_process([*command, "enter"], capture_stdout=True)
    assert free.stdout.split() == [b"done"] * 5
    assert held.stdout.split() == [b"refused"] * 5


async def test_it_inherits_no_secrets(try_inside, monkeypatch):
    monkeypatch.setenv("OCTONODE_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    (answer,) = await try_inside("environment")
    assert "hunter2" not in answer
    assert "PYTHONPATH" not in answer
    assert "CUDA_VISIBLE_DEVICES=3" in answer


@pytest.mark.model
async def test_the_real_engine_answers_inside_the_whole_sandbox(llama, supervise, ask, generate):
    async with supervise(llama()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        layers = supervisor.status()[0].sandbox
        assert "seccomp" in layers
        assert any(layer.startswith("landlock abi") for layer in layers)
        assert (await generate(engine, ask(max_tokens=4))).finished.tokens_out == 4
