"""One question on its way through the candidates: the drive behind `Dispatcher.ask`."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from octonode.errors import NotFound, OctonodeError
from octonode.ids import TaskId
from octonode.protocol.exchange import Exchange
from octonode.tasks.asking import NO_TASK, Answered, Ask, Attempt, Candidate, Made, Pieces, Progress, ProviderLost
from octonode.tasks.faults import told
from octonode.tasks.generation import Generation, Order
from octonode.tasks.inbox import Inbox
from octonode.tasks.orders import check, engine_request, task_request
from octonode.tasks.receipts import StoredReceipt, TaskRecord
from octonode.tasks.routing import PRIVACY_BUILT, prompt_tokens_least
from octonode.tasks.standings import is_theirs, moves_on

if TYPE_CHECKING:
    from octonode.tasks.dispatcher import Dispatcher

log = logging.getLogger(__name__)


class Question:
    """State of one `ask`. `drive` raises nothing: what goes wrong is raised by the inbox."""

    def __init__(self, ask: Ask, home: Dispatcher) -> None:
        self.inbox = Inbox()
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self._ask = ask
        self._home = home
        self._conversation = ask.conversation or home.new_id()
        self._started = trio.current_time()
        self._started_at_ms = home.now_ms()
        self._failures: list[tuple[Candidate, OctonodeError]] = []
        self._tried: set[str] = set()
        self._last_task = NO_TASK
        self._answered: Answered | None = None

    async def drive(self) -> None:
        error: OctonodeError | None = None
        try:
            with self.scope, trio.move_on_after(self._ask.deadline_seconds) as deadline:
                error = await self._through_the_candidates()
            if deadline.cancelled_caught:
                error = OctonodeError("the question expired before it was answered; give it more time", code="DEADLINE")
        except Exception as bug:
            error = told(bug)
            if error is None:
                log.error("a question failed by a bug: %r", bug, exc_info=bug)
                error = OctonodeError("this node met a bug in itself; see its log", code="INTERNAL")
        finally:
            if error is not None:
                self.inbox.fail(error)
            elif not self.inbox.ended:
                self.inbox.fail(OctonodeError("this node is stopping; ask another one", code="LEAVING"))
            self._keep(error)
            self.ended.set()

    async def _through_the_candidates(self) -> OctonodeError | None:
        """None once it is answered, else the error for the consumer."""
        ask, home = self._ask, self._home
        if ask.privacy not in PRIVACY_BUILT:
            message = f"privacy level {ask.privacy} is not kept by this version; it is refused, never lowered"
            return OctonodeError(message, code="PRIVACY_UNAVAILABLE")
        check(ask)
        verdicts: tuple[Candidate, ...] = ()
        for first_round in (True, False):
            known = home.providers.known(ask.model_root) if first_round else await home.find(ask.model_root)
            verdicts = home.choose(ask, known)
            for candidate in verdicts:
                waits = first_round and candidate.local and home.resident.engine(ask.model_root) is None
                if not candidate.accepted or candidate.peer in self._tried or waits:
                    continue
                if len(self._tried) >= max(1, home.settings.candidates_max):
                    return self._nobody(verdicts)
                error = await self._try(candidate)
                if error is None:
                    return None
                if not moves_on(error) or isinstance(error, ProviderLost):
                    return error
                self._failures.append((candidate, error))
        return self._nobody(verdicts)

    async def _try(self, candidate: Candidate) -> OctonodeError | None:
        """Ask one candidate; None when it has answered."""
        moved_on = ""
        if self._failures:
            self._home.moved_on += 1
            before = self._failures[-1][1]
            moved_on = f"{before.code}: {before.message}"
        self.inbox.put(Attempt(len(self._tried), candidate.peer, candidate.local, moved_on))
        self._tried.add(candidate.peer)
        answered = await (self._ask_local() if candidate.local else self._ask_peer(candidate))
        if isinstance(answered, OctonodeError):
            log.info("%s did not answer: %s", candidate.peer, answered.code)
            return answered
        now = trio.current_time()
        first_at = self.inbox.first_piece_at
        self._answered = replace(
            answered,
            first_token_seconds=(first_at if first_at is not None else now) - self._started,
            seconds=now - self._started,
        )
        self.inbox.put(self._answered)
        self.inbox.end()
        return None

    async def _ask_peer(self, candidate: Candidate) -> Answered | OctonodeError:
        home = self._home
        attempt = home.attempt(self._ask, candidate, inbox=self.inbox, conversation=self._conversation)
        try:
            answered = await attempt.ask()
        except OctonodeError as error:
            self._last_task = attempt.task
            slow_consumer = error.code == "SLOW_READER" and not is_theirs(error)
            if not slow_consumer:
                home.standings.failed(candidate.peer, home.now_ms(), error.retry_after_seconds)
            if attempt.given and not slow_consumer:
                return ProviderLost(
                    f"{candidate.peer} was lost after {len(attempt.received)} pieces: {error.message}",
                    provider=candidate.peer,
                    received=tuple(attempt.received),
                    attested=attempt.verification.attested if attempt.verification else 0,
                )
            return error
        finally:
            home.take_leave(attempt)
        if answered.verified:
            home.standings.succeeded(candidate.peer)
        else:
            log.warning("the answer of %s is not verified: %s", candidate.peer, answered.reason)
            home.standings.failed(candidate.peer, home.now_ms())
        return answered

    async def _ask_local(self) -> Answered | OctonodeError:
        """Our own engine, with a request and a receipt as for anybody, both signed by us."""
        ask, home = self._ask, self._home
        exchange = Exchange("asker", home.signer, home.us, new_id=home.new_id)
        message = task_request(ask, "")
        exchange.send(message, home.now_ms(), conversation=self._conversation)
        self._last_task = exchange.task
        scope = f"{home.us}/{ask.conversation.hex()}" if ask.conversation else ""
        order = Order(
            exchange.task,
            home.us,
            ask.model_root,
            engine_request(message.skill, message.input, message.parameters, cache_scope=scope),
            exchange.request_header,
            exchange.request_sha256,
            ask.privacy,
            home.now_ms(),
            ask.mode,
        )
        made = Generation(order, resident=home.resident, slots=home.slots, now_ms=home.now_ms)
        sink = _LocalSink(self)
        try:
            await made.work(sink)
        except Exception as fault:
            error = told(fault)
            if error is None:
                raise
            return self._local_loss(error, sink)
        if made.made is not None:
            self.inbox.put(Made(made.made))
        return Answered(
            finish_reason=made.finish_reason,
            tokens_in=made.tokens_in,
            tokens_out=made.tokens_out,
            provider=home.us,
            local=True,
            verified=True,
            receipt=made.receipt(home.signer),
            request=exchange.request_payload,
            request_header=exchange.request_header,
            task=exchange.task,
            pieces_total=made.transcript.count,
            logprobs=tuple(made.logprobs),
        )

    def _local_loss(self, error: OctonodeError, sink: _LocalSink) -> OctonodeError:
        if not sink.received or error.code == "SLOW_READER":
            return error
        lost = ProviderLost(error.message, provider=self._home.us, received=tuple(sink.received))
        lost.code = error.code
        return lost

    def _nobody(self, verdicts: tuple[Candidate, ...]) -> OctonodeError:
        """The error when no candidate is left: what the most telling one said, and what became of each."""
        told_us = [
            {"peer": candidate.peer, "code": error.code, "message": error.message}
            for candidate, error in self._failures
        ]
        refused = [{"peer": v.peer, "code": "", "message": v.reason} for v in verdicts if not v.accepted]
        detail = {"candidates": (told_us + refused)[:16]}
        if not self._failures:
            least = prompt_tokens_least(self._ask)
            longest = max((v.context_tokens for v in verdicts), default=0)
            if 0 < longest <= least:
                message = f"the prompt has at least {least} tokens and the model takes {longest}; shorten it"
                return OctonodeError(message, code="CONTEXT_EXCEEDED", detail=detail)
            if refused:
                message = f"nobody can take this question: {refused[0]['message']}"
                return OctonodeError(message, code="MODEL_UNAVAILABLE", retry_after_seconds=5.0, detail=detail)
            message = f"nobody serves {self._ask.model_root}; `octonode models ls` shows what peers serve"
            return NotFound(message, code="MODEL_NOT_FOUND", detail=detail)
        # A word of refusal tells more than a lost connection.
        spoken = [error for _, error in self._failures if error.code not in ("PROVIDER_LOST", "UNREACHABLE")]
        error = spoken[-1] if spoken else self._failures[-1][1]
        waits = [e.retry_after_seconds for _, e in self._failures if e.retry_after_seconds is not None]
        message = error.message if len(self._failures) == 1 else f"{len(self._failures)} were asked; {error.message}"
        return OctonodeError(
            message, code=error.code, retry_after_seconds=min(waits, default=None), detail={**error.detail, **detail}
        )

    def _keep(self, error: OctonodeError | None) -> None:
        """The task's record, and the receipt."""
        home, answered = self._home, self._answered
        if answered is None:
            peer = self._failures[-1][0].peer if self._failures else home.us
            record = TaskRecord(
                task=self._last_task or TaskId(home.new_id()),
                role="asker",
                peer=peer,
                model_root=self._ask.model_root,
                state="canceled" if error is None else "failed",
                code="" if error is None else error.code,
                started_at_ms=self._started_at_ms,
                ended_at_ms=home.now_ms(),
            )
            home.tasks.keep_task(record)
            return
        record = TaskRecord(
            task=answered.task,
            role="asker",
            peer=answered.provider,
            model_root=self._ask.model_root,
            state="completed",
            code="" if answered.verified else "VERIFICATION_FAILED",
            started_at_ms=self._started_at_ms,
            ended_at_ms=home.now_ms(),
            tokens_in=answered.tokens_in,
            tokens_out=answered.tokens_out,
            receipt=answered.receipt is not None,
            first_token_seconds=answered.first_token_seconds if answered.pieces_total else None,
        )
        home.tasks.keep_task(record)
        if answered.receipt is not None:
            home.receipts.keep_receipt(
                StoredReceipt(
                    task=answered.task,
                    role="asker",
                    provider=answered.provider,
                    asker=home.us,
                    model_root=self._ask.model_root,
                    receipt=answered.receipt,
                    request_header=answered.request_header,
                    verified=answered.verified,
                    ended_at_ms=record.ended_at_ms,
                )
            )


class _LocalSink:
    """Hands what the local engine makes to the inbox."""

    def __init__(self, question: Question) -> None:
        self._inbox = question.inbox
        self._us = question._home.us
        self._text = question._ask.work is None
        self.received: list[str] = []

    def progress(self, stage: str, done: int, total: int) -> None:
        if not self.received:
            self._inbox.put(Progress(self._us, stage, done, total))

    async def emit(self, pieces: tuple[str, ...]) -> None:
        if not self._text:
            return
        self._inbox.put(Pieces(pieces, len(self.received)))
        self.received += pieces
        if self._inbox.full:
            await self._inbox.room()
