"""One provider is asked once: the stream, the request, the answer, and the leave that is taken from it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import trio

from octonode.config import TasksConfig
from octonode.engines.contract import TokenLogprob
from octonode.errors import OctonodeError, RemoteProtocolError, from_wire
from octonode.identity import Signer
from octonode.ids import AGENT_PROTOCOL, PeerId, TaskId
from octonode.network.host import Host, Stream, StreamReset
from octonode.protocol.exchange import Exchange, Received
from octonode.protocol.messages import ErrorReport, StatusUpdate, TaskRequest, TaskResponse
from octonode.protocol.states import State
from octonode.tasks.asking import Answered, Ask, Candidate, Made, Pieces, Progress
from octonode.tasks.inbox import Inbox
from octonode.tasks.orders import task_request
from octonode.tasks.results import piece_of, received, unpack_logprobs, unpack_result
from octonode.tasks.timers import Watch
from octonode.tasks.verification import Verification

log = logging.getLogger(__name__)

INLINE_SEND_BYTES = 64 * 1024
"""A larger request is written beside the reading, so that neither end waits for the other."""
PIECES_PER_TOKEN_MAX = 4
CHARACTERS_PER_TOKEN_MAX = 256
"""An answer longer than this for its max_tokens is not one: its provider is left."""
PATIENT = frozenset({"batch", "async"})
"""Modes whose first token may take as long as the question itself: a silence still counts as a loss."""
DRAIN_SECONDS = 2.0
RESET_SECONDS = 1.0


class RemoteAttempt:
    """One question to one provider. `ask` may be called once; `left` says what to do with the stream afterwards."""

    def __init__(
        self,
        ask: Ask,
        candidate: Candidate,
        *,
        host: Host,
        signer: Signer,
        settings: TasksConfig,
        silences: Watch,
        token: str,
        inbox: Inbox,
        conversation: bytes,
        now_ms: Callable[[], int],
        new_id: Callable[[], bytes],
    ) -> None:
        self._ask = ask
        self._candidate = candidate
        self.provider: PeerId = candidate.peer
        self._host = host
        self._settings = settings
        self._silences = silences
        self._silent = trio.CancelScope()
        self.waits_since = math.inf
        self._inbox = inbox
        self._now_ms = now_ms
        self._exchange = Exchange("asker", signer, candidate.peer, new_id=new_id)
        self._us = signer.peer_id
        self._token = token
        self._conversation = conversation
        self._stream: Stream | None = None
        self._sent_whole = False
        tokens_max = ask.max_tokens if ask.work is None else 0
        self._pieces_max = tokens_max * PIECES_PER_TOKEN_MAX + PIECES_PER_TOKEN_MAX
        self._characters_max = tokens_max * CHARACTERS_PER_TOKEN_MAX + CHARACTERS_PER_TOKEN_MAX
        self._characters = 0
        self._artifacts: dict[str, bytes] = {}
        self._steps_done = 0
        self._patience_seconds = math.inf if ask.mode in PATIENT else settings.first_token_timeout_seconds
        self.received: list[str] = []
        """Pieces of the answer so far; of a result the one that stands for it."""
        self.verification: Verification | None = None

    async def ask(self) -> Answered:
        """Streams into the inbox. Raises OctonodeError: the provider's refusal, or PROVIDER_LOST and its kind.

        A silence, before or behind the first token, is a loss. Of work that makes its result in steps, each step
        gives it the time of a first token anew.
        """
        self.waits_since = trio.current_time()
        self._silences.add(self)
        try:
            with self._silent:
                seconds = self._patience_seconds
                with trio.move_on_after(seconds) as waiting:
                    return await self._ask_within(waiting)
                what = "had no token" if self._ask.work is None else "got no further with it"
                raise OctonodeError(f"{self.provider} {what} within {seconds:g} s", code="DEADLINE")
        finally:
            self._silences.remove(self)
        raise OctonodeError(f"{self.provider} was silent for {self._silences.seconds_max:g} s", code="PROVIDER_LOST")

    def give_up(self) -> None:
        self._silent.cancel()

    async def _ask_within(self, waiting: trio.CancelScope) -> Answered:
        stream = self._stream = await self._host.open(self.provider, AGENT_PROTOCOL)
        exchange = self._exchange
        now_ms = self._now_ms()
        request = exchange.send(
            task_request(self._ask, self._token),
            now_ms,
            conversation=self._conversation,
            expires_at_ms=now_ms + min(int(self._ask.deadline_seconds * 1000), exchange.limits.expiry_ahead_ms_max),
        )
        self.verification = Verification(
            self._ask,
            asker=self._us,
            provider=self.provider,
            offer=self._candidate,
            task=exchange.task,
            request_sha256=exchange.request_sha256,
        )
        if len(request) <= INLINE_SEND_BYTES:
            await self._send(stream, request)
            return await self._listen(stream, waiting)
        outcome: Answered | OctonodeError
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_beside, stream, request)
            try:
                outcome = await self._listen(stream, waiting)
            except OctonodeError as error:  # carried out by hand: a nursery would wrap it in a group
                outcome = error
            nursery.cancel_scope.cancel()
        if isinstance(outcome, OctonodeError):
            raise outcome
        return outcome

    async def _send(self, stream: Stream, data: bytes) -> None:
        await stream.send(data)
        self._sent_whole = True

    async def _send_beside(self, stream: Stream, data: bytes) -> None:
        try:
            await self._send(stream, data)
        except StreamReset:
            log.debug("%s reset the stream of a request; the reading side tells", self.provider)

    async def _listen(self, stream: Stream, waiting: trio.CancelScope) -> Answered:
        exchange = self._exchange
        while True:
            data = await stream.receive()
            self.waits_since = trio.current_time()
            now_ms = self._now_ms()
            if not data:
                exchange.receive_end(now_ms)
                raise OctonodeError(f"{self.provider} ended the stream", code="PROVIDER_LOST")
            for event in exchange.receive(data, now_ms):
                message = event.message
                if type(message) is StatusUpdate:
                    self._update(message, waiting)
                    if event.artifact is not None:
                        self._artifacts = {event.artifact.name: event.artifact.data}
                elif isinstance(message, TaskResponse):
                    return self._answered(message)
                else:
                    raise self._refusal(event)
            if self._inbox.full:
                self.waits_since = math.inf  # it is our consumer who is slow now
                await self._inbox.room()
                self.waits_since = trio.current_time()

    def _update(self, update: StatusUpdate, waiting: trio.CancelScope) -> None:
        assert self.verification is not None
        if update.pieces:
            if not self.received:
                waiting.deadline = math.inf
            if self._ask.work is None:
                self._inbox.put(Pieces(update.pieces, len(self.received)))
            self.received += update.pieces
            self._characters += sum(map(len, update.pieces))
            if len(self.received) > self._pieces_max or self._characters > self._characters_max:
                raise OctonodeError(f"{self.provider} sent more than was asked for", code="BAD_MESSAGE")
            self.verification.pieces(update.pieces)
        elif not self.received:
            self._inbox.put(Progress(self.provider, update.stage, update.done, update.total))
            if update.stage == "step" and self._steps_done < update.done <= update.total:  # never endlessly
                self._steps_done = update.done
                waiting.deadline = max(waiting.deadline, trio.current_time() + self._patience_seconds)
        if update.checkpoint:
            self.verification.checkpoint(update.checkpoint)

    def _answered(self, response: TaskResponse) -> Answered:
        if response.state != "completed":
            raise OctonodeError(f"{self.provider} canceled the task", code="PROVIDER_LOST")
        verification = self.verification
        assert verification is not None
        verification.response(response)
        made = self._result(response)
        return Answered(
            finish_reason=response.finish_reason,
            tokens_in=response.tokens_in,
            tokens_out=response.tokens_out,
            provider=self.provider,
            local=False,
            verified=not verification.reason,
            reason=verification.reason,
            receipt=response.receipt or None,
            request=self._exchange.request_payload,
            request_header=self._exchange.request_header,
            task=self._exchange.task,
            pieces_total=len(self.received),
            logprobs=made,
        )

    def _result(self, response: TaskResponse) -> tuple[TokenLogprob, ...]:
        """Hands a result on; the logprobs of a text. Raises RemoteProtocolError for what is neither."""
        ask = self._ask
        if ask.work is not None:
            data = received(response, self._artifacts)
            if self.received != [piece_of(data)]:
                raise RemoteProtocolError("the result is not what the transcript stands for")
            self._inbox.put(Made(unpack_result(ask.skill, data)))
        elif ask.logprobs and response.tokens_out:
            return unpack_logprobs(received(response, self._artifacts))
        return ()

    @property
    def given(self) -> int:
        """Pieces that the consumer has, or will have: after the first, no other provider can be asked."""
        return len(self.received) if self._ask.work is None else 0

    def _refusal(self, event: Received) -> OctonodeError:
        message = event.message
        assert isinstance(message, ErrorReport), "the exchange lets an asker receive nothing else"
        error = from_wire(message.code, message.message, message.retry_after_ms / 1000 or None)
        error.detail.setdefault("provider", self.provider)
        return error

    @property
    def task(self) -> TaskId:
        return self._exchange.task

    async def leave(self, *, drain: bool = True) -> None:
        """Ends the stream, whatever its state: finished when all is said, else cancel, drain for 2 s, reset."""
        stream, exchange = self._stream, self._exchange
        if stream is None:
            return
        if self._sent_whole and (exchange.state is State.CLOSED or (drain and exchange.state is State.OPEN)):
            with trio.move_on_after(DRAIN_SECONDS):
                if await self._part_in_peace(stream):
                    return
        with trio.move_on_after(RESET_SECONDS, shield=True):
            await stream.reset()

    async def _part_in_peace(self, stream: Stream) -> bool:
        """Cancel what is still open, read to the terminal frame and to the end. False: it has to be reset."""
        exchange = self._exchange
        try:
            if exchange.state is State.OPEN:
                await stream.send(exchange.send(TaskRequest(operation="cancel"), self._now_ms()))
            while not exchange.closed:
                data = await stream.receive()
                if not data:
                    return False
                exchange.receive(data, self._now_ms())
            await stream.finish()
            while await stream.receive():  # a stream read to its end is given back; one that is not counts as open
                pass
        except (StreamReset, RemoteProtocolError):
            return False
        return True
