"""One task at its provider: made once, watched by the streams attached to it, kept a while after its end."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import trio

from octonode.errors import OctonodeError
from octonode.identity import Signer
from octonode.ids import PeerId, TaskId
from octonode.protocol.exchange import Exchange, report
from octonode.protocol.messages import ErrorReport, TaskRequest, TaskResponse
from octonode.tasks.faults import told
from octonode.tasks.generation import Generation, Order
from octonode.tasks.orders import engine_request
from octonode.tasks.pricing import FREE, PriceList
from octonode.tasks.receipts import TaskRecord
from octonode.tasks.resident import Resident
from octonode.tasks.results import told as told_result
from octonode.tasks.slots import EngineSlots
from octonode.tasks.task import Task

log = logging.getLogger(__name__)

UNDELIVERED_PIECES_MAX = 256
"""What the slowest attached stream may lag behind; then the engine waits, and the stream has `WRITE_SECONDS_MAX`."""
INPUT_SECONDS_MAX = 60.0
"""From the request to the last chunk of its input."""
ERROR_CHARACTERS_MAX = 1000


Work = Callable[["Run", Mapping[str, Any], Signer], Awaitable[TaskResponse]]
"""What a skill that needs no engine does for its request: (run, input, signer). Raises OctonodeError."""


class Watcher(Protocol):
    """A stream that is attached to a run."""

    def news(self) -> None:
        """There are more pieces, another stage, or the terminal frame. Waits for nothing."""
        ...


class Run:
    """The task behind one or more streams. `work` is its one task; those who watch it hear its `news`."""

    def __init__(
        self, exchange: Exchange, *, conversation: bytes, now_ms: Callable[[], int], work: Work | None = None
    ) -> None:
        request = exchange.request
        assert request is not None
        self.request: TaskRequest = request
        self.peer: PeerId = exchange.remote
        self.task: TaskId = exchange.task
        self.request_header = exchange.request_header
        self.request_sha256 = exchange.request_sha256
        self.expires_at_ms = exchange.expires_at_ms
        self.conversation = conversation
        self.life = Task()
        self.pieces: list[str] = []
        self.pushed_at = 0.0
        """Loop time of the first `emit` that no writer has taken yet: from it a writer tells the loop's lag."""
        self.waiting = False
        self.stage, self.done, self.total = "submitted", 0, 0
        self.stage_changes = 0
        self.terminal: TaskResponse | ErrorReport | None = None
        self.delivered: dict[Watcher, int] = {}
        """Pieces written so far, by attached stream."""
        self.started_at_ms = now_ms()
        self.generation: Generation | None = None
        self._now_ms = now_ms
        self._work = work
        self._room = trio.lowlevel.ParkingLot()
        self._input: dict[str, Any] | None = exchange.input
        self._input_whole = trio.Event()
        self._scope = trio.CancelScope()
        self._why_cut: ErrorReport | None = None
        if self._input is not None:
            self._input_whole.set()

    # What streams tell it.

    def give_input(self, body: dict[str, Any]) -> None:
        if not self._input_whole.is_set():
            self._input = body
            self._input_whole.set()

    def attach(self, stream: Watcher) -> None:
        self.delivered[stream] = 0

    def detach(self, stream: Watcher) -> None:
        self.delivered.pop(stream, None)
        self._room.unpark_all()

    def wrote(self, stream: Watcher, pieces: int) -> None:
        self.delivered[stream] = pieces
        self._room.unpark_all()

    def cancel(self) -> None:
        """As the asker wishes. Nothing happens once it has ended."""
        self._scope.cancel()

    def cut(self, why: ErrorReport) -> None:
        """End it for a reason of ours or of the world's."""
        if self._why_cut is None:
            self._why_cut = why
        self._scope.cancel()

    # The task itself.

    def progress(self, stage: str, done: int, total: int) -> None:
        if (stage, done, total) != (self.stage, self.done, self.total):
            self.stage, self.done, self.total = stage, done, total
            self.stage_changes += 1
            self._tell()

    def _tell(self) -> None:
        for stream in self.delivered:
            stream.news()

    async def emit(self, pieces: tuple[str, ...]) -> None:
        self.pieces.extend(pieces)
        self.stage = "decode"
        if not self.waiting:
            self.waiting, self.pushed_at = True, trio.current_time()
        self._tell()
        while self.delivered and len(self.pieces) - min(self.delivered.values()) > UNDELIVERED_PIECES_MAX:
            await self._room.park()

    async def work(self, *, resident: Resident, slots: EngineSlots, signer: Signer, prices: PriceList = FREE) -> None:
        """To the terminal frame. Raises nothing: a bug becomes INTERNAL, is logged, and the daemon stays up."""
        self.life.on("start")
        self._scope.deadline = trio.current_time() + (self.expires_at_ms - self._now_ms()) / 1000
        terminal: TaskResponse | ErrorReport | None = None
        try:
            with self._scope:
                terminal = await self._answer(resident, slots, signer, prices)
            if terminal is None:
                terminal = self._stopped(signer)
        except Exception as error:
            terminal = self._failed(error)
        if isinstance(terminal, ErrorReport):
            self.life.on("fail")
        else:
            self.life.on("complete" if terminal.state == "completed" else "cancel")
        self.terminal = terminal
        if self.generation is not None:
            self.generation.let_go()
        self._tell()

    @property
    def answer_bytes(self) -> int:
        """Of what is kept for those who ask again."""
        result = self.generation.result if self.generation is not None else b""
        return len(result) + sum(map(len, self.pieces))

    async def _answer(self, resident: Resident, slots: EngineSlots, signer: Signer, prices: PriceList) -> TaskResponse:
        with trio.move_on_after(INPUT_SECONDS_MAX):
            await self._input_whole.wait()
        if self._input is None:
            raise OctonodeError("the input did not arrive whole; send the task again", code="DEADLINE")
        if self._work is not None:
            return await self._work(self, self._input, signer)
        scope = f"{self.peer}/{self.conversation.hex()}" if self.conversation else ""
        order = Order(
            self.task,
            self.peer,
            self.request.model,
            engine_request(self.request.skill, self._input, self.request.parameters, cache_scope=scope),
            self.request_header,
            self.request_sha256,
            self.request.privacy,
            self.started_at_ms,
            self.request.mode,
        )
        self._input = None
        self.generation = Generation(order, resident=resident, slots=slots, now_ms=self._now_ms, prices=prices)
        finished = await self.generation.work(self)
        if finished.reason == "cancel":
            raise OctonodeError("the engine stopped the answer; try again", code="ENGINE_FAILED")
        return self._response("completed", signer)

    def _response(self, state: Literal["completed", "canceled"], signer: Signer) -> TaskResponse:
        made = self.generation
        assert made is not None
        return TaskResponse(
            state=state,
            finish_reason=made.finish_reason,
            tokens_in=made.tokens_in,
            tokens_out=made.tokens_out,
            pieces_total=made.transcript.count,
            transcript=made.transcript.digest,
            receipt=made.receipt(signer),
            result=told_result(made.result) if state == "completed" else {},
        )

    def _stopped(self, signer: Signer) -> TaskResponse | ErrorReport:
        """The scope was cancelled: by the asker, by the deadline, or by `cut`."""
        if self._why_cut is not None:
            return self._why_cut
        if not self._scope.cancel_called or self._now_ms() >= self.expires_at_ms:
            return ErrorReport("DEADLINE", "the task expired before it was done; ask with a later deadline")
        if self.generation is not None and self.generation.facts is not None:
            return self._response("canceled", signer)
        return TaskResponse(state="canceled", finish_reason="cancel")

    def _failed(self, error: Exception) -> ErrorReport:
        known = told(error)
        if known is None:
            log.error("task %s failed by a bug: %r", self.task.hex(), error, exc_info=error)
            return ErrorReport("INTERNAL", "the provider met a bug in itself; ask another one")
        log.info("task %s failed: %s", self.task.hex(), known.code)
        return bounded(report(known))

    def record(self) -> TaskRecord:
        """The finished task for the log."""
        assert self.terminal is not None
        made = self.generation
        return TaskRecord(
            task=self.task,
            role="provider",
            peer=self.peer,
            model_root=self.request.model,
            state=self.life.state,
            code=self.terminal.code if isinstance(self.terminal, ErrorReport) else "",
            started_at_ms=self.started_at_ms,
            ended_at_ms=self._now_ms(),
            tokens_in=made.tokens_in if made else 0,
            tokens_out=made.tokens_out if made else 0,
            receipt=isinstance(self.terminal, TaskResponse) and bool(self.terminal.receipt),
            first_token_seconds=made.first_token_seconds if made else None,
        )


def bounded(error: ErrorReport) -> ErrorReport:
    return replace(error, message=error.message[:ERROR_CHARACTERS_MAX])
