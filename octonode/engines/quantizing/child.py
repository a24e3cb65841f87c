"""The child process as its caller has it: started, listened to, ended whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import psutil
import trio

from octonode.engines.process import ChildProcess, exit_text, worker_environment
from octonode.engines.quantizing.job import Job, Made
from octonode.engines.quantizing.said import LINE_BYTES_MAX, Progress, lied, read
from octonode.errors import OctonodeError

SILENCE_SECONDS_MAX: Final = 3600.0
"""Without a word for so long it hangs. Packing one large tensor takes minutes on a slow machine."""
LOOK_SECONDS: Final = 0.5
"""Between two looks at its memory."""
READ_BYTES: Final = 64 * 1024


async def make(
    job: Job,
    *,
    python: str,
    directory: Path,
    threads: int,
    memory_bytes_max: int,
    tell: Callable[[Progress], None],
) -> Made:
    """Runs the job in a child and returns what it says it made. When this returns or raises the child is gone.

    `directory` is made for it and removed: its working directory, the only place that it writes beside the target.
    Cancelling ends it at once. Raises what it reports, ENGINE_CRASHED when it dies, ENGINE_FAILED when it does not keep
    to the protocol, is silent for an hour or takes too much memory, CONFIG where the interpreter cannot be started.
    """
    try:
        child = _Child(job, python=python, directory=directory, threads=threads)
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise OctonodeError(f"{python or sys.executable} cannot be started: {error.strerror}", code="CONFIG") from None
    made: Made | None = None
    fault: OctonodeError | None = None
    status = 0
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.run_output)
            nursery.start_soon(child.ask, job)
            nursery.start_soon(child.watch_memory, memory_bytes_max)
            try:
                made = await child.listen(tell)
            except OctonodeError as error:
                fault = error
            nursery.cancel_scope.cancel()
    finally:
        if made is None:
            child.kill()
        status = await child.finish()
    if child.too_large:
        text = f"it takes more than {memory_bytes_max // 2**20} MiB of memory here; raise engines.memory_bytes_max"
        raise OctonodeError(text, code="ENGINE_FAILED")
    if fault is not None:
        raise fault
    if made is None:
        last = child.stderr_tail.splitlines()[-1:]
        text = f"the process that makes the model {exit_text(status)[0]}{': ' + last[0] if last else ''}"
        raise OctonodeError(text, code="ENGINE_CRASHED")
    return made


class _Child(ChildProcess):
    """Started from this very thread: the child asks the kernel to die with the thread that started it."""

    def __init__(self, job: Job, *, python: str, directory: Path, threads: int) -> None:
        """Raises OSError."""
        directory.mkdir(parents=True, mode=0o700)
        # -P: not even the working directory is searched for modules
        self._started = subprocess.Popen(
            [python or sys.executable, "-P", "-m", "octonode.engines.quantizing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
            env=worker_environment(os.environ, directory, threads),
            process_group=0,
        )
        super().__init__(self._started, f"quantize {job.kind}", directory)
        self.too_large = False

    async def run_output(self) -> None:
        """Takes standard error to the log and the tail, until it ends."""
        assert self._started.stderr is not None
        try:
            await self._take_lines(self._started.stderr.fileno(), self._tail)
        finally:
            self._output_ended.set()

    async def ask(self, job: Job) -> None:
        """Hands the job over. Its standard input stays open: the child ends with it."""
        assert self._started.stdin is not None
        line = json.dumps(asdict(job)).encode() + b"\n"
        async with trio.lowlevel.FdStream(os.dup(self._started.stdin.fileno())) as stream:
            try:
                await stream.send_all(line)
            except trio.BrokenResourceError:
                return  # it has ended; `listen` says so

    async def watch_memory(self, bytes_max: int) -> None:
        """Ends it when it takes more."""
        while True:
            try:
                taken = psutil.Process(self.pid).memory_info().rss
            except psutil.Error:
                return
            if bytes_max and taken > bytes_max:
                self.too_large = True
                self.kill()
                return
            await trio.sleep(LOOK_SECONDS)

    async def listen(self, tell: Callable[[Progress], None]) -> Made | None:
        """Its result; None when it ends without one. Raises what it reports, ENGINE_FAILED."""
        assert self._started.stdout is not None
        pending = b""
        async with trio.lowlevel.FdStream(os.dup(self._started.stdout.fileno())) as stream:
            while data := await self._more(stream):
                *lines, pending = (pending + data).split(b"\n")
                if max(map(len, (*lines, pending))) > LINE_BYTES_MAX:
                    raise lied(f"a line of more than {LINE_BYTES_MAX} bytes")
                for line in lines:
                    said = read(line)
                    if isinstance(said, Made):
                        return said
                    tell(said)
        return None

    async def _more(self, stream: trio.lowlevel.FdStream) -> bytes:
        with trio.move_on_after(SILENCE_SECONDS_MAX):
            return bytes(await stream.receive_some(READ_BYTES))
        raise lied(f"not a word for {SILENCE_SECONDS_MAX / 60:.0f} minutes")

    async def finish(self, grace_seconds: float = 0.5) -> int:
        assert self._started.stdin is not None
        self._started.stdin.close()
        return await super().finish(grace_seconds)
