"""One worker process as the operating system sees it: started, its output kept, ended, reaped."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from octonode.hardware.devices import environment as device_environment

log = logging.getLogger(__name__)

TAIL_LINES_MAX = 40
LINE_BYTES_MAX = 500
REAP_SECONDS = 0.5
"""How long a process whose line has ended may take to be gone before it is killed."""
OUTPUT_SECONDS = 0.5
"""How long the last output of a dead process is waited for; another process could hold its pipe open."""

_PASSED_ON = frozenset(
    {
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "GGML_VK_VISIBLE_DEVICES",
    }
)
"""Variables of the daemon that a worker gets: language, libraries, and which GPUs it may see. No others."""


def worker_environment(
    environ: Mapping[str, str], directory: Path, threads: int, devices: Sequence[str] = ()
) -> dict[str, str]:
    """The environment of a worker: the few passed on, the GPUs it may see (`LoadRequest.devices`), and what keeps
    libraries inside its directory and offline."""
    return {
        **{name: value for name, value in environ.items() if name in _PASSED_ON},
        **device_environment(devices),
        "PATH": "/usr/bin:/bin",
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "XDG_CACHE_HOME": str(directory),
        "CUDA_CACHE_PATH": str(directory),
        "OMP_NUM_THREADS": str(threads),
        "GGML_NO_BACKTRACE": "1",  # it would start a debugger
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
    }


class ChildProcess:
    """A started process of ours. The owner runs `run_output` beside, then awaits `finish`, which reaps it."""

    def __init__(
        self, popen: subprocess.Popen[bytes], name: str, directory: Path, *, keeps_output: bool = False
    ) -> None:
        """`popen` leads its own process group and has pipes as output; `directory` is its own, removed at the end.
        `keeps_output`: the tail holds standard output too, for those that write their errors there."""
        self.name = name
        self.directory = directory
        self.pid = popen.pid
        self._popen = popen
        self._keeps_output = keeps_output
        self._tail: deque[str] = deque(maxlen=TAIL_LINES_MAX)
        self._output_ended = trio.Event()

    @property
    def stderr_tail(self) -> str:
        """The last lines of standard error, at most 40 of 500 bytes."""
        return "\n".join(self._tail)

    async def run_output(self) -> None:
        """Takes standard output and error until both end: lines to the log, the end of standard error to the tail."""
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    self._take_lines, self._popen.stdout.fileno(), self._tail if self._keeps_output else None
                )
                nursery.start_soon(self._take_lines, self._popen.stderr.fileno(), self._tail)
        finally:
            self._output_ended.set()

    async def _take_lines(self, descriptor: int, tail: deque[str] | None) -> None:
        pending = b""
        async with trio.lowlevel.FdStream(os.dup(descriptor)) as stream:
            async for data in stream:
                *lines, pending = (pending + data).split(b"\n")
                pending = pending[-LINE_BYTES_MAX:]
                for line in lines:
                    self._keep(line, tail)
        if pending:
            self._keep(pending, tail)

    def _keep(self, line: bytes, tail: deque[str] | None) -> None:
        text = line[:LINE_BYTES_MAX].decode("utf-8", "replace")
        # Below the default level: an engine's line could quote a prompt, which is never logged unasked.
        log.debug("worker %s (%d): %s", self.name, self.pid, text)
        if tail is not None:
            tail.append(text)

    def kill(self) -> None:
        """SIGKILL to the process and whatever is left in its group. Harmless when it is gone."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def finish(self, grace_seconds: float = REAP_SECONDS) -> int:
        """Waits for the end, kills when it takes longer than the grace, and removes the directory.

        Returns the exit status, negative for a signal. Cannot be cancelled: it takes the grace and a little more.
        """
        with trio.CancelScope(shield=True):
            with trio.move_on_after(grace_seconds):
                await self.ended()
            self.kill()
            await self.ended()
            with trio.move_on_after(OUTPUT_SECONDS):
                await self._output_ended.wait()
            for pipe in (self._popen.stdout, self._popen.stderr):
                if pipe is not None:
                    pipe.close()
            shutil.rmtree(self.directory, ignore_errors=True)
        status = self._popen.returncode
        assert status is not None
        return status

    async def ended(self) -> None:
        """Returns when the process has ended, and is reaped."""
        if self._popen.returncode is not None:
            return
        if not hasattr(os, "pidfd_open"):
            await trio.to_thread.run_sync(self._popen.wait, abandon_on_cancel=True)
            return
        descriptor = os.pidfd_open(self.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        self.kill()  # what it started goes with it; the number of its group is no other's before it is reaped
        self._popen.wait()


class WorkerProcess(ChildProcess):
    """A started worker, and our end of its line."""

    def __init__(
        self,
        *,
        python: str,
        directory: Path,
        threads: int,
        name: str,
        inherited: Sequence[int] = (),
        devices: Sequence[str] = (),
    ) -> None:
        """Starts it. Raises OSError when the interpreter or the directory cannot be used. It has the descriptors in
        `inherited` open until its end.

        Started from this very thread on purpose (under a millisecond: Python uses vfork): the worker asks the kernel
        to die with its parent, which means the *thread* that started it, and trio.lowlevel.open_process starts from a
        pool thread that ends when idle for ten seconds.
        """
        directory.mkdir(parents=True, mode=0o700)
        ours, theirs = socket.socketpair()
        try:
            # -P: not even the working directory is searched for modules
            command = [python or sys.executable, "-P", "-m", "octonode.engines.worker"]
            popen = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=directory,
                env=worker_environment(os.environ, directory, threads, devices),
                pass_fds=[theirs.fileno(), *inherited],
                process_group=0,
            )
        except BaseException:
            ours.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        finally:
            theirs.close()
        super().__init__(popen, name, directory)
        self.socket = ours


def exit_text(status: int) -> tuple[str, str]:
    """(for people, name of the signal or ``): `died of SIGSEGV`, `ended with status 3`."""
    if status >= 0:
        return f"ended with status {status}", ""
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"died of {name}", name
