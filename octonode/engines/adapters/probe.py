"""Tries what a worker must not be able to do. `doctor` and the tests load it like an engine and ask it.

The last message is one command: `read PATH`, `write PATH`, `connect HOST:PORT`, `execute PATH`, `fork`, `trace PID`,
`signal PID`, `environment`, `directory`. The answer is `done: ...` or `refused: ErrorName`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from octonode.engines.adapters.base import Output
from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest
from octonode.engines.slots import Slot
from octonode.errors import OctonodeError

_PTRACE_ATTACH = 16


class ProbeAdapter:
    """An engine without a model that runs one of the commands above for each request, in the worker as it is."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        return EngineFacts("probe", "1", "cpu", "", request.context_tokens, request.parallel, "")

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        command, _, argument = request.messages[-1]["content"].partition(" ")
        if command not in _COMMANDS:
            raise OctonodeError(f"the probe knows {', '.join(_COMMANDS)}", code="BAD_REQUEST")
        try:
            answer = f"done: {_COMMANDS[command](argument)}"
        except OSError as error:
            answer = f"refused: {type(error).__name__}"
        output.pieces([answer])
        return Finished("stop", 1, 1)

    def close(self) -> None:
        pass


def _read(path: str) -> str:
    return f"{len(Path(path).read_bytes())} bytes"


def _write(path: str) -> str:
    return f"{Path(path).write_text('probe', encoding='ascii')} bytes"


def _connect(address: str) -> str:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        return "connected"


def _execute(path: str) -> str:
    # posix_spawn reports the error of a refused exec; Popen may pass through fork, which is refused on its own
    return f"pid {os.posix_spawn(path, [path], {})}"


def _fork(_: str) -> str:
    return f"status {subprocess.run(['/bin/true'], check=False).returncode}"


def _trace(pid: str) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_ATTACH, int(pid), None, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return "attached"


def _signal(pid: str) -> str:
    os.kill(int(pid), signal.SIGCONT)
    return "sent"


def _environment(_: str) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()))


def _directory(_: str) -> str:
    return os.getcwd()


_COMMANDS: dict[str, Callable[[str], str]] = {
    "read": _read,
    "write": _write,
    "connect": _connect,
    "execute": _execute,
    "fork": _fork,
    "trace": _trace,
    "signal": _signal,
    "environment": _environment,
    "directory": _directory,
}
