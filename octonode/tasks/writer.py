"""Writes a task's news on one stream: the first token at once, then what comes in 25 ms; a heartbeat each second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import trio

from octonode.identity import Signer
from octonode.network.host import Stream, StreamReset
from octonode.protocol.artifacts import split
from octonode.protocol.exchange import Exchange
from octonode.protocol.messages import ArtifactChunk, ErrorReport, Message, StatusUpdate, TaskResponse
from octonode.protocol.states import State
from octonode.protocol.transcript import checkpoint_due, sign_checkpoint
from octonode.tasks.run import Run
from octonode.tasks.timers import Pace, Watch

WRITE_SECONDS_MAX = 4.0
"""A write that takes longer ends the stream with SLOW_READER; yamux would reset it after 5 s of closed window."""
PROGRESS_SECONDS = 0.25
"""Progress without text is told at most this often."""
FRAME_SECONDS = 0.025
"""Frames with text of one stream are at least this far apart, after the first: protocols/decisions/0008."""
LAG_SECONDS_LEAST = 0.001
LAG_SECONDS_MOST = 0.02
FRAME_PIECES_MAX = 1024
FRAME_CHARACTERS_MAX = 128 * 1024


class SlowReader(Exception):
    """The peer does not read; its stream is of no use any more."""


def coalescing_seconds(lag_seconds: float) -> float:
    """How long a writer that is `lag_seconds` late, or wrote for as long, collects before it writes: as long again.

    On an idle loop that is nothing; on a loaded one frames grow fewer and larger.
    """
    return 0.0 if lag_seconds < LAG_SECONDS_LEAST else min(lag_seconds, LAG_SECONDS_MOST)


class Writer:
    """One stream's view of a `Run`; `write` returns after the terminal frame. `watch` has `WRITE_SECONDS_MAX`."""

    def __init__(
        self,
        stream: Stream,
        exchange: Exchange,
        run: Run,
        *,
        signer: Signer,
        now_ms: Callable[[], int],
        pace: Pace,
        watch: Watch,
    ) -> None:
        self._stream = stream
        self._exchange = exchange
        self._run = run
        self._signer = signer
        self._now_ms = now_ms
        self._pace = pace
        self._watch = watch
        self._patience = trio.CancelScope()
        self._heartbeat_seconds = exchange.limits.heartbeat_ms / 1000
        self._wake = trio.lowlevel.ParkingLot()
        self._wakes_at = math.inf
        """When `pace` wakes us next."""
        self._wrote_at = trio.current_time()
        self._text_at = 0.0
        """Text goes no sooner."""
        self._collected = False
        """A loaded loop has had its time to collect."""
        self.waits_since = math.inf
        self._write_seconds = 0.0
        """What the last write took: on a loaded loop mostly the turns of others."""
        self._stage_seen = 0
        self._checkpoint_pieces = 0
        self._checkpoint_at_ms = 0

    def give_up(self) -> None:
        self._patience.cancel()

    def news(self) -> None:
        """The run has something new. Text that may not go yet wakes nobody before it may."""
        if self._run.terminal is not None or trio.current_time() >= self._text_at:
            self._wake.unpark()
        else:
            self._wake_at(self._text_at)

    def _wake_at(self, due: float) -> None:
        if due < self._wakes_at:
            self._wakes_at = due
            self._pace.wake_at(due, self._wake)

    async def write(self) -> None:
        """Raises SlowReader, StreamReset."""
        self._watch.add(self)
        try:
            with self._patience:
                await self._write()
                return
        finally:
            self._watch.remove(self)
        raise SlowReader

    async def _write(self) -> None:
        run, exchange = self._run, self._exchange
        while True:
            now = trio.current_time()
            has_text = exchange.pieces < len(run.pieces)
            if run.terminal is not None:
                await self._write_end(run.terminal)
                return
            if has_text and self._may_write(now):
                await self._send(self._seal(self._text()))
                self._collected = False
                self._text_at = self._wrote_at + FRAME_SECONDS
            elif now >= (due := self._wrote_at + self._silence_seconds()):
                await self._send(self._seal(StatusUpdate(stage=run.stage, done=run.done, total=run.total)))
                self._stage_seen = run.stage_changes
            else:
                self._wake_at(min(due, self._text_at) if has_text else due)
                await self._wake.park()
                if trio.current_time() >= self._wakes_at:
                    self._wakes_at = math.inf

    async def _write_end(self, terminal: TaskResponse | ErrorReport) -> None:
        """What text there still is; the last of it goes with the terminal frame."""
        run, exchange, data = self._run, self._exchange, b""
        while exchange.pieces < len(run.pieces):
            if data:
                await self._send(data)
            data = self._seal(self._text())
        for chunk in self._result_chunks(terminal):
            await self._send(data + self._seal(StatusUpdate(stage=run.stage, artifact=chunk)))
            data = b""
        await self._send(data + self._seal(self._last(terminal)))

    def _result_chunks(self, terminal: TaskResponse | ErrorReport) -> Iterable[ArtifactChunk]:
        """Of a result that is too large for the terminal frame."""
        made = self._run.generation
        if made is None or not isinstance(terminal, TaskResponse) or "artifact" not in terminal.result:
            return ()
        return split(terminal.result["artifact"], made.result, self._exchange.limits)

    def _silence_seconds(self) -> float:
        """For how long nothing may be written: progress is told soon, and a heartbeat where there is none."""
        return PROGRESS_SECONDS if self._run.stage_changes != self._stage_seen else self._heartbeat_seconds

    def _may_write(self, now: float) -> bool:
        """Whether text may go now. On a loaded loop it waits once more, for as long as it came late."""
        if not self._exchange.pieces:
            return True
        if now < self._text_at:
            return False
        if not self._collected:
            late_seconds = now - max(self._run.pushed_at, self._text_at)
            wait_seconds = coalescing_seconds(max(late_seconds, self._write_seconds))
            self._collected = True
            if wait_seconds:
                self._text_at = now + wait_seconds
                return False
        return True

    def _text(self) -> StatusUpdate:
        """As much of it as fits a frame."""
        run, first = self._run, self._exchange.pieces
        run.waiting = False
        pieces = _portion(run.pieces, first)
        checkpoint = self._checkpoint(first + len(pieces), self._now_ms())
        return StatusUpdate(stage="decode", first_piece=first, pieces=pieces, checkpoint=checkpoint)

    def _checkpoint(self, end: int, now_ms: int) -> bytes:
        """A signed one when it is due and the frame ends where the transcript stands; else none."""
        made = self._run.generation
        if not self._checkpoint_at_ms:
            self._checkpoint_at_ms = now_ms
        due = checkpoint_due(end - self._checkpoint_pieces, now_ms - self._checkpoint_at_ms, self._exchange.limits)
        if not due or made is None or made.transcript.count != end:
            return b""
        self._checkpoint_pieces, self._checkpoint_at_ms = end, now_ms
        return sign_checkpoint(self._signer, self._run.request_sha256, made.transcript, now_ms)

    def _seal(self, message: Message) -> bytes:
        if self._exchange.fault is not None:
            raise StreamReset("the asker broke a rule; what comes next is the reader's to say")
        return self._exchange.send(message, self._now_ms())

    async def _send(self, data: bytes) -> None:
        self.waits_since = began_at = trio.current_time()
        await self._stream.send(data)
        self.waits_since = math.inf
        self._wrote_at = trio.current_time()
        self._write_seconds = self._wrote_at - began_at
        self._run.wrote(self, self._exchange.pieces)

    def _last(self, terminal: TaskResponse | ErrorReport) -> Message:
        """`canceled` is an answer to a cancel on this very stream; another stream's cancel is an error here."""
        canceled = isinstance(terminal, TaskResponse) and terminal.state == "canceled"
        if canceled and self._exchange.state is not State.CANCELING:
            return ErrorReport("CANCELED", "the task was canceled")
        return terminal


def _portion(pieces: list[str], first: int) -> tuple[str, ...]:
    """As many pieces from `first` on as go into one frame."""
    portion = tuple(pieces[first : first + FRAME_PIECES_MAX])
    if sum(map(len, portion)) <= FRAME_CHARACTERS_MAX:
        return portion
    characters = 0
    for count, piece in enumerate(portion):
        characters += len(piece)
        if characters > FRAME_CHARACTERS_MAX:
            return portion[: max(1, count)]
    return portion
