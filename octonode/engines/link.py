"""The daemon's side of one worker: its process, its line of frames and the requests that run in it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import trio

from octonode.engines.calls import Call, LoadedEngine
from octonode.engines.channel import FrameChannel
from octonode.engines.contract import Finished, LoadRequest, Prefill, Step
from octonode.engines.frames import (
    Beat,
    Cancel,
    EndFrame,
    ErrorFrame,
    Frame,
    FrameError,
    Load,
    LoadFailed,
    LogprobsFrame,
    PiecesFrame,
    PrefillFrame,
    Ready,
    ResultFrame,
    StepFrame,
    Submit,
)
from octonode.engines.life import EngineLife
from octonode.engines.plan import Phase
from octonode.engines.process import WorkerProcess, exit_text
from octonode.errors import EngineCrashed, OctonodeError, from_wire

log = logging.getLogger(__name__)


class WorkerLink(EngineLife):
    """One life of a worker, from its start to the end of its process. `run` returns what it died of."""

    def __init__(
        self,
        root: str,
        request: LoadRequest,
        process: WorkerProcess,
        *,
        sandbox: bool,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(root, request, on_change)
        self.process = process
        self._use_sandbox = sandbox
        self._channel = FrameChannel(process.socket)

    @property
    def pid(self) -> int:
        return self.process.pid

    def measure(self) -> None:
        """Takes the resident memory anew; a process that is gone keeps its last figure."""
        with contextlib.suppress(psutil.Error):
            self.resident_bytes = psutil.Process(self.process.pid).memory_info().rss

    def measure_gpu(self, by_process: Mapping[int, int]) -> None:
        """Takes its GPU memory from a reading: its own process and those it started."""
        with contextlib.suppress(psutil.Error):
            family = [self.process.pid, *(each.pid for each in psutil.Process(self.process.pid).children(True))]
            self.gpu_bytes = sum(by_process.get(pid, 0) for pid in family)

    def stop(self) -> None:
        """Closes the line: the worker ends by itself, or is killed after a short grace."""
        self.unloaded = True
        self._enter(Phase.STOPPING)
        self._channel.close()

    def kill(self, reason: str) -> None:
        self.kill_reason = self.kill_reason or reason
        self._enter(Phase.STOPPING)
        self.process.kill()

    async def run(self) -> OctonodeError:
        """Serves until the process is gone and every open request was told why; the reason of the end."""
        end: OctonodeError
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.process.run_output)
                nursery.start_soon(self._write)
                self._channel.send(Load(self.request, self._use_sandbox, self.process.directory))
                await self._read()
                self._channel.close()
                end = self._explain(await self.process.finish())
                nursery.cancel_scope.cancel()
        finally:  # also when we are cancelled: nothing of a worker outlives its link
            self._channel.close()
            await self.process.finish()
            self._fail_calls(OctonodeError("the node is stopping its engines", code="LEAVING", retry_after_seconds=5.0))
        return end

    async def _write(self) -> None:
        # the reader sees the end of the line too, and tells why
        with contextlib.suppress(OSError, trio.ClosedResourceError):
            await self._channel.run_writer()

    async def _read(self) -> None:
        """Until the end of the line. A worker that does not keep to the frames is killed."""
        try:
            while (frames := await self._channel.receive()) is not None:
                self.heard_at = trio.current_time()
                for frame in frames:
                    self._take(frame)
        except FrameError as error:
            self.kill(f"it broke the rules of its line: {error.message}")
        except trio.ClosedResourceError:
            pass  # we stopped it

    def _take(self, frame: Frame) -> None:
        take = _TAKERS.get(type(frame))
        if take is None:
            raise FrameError(f"a worker does not send {type(frame).__name__}")
        take(self, frame)

    def _take_pieces(self, frame: PiecesFrame) -> None:
        self.progressed_at = self.heard_at
        call = self._calls.get(frame.id)
        if call is not None and not call.put_pieces(frame.pieces):
            raise FrameError("more text than the request allows")

    def _take_progress(self, frame: PrefillFrame | StepFrame) -> None:
        self.progressed_at = self.heard_at
        call = self._calls.get(frame.id)
        if call is not None:
            if isinstance(frame, StepFrame):
                call.put_progress(Step(frame.done, frame.total))
            else:
                call.put_progress(Prefill(frame.done_tokens, frame.total_tokens))

    def _take_result(self, frame: ResultFrame) -> None:
        call = self._calls.get(frame.id)
        if call is not None and not call.put_result(frame.result):
            raise FrameError("a result that was not asked for")

    def _take_logprobs(self, frame: LogprobsFrame) -> None:
        call = self._calls.get(frame.id)
        if call is not None and not call.put_logprobs(frame.tokens):
            raise FrameError("more tokens than the request allows")

    def _take_end(self, frame: EndFrame) -> None:
        end = Finished(frame.reason, frame.tokens_in, frame.tokens_out, frame.tokens_cached)
        self._finish_call(frame.id, end)

    def _take_error(self, frame: ErrorFrame) -> None:
        self._finish_call(frame.id, from_wire(frame.code, frame.message))

    def _take_load_failed(self, frame: LoadFailed) -> None:
        self.load_error = from_wire(frame.code, frame.message)

    def _take_beat(self, frame: Beat) -> None:
        """That it came is told by `heard_at`."""

    def _take_ready(self, frame: Ready) -> None:
        if self.phase is not Phase.STARTING:
            return  # told to stop meanwhile
        self.facts, self.sandbox = frame.facts, frame.sandbox
        self.engine = LoadedEngine(self, frame.facts)
        self._enter(Phase.READY)
        log.info("model %s is loaded in process %d (%s)", self.root, self.process.pid, ", ".join(self.sandbox))

    def open_call(self, call: Call) -> None:
        self._check_open()
        call.id = next(self._ids)
        try:
            self._channel.send(Submit(call.id, call.request))
        except FrameError as error:
            code = error.code if error.code == "TOO_LARGE" else "BAD_REQUEST"
            raise OctonodeError(f"the request cannot be passed on: {error.message}", code=code) from None
        self._keep_call(call)

    def close_call(self, call: Call) -> None:
        if self._calls.pop(call.id, None) is not None:
            self._leaving.add(call.id)
            self._channel.send(Cancel(call.id))

    def _explain(self, status: int) -> OctonodeError:
        """Why the process ended, as the error of every request it took along."""
        if self.load_error is not None:
            reason, code = self.load_error.message, self.load_error.code
            self._ended = OctonodeError(reason, code=code, detail={"stderr_tail": self.process.stderr_tail})
        else:
            how, name = exit_text(status)
            why = f"was ended, since {self.kill_reason}" if self.kill_reason else how
            detail = {"signal": name, "status": status, "stderr_tail": self.process.stderr_tail}
            self._ended = EngineCrashed(f"the worker of {self.root} {why}", detail=detail)
        self._fail_calls(self._ended)
        return self._ended


_TAKERS: dict[type, Callable[[WorkerLink, Any], None]] = {
    PiecesFrame: WorkerLink._take_pieces,
    PrefillFrame: WorkerLink._take_progress,
    StepFrame: WorkerLink._take_progress,
    LogprobsFrame: WorkerLink._take_logprobs,
    ResultFrame: WorkerLink._take_result,
    EndFrame: WorkerLink._take_end,
    ErrorFrame: WorkerLink._take_error,
    Ready: WorkerLink._take_ready,
    LoadFailed: WorkerLink._take_load_failed,
    Beat: WorkerLink._take_beat,
}
"""What a worker may send, and who takes it."""
