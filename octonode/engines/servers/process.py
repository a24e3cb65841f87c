"""The processes of one server: its keeper, started by us, and below it whatever the server starts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from octonode.engines.process import ChildProcess, worker_environment

STOP_SECONDS = 10.0
"""How long a server may take to end by itself once it was told to."""
KILL_SECONDS = 7.0
"""How long its keeper may take to kill what is left, before it is killed itself."""
LOOPBACK = ("127.", "::1")


def server_environment(
    environ: Mapping[str, str],
    directory: Path,
    *,
    threads: int,
    devices: Sequence[str],
    program: str,
    prefixes: Sequence[str],
) -> dict[str, str]:
    """The environment of a server: a worker's, the server's own variables by prefix, and programs beside its own.

    It may compile kernels, so it finds programs beside its interpreter (ninja) and the system's (gcc).
    """
    own = {name: value for name, value in environ.items() if name.startswith(tuple(prefixes))}
    path = f"{Path(program).parent}:/usr/local/bin:/usr/bin:/bin"
    return {**own, **worker_environment(environ, directory, threads, devices), "PATH": path}


class ServerProcess(ChildProcess):
    """A started server. The pid is its keeper's, which leads the group and ends as the server does."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        directory: Path,
        name: str,
        inherited: Sequence[int] = (),
    ) -> None:
        """Starts it in `directory`. Raises OSError when that fails. Whether the program itself can be started shows as
        the keeper's end."""
        keeper = [sys.executable, "-P", "-m", "octonode.engines.servers.keeper", str(STOP_SECONDS)]
        popen = subprocess.Popen(
            [*keeper, str(directory), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
            env=dict(environment),
            pass_fds=list(inherited),
            process_group=0,
        )
        super().__init__(popen, name, directory, keeps_output=True)
        self._stdin = popen.stdin

    def stop(self) -> None:
        """The server is told to end, and is killed after its grace."""
        if self._stdin is not None:
            with contextlib.suppress(OSError):
                self._stdin.close()
            self._stdin = None

    def end_now(self) -> None:
        """The server and all below it are killed."""
        if self._stdin is not None:
            with contextlib.suppress(OSError):
                os.write(self._stdin.fileno(), b"k")
        self.stop()

    async def finish(self, grace_seconds: float = STOP_SECONDS + KILL_SECONDS) -> int:
        self.stop()
        return await super().finish(grace_seconds)


def family(pid: int, before: Sequence[psutil.Process] = ()) -> list[psutil.Process]:
    """A process and all below it that live, those seen before that lost their parents too.

    Looks at every process of the machine, so not in the loop.
    """
    found = dict.fromkeys(each for each in before if each.is_running())
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        found |= dict.fromkeys([first, *first.children(recursive=True)])
    return list(found)


def end_all(processes: Sequence[psutil.Process]) -> None:
    """Kills those that still live; a number that has become another process's is left alone."""
    for each in processes:
        with contextlib.suppress(psutil.Error):
            each.kill()


def resident_bytes(pids: Sequence[psutil.Process]) -> int:
    """Of all together; what they share counts for each."""
    total = 0
    for each in pids:
        with contextlib.suppress(psutil.Error):
            total += each.memory_info().rss
    return total


def listening(pids: Sequence[psutil.Process]) -> set[tuple[str, int]]:
    """(address, port) of all that these processes listen on by TCP."""
    found: set[tuple[str, int]] = set()
    for each in pids:
        with contextlib.suppress(psutil.Error):
            found |= {
                (row.laddr.ip, row.laddr.port)
                for row in each.net_connections(kind="tcp")
                if row.status == psutil.CONN_LISTEN
            }
    return found


def backend_of(pids: Sequence[psutil.Process]) -> str:
    """Which kind of device they have open: `cuda`, `rocm`, or `cpu` for none."""
    opened: set[str] = set()
    for each in pids:
        for file in Path(f"/proc/{each.pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                opened.add(os.readlink(file))
    if any(name.startswith("/dev/nvidia") and name[len("/dev/nvidia") :].isdigit() for name in opened):
        return "cuda"
    return "rocm" if "/dev/kfd" in opened else "cpu"


def free_port() -> int:
    """A port of loopback that was free a moment ago. Whoever takes it first has it: see `ServerLink`."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
