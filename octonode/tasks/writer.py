"""Writes a task's news on one stream: the first token at once, then what comes in 25 ms; a heartbeat each second."""

from __future__ import annotations

from collections.abc import Callable

import trio

from octonode.identity import Signer
from octonode.network.host import Stream, StreamReset
from octonode.protocol.exchange import Exchange
from octonode.protocol.messages import ErrorReport, Message, StatusUpdate, TaskResponse
from octonode.protocol.states import State
from octonode.protocol.transcript import checkpoint_due, sign_checkpoint
from octonode.tasks.run import Run

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
    """One stream's view of a `Run`; `write` returns after the terminal frame."""

    def __init__(
        self, stream: Stream, exchange: Exchange, run: Run, *, signer: Signer, now_ms: Callable[[], int]
    ) -> None:
        self._stream = stream
        self._exchange = exchange
        self._run = run
        self._signer = signer
        self._now_ms = now_ms
        self._heartbeat_seconds = exchange.limits.heartbeat_ms / 1000
        self._wrote_at = trio.current_time()
        self._write_seconds = 0.0
        """What the last write took: on a loaded loop mostly the turns of others."""
        self._stage_seen = 0
        self._checkpoint_pieces = 0
        self._checkpoint_at_ms = 0

    async def write(self) -> None:
        """Raises SlowReader, StreamReset."""
        run, exchange = self._run, self._exchange
        while True:
            if exchange.pieces < len(run.pieces):
                await self._write_pieces()
            elif run.terminal is not None:
                await self._send(self._last(run.terminal))
                return
            elif not await self._news() and exchange.pieces == len(run.pieces) and run.terminal is None:
                await self._send(StatusUpdate(stage=run.stage, done=run.done, total=run.total))
                self._stage_seen = run.stage_changes

    async def _news(self) -> bool:
        """Waits for something to write. False when it is time for progress or a heartbeat."""
        run = self._run
        after = PROGRESS_SECONDS if run.stage_changes != self._stage_seen else self._heartbeat_seconds
        with trio.move_on_at(self._wrote_at + after):
            await run.news.park()
            return True
        return False

    async def _write_pieces(self) -> None:
        run, exchange = self._run, self._exchange
        first = exchange.pieces
        if first:
            lag_seconds = trio.current_time() - run.pushed_at if run.waiting else 0.0
            wait_seconds = coalescing_seconds(max(lag_seconds, self._write_seconds))
            with trio.move_on_at(max(self._wrote_at + FRAME_SECONDS, trio.current_time() + wait_seconds)):
                await run.ended.wait()
        run.waiting = False
        pieces = _portion(run.pieces, first)
        now_ms = self._now_ms()
        await self._send(
            StatusUpdate(
                stage="decode",
                first_piece=first,
                pieces=pieces,
                checkpoint=self._checkpoint(first + len(pieces), now_ms),
            )
        )

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

    async def _send(self, message: Message) -> None:
        exchange = self._exchange
        if exchange.fault is not None:
            raise StreamReset("the asker broke a rule; what comes next is the reader's to say")
        data = exchange.send(message, self._now_ms())
        began_at = trio.current_time()
        with trio.move_on_after(WRITE_SECONDS_MAX) as scope:
            await self._stream.send(data)
        if scope.cancelled_caught:
            raise SlowReader
        self._wrote_at = trio.current_time()
        self._write_seconds = self._wrote_at - began_at
        self._run.wrote(id(self), exchange.pieces)

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
