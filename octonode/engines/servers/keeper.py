"""The parent of a server's processes: it ends them all when the daemon asks, dies, or their first process ends.

`python -m octonode.engines.servers.keeper GRACE_SECONDS DIRECTORY COMMAND...` with a pipe from the daemon as standard
input. At the pipe's end, which also a killed daemon brings about, the server gets SIGTERM, and SIGKILL after the grace;
after a byte in the pipe SIGKILL at once. Servers start workers of their own, which a killed parent leaves behind: as
their subreaper (Linux) the keeper inherits those and kills them. It removes DIRECTORY, the server's own, and ends as
the server did, by the same status or signal. Standard library only, for its size.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

LOOK_SECONDS = 0.2
"""How often a server is looked at where the kernel does not tell of its end."""
REAP_SECONDS = 5.0
"""Within which killed processes are gone."""
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38


def main() -> None:
    grace_seconds, directory, command = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    signalled, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _take_note)  # a handler of ours is none in the server, unlike an ignored signal
    _prepare()
    # the server must not hold the daemon's pipe
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False)
    _wait_for_the_end(server, signalled)
    if server.poll() is None and _told_to_kill():
        grace_seconds = 0.0
    _end_server(server, grace_seconds)
    _end_descendants()
    shutil.rmtree(directory, ignore_errors=True)  # a daemon that was killed cannot
    _end_as(server.returncode)


def _take_note(number: int, frame: FrameType | None) -> None:
    """Nothing: the number is in the pipe already."""


def _told_to_kill() -> bool:
    return bool(select.select([0], [], [], 0)[0]) and bool(os.read(0, 1))


def _prepare() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds prompts
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        with contextlib.suppress(OSError):  # the kernel's out-of-memory killer shall take servers before the daemon
            Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _wait_for_the_end(server: subprocess.Popen[bytes], signalled: int) -> None:
    """Returns when the server has ended, the daemon wrote to the pipe or closed it, or a signal came."""
    if not hasattr(os, "pidfd_open"):
        while server.poll() is None and not select.select([0, signalled], [], [], LOOK_SECONDS)[0]:
            pass
        return
    descriptor = os.pidfd_open(server.pid)
    try:
        select.select([0, signalled, descriptor], [], [])
    finally:
        os.close(descriptor)


def _end_server(server: subprocess.Popen[bytes], grace_seconds: float) -> None:
    if grace_seconds > 0 and server.poll() is None:
        server.terminate()
    try:
        server.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _end_descendants() -> None:
    """Kills what is left of the server, until nothing is."""
    deadline = time.monotonic() + REAP_SECONDS
    while (pids := _children(os.getpid())) and time.monotonic() < deadline:
        for pid in pids:
            for each in (pid, *_children(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    """Of all threads of a process; none where the kernel does not list them."""
    pids: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += map(int, file.read_text(encoding="ascii").split())
    return pids


def _end_as(status: int) -> None:
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
