"""Continuous batching in one thread: requests come and go between two steps of the model, and none waits for another.

The event loop hands jobs in and is told of each step at once for all of them. Only this thread touches the model.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence

import trio

from octonode.engines.adapters.answering import Answer
from octonode.engines.adapters.llama_cpp_python_drawing import Chain
from octonode.engines.adapters.llama_cpp_python_model import LlamaModel
from octonode.engines.adapters.llama_cpp_python_plan import Row, Step, plan_step
from octonode.engines.contract import FinishReason, Logprobs, Pieces, TokenLogprob
from octonode.engines.slots import common_prefix
from octonode.errors import OctonodeError

Told = int | Pieces | Logprobs
"""An int: prompt tokens done."""


class Job:
    """One request. Made and read in the event loop; between `put` and `ended` it is the thread's."""

    def __init__(self, row: Row, reuse: bool, max_tokens: int) -> None:
        self.row = row
        self.reuse = reuse
        self.max_tokens = max_tokens
        self.cached = 0
        self.answer: Answer
        self.chain: Chain
        self.cancelled = False
        self.collected: list[Told] = []
        """Of the step that runs."""
        self.end: FinishReason | OctonodeError | None = None
        self.told: deque[Told] = deque()
        """Of the steps before; in the event loop. Bounded by the answer."""
        self.news = trio.Event()
        self.ended = False
        """Told in the event loop: the thread has let go of it."""


class Collector:
    """`base.Output` of a job's answer, in the thread."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def prefill(self, done_tokens: int, total_tokens: int) -> None:
        self._job.collected.append(done_tokens)

    def pieces(self, pieces: Sequence[str]) -> None:
        if pieces:
            self._job.collected.append(Pieces(tuple(pieces)))

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> None:
        if tokens:
            self._job.collected.append(Logprobs(tuple(tokens)))

    async def room(self) -> None: ...

    async def flush(self) -> None: ...


class StepLoop:
    """Runs steps while there are jobs. `put` and `cancel` are called in the event loop, `run` is the thread."""

    def __init__(self, model: LlamaModel, chunk: int, parallel: int, told: Callable[[list[Job]], None]) -> None:
        """`told` is called in the thread with the jobs of each step, ended ones among them."""
        self._model = model
        self._chunk = chunk
        self._told = told
        self._held: list[list[int]] = [[] for _ in range(parallel)]
        """Tokens in the cache of each slot."""
        self._changed = threading.Condition()
        self._new: list[Job] = []
        self._running: list[Job] = []

    def put(self, job: Job) -> None:
        """Takes up a job whose slot is its own until it ended."""
        with self._changed:
            self._new.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """It ends before the next step; the step that runs ends now if nobody else wants it."""
        job.cancelled = True
        with self._changed:
            if all(each.cancelled for each in (*self._running, *self._new)):
                self._model.stop_step(True)
            self._changed.notify()

    def run(self) -> None:
        """Never returns; the process ends over it."""
        while True:
            with self._changed:
                while not (self._new or self._running):
                    self._changed.wait()
                new, self._new = self._new, []
                self._running += new
                if not all(job.cancelled for job in self._running):
                    self._model.stop_step(False)
            try:
                for job in new:
                    self._admit(job)
                self._step()
            except Exception as error:  # the thread must not end: nobody else could tell those who wait
                self._fail(error)
            self._tell()

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, OctonodeError):
            print(f"a step failed: {type(error).__name__}", file=sys.stderr, flush=True)
            error = OctonodeError(f"the engine failed: {type(error).__name__}", code="ENGINE_FAILED")
        for job in self._running:
            job.end = job.end or error

    def _admit(self, job: Job) -> None:
        """What the slot holds of the prompt stays, if it may be looked at; all else of it goes."""
        slot = job.row.slot
        keep = common_prefix(self._held[slot], job.row.tokens) if job.reuse else 0
        job.cached = job.row.done = keep if self._model.keep(slot, keep) else 0
        job.collected.append(job.row.done)

    def _step(self) -> None:
        for job in self._running:
            job.end = "cancel" if job.cancelled else job.end
        going = [job for job in self._running if job.end is None]
        step = plan_step([job.row for job in going], self._chunk)
        if not step.parts:
            return
        rows = self._model.run(step)
        if rows is None:
            return  # stopped: who is cancelled leaves, the others do it again
        self._count(step, going)
        for job in going:
            if job.row.slot in rows:
                self._take_token(job, rows[job.row.slot])

    def _count(self, step: Step, going: Sequence[Job]) -> None:
        by_slot = {job.row.slot: job for job in going}
        for part in step.parts:
            part.row.done = part.end
            if part.end <= part.row.prompt_tokens:
                by_slot[part.row.slot].collected.append(part.end)

    def _take_token(self, job: Job, row: int) -> None:
        """Draws the next token of one job; an error of one costs no other."""
        try:
            over = job.answer.next(row)
            if over:
                job.end = "stop"
            elif job.answer.count >= job.max_tokens:
                job.end = job.answer.reason_at_limit
            if job.end == "length":
                job.answer.finish()
            else:
                job.answer.put_out()
            job.row.tokens += job.answer.last if job.end is None else ()
        except OctonodeError as error:
            job.end = error

    def _tell(self) -> None:
        jobs = list(self._running)
        with self._changed:
            self._running = [job for job in jobs if job.end is None]
        for job in jobs:
            if job.end is not None:
                row = job.row
                self._held[row.slot] = row.tokens[: row.done]
                job.chain.close()
        self._told(jobs)
