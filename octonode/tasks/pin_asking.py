"""Asks another node to keep a model: the other side of `pinning`. Spec: protocols/pin.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from octonode.config import TasksConfig
from octonode.errors import OctonodeError, RemoteProtocolError, VerificationFailed, from_wire
from octonode.identity import Signer
from octonode.ids import AGENT_PROTOCOL, PeerId
from octonode.network.clock import wall_clock_ms
from octonode.network.host import Host, Stream
from octonode.protocol import pins as wire
from octonode.protocol.envelope import NO_TASK
from octonode.protocol.exchange import Exchange
from octonode.protocol.messages import ErrorReport, StatusUpdate, TaskResponse
from octonode.protocol.pins import PinRequest, PinResult
from octonode.protocol.receipt import check_receipt, verify_receipt
from octonode.protocol.transcript import Transcript
from octonode.tasks.receipts import ReceiptStore, StoredReceipt, TaskLog, TaskRecord
from octonode.tasks.slots import new_id

LOST_MAX = 3
"""Times in a row that the keeper may be lost before it is given up: a pin asked for again is the same pin."""
LOST_SECONDS = 1.0
RESET_SECONDS = 1.0

Progress = Callable[[int, int], None]
"""(bytes there, bytes in all)."""


@dataclass(frozen=True, slots=True)
class PinAnswer:
    result: PinResult
    receipt: bytes
    """As signed by the keeper and verified; empty for `list`."""
    task: bytes


class PinAsker:
    """No task of its own; any number of questions at once."""

    def __init__(
        self,
        *,
        host: Host,
        signer: Signer,
        settings: TasksConfig,
        token_for: Callable[[PeerId], str],
        receipts: ReceiptStore,
        tasks: TaskLog,
        now_ms: Callable[[], int] = wall_clock_ms,
        new_id: Callable[[], bytes] = new_id,
    ) -> None:
        self._host = host
        self._signer = signer
        self._silence_seconds = settings.silence_timeout_seconds
        self._token_for = token_for
        self._receipts = receipts
        self._tasks = tasks
        self._now_ms = now_ms
        self._new_id = new_id

    async def ask(self, keeper: PeerId, request: PinRequest, progress: Progress) -> PinAnswer:
        """Until it is kept there, however long the fetch takes. Raises the keeper's refusal, Unreachable, PROVIDER_LOST
        as an OctonodeError, VerificationFailed for a receipt that is not about this request."""
        lost = 0
        while True:
            exchange = Exchange("asker", self._signer, keeper, new_id=self._new_id)
            try:
                answer = await self._ask_once(keeper, request, exchange, progress)
            except OctonodeError as error:
                self._log(exchange, request, keeper, error.code)
                lost = lost + 1 if error.code == "PROVIDER_LOST" else 0
                if not 0 < lost < LOST_MAX and error.code != "DEADLINE":
                    raise
                await trio.sleep(LOST_SECONDS)
                continue
            self._log(exchange, request, keeper, "", answer.receipt)
            return answer

    async def _ask_once(self, keeper: PeerId, request: PinRequest, exchange: Exchange, progress: Progress) -> PinAnswer:
        stream = await self._host.open(keeper, AGENT_PROTOCOL)
        ended = False
        try:
            expires_at_ms = self._now_ms() + exchange.limits.expiry_ahead_ms_max
            message = wire.encode_request(request, self._token_for(keeper))
            await stream.send(exchange.send(message, self._now_ms(), expires_at_ms=expires_at_ms))
            last = await self._listen(stream, exchange, progress)
            with trio.move_on_after(RESET_SECONDS):
                await stream.finish()
                while await stream.receive():  # a stream read to its end is given back
                    pass
                ended = True
        finally:
            if not ended:
                with trio.move_on_after(RESET_SECONDS, shield=True):
                    await stream.reset()
        if isinstance(last, ErrorReport):
            error = from_wire(last.code, last.message, last.retry_after_ms / 1000 or None)
            error.detail.setdefault("provider", keeper)
            raise error
        return self._answered(keeper, request, exchange, last)

    async def _listen(self, stream: Stream, exchange: Exchange, progress: Progress) -> TaskResponse | ErrorReport:
        """To the terminal frame. A silence is a loss."""
        while True:
            data = None
            with trio.move_on_after(self._silence_seconds):
                data = await stream.receive()
            if data is None:
                raise OctonodeError(
                    f"{stream.peer_id} was silent for {self._silence_seconds:g} s", code="PROVIDER_LOST"
                )
            if not data:
                exchange.receive_end(self._now_ms())
            for event in exchange.receive(data, self._now_ms()):
                message = event.message
                if isinstance(message, (TaskResponse, ErrorReport)):
                    return message
                if isinstance(message, StatusUpdate) and message.stage == "fetching":
                    progress(message.done, message.total)

    def _answered(self, keeper: PeerId, request: PinRequest, exchange: Exchange, response: TaskResponse) -> PinAnswer:
        if response.state != "completed":
            raise OctonodeError(f"{keeper} canceled the task", code="PROVIDER_LOST")
        result = wire.decode_result(response.result)
        us = self._signer.peer_id
        if any(pin.asker != us for pin in result.pins) or (
            request.verb == "pin" and [pin.root for pin in result.pins] != [request.root]
        ):
            raise RemoteProtocolError(f"{keeper} answers with pins that are not ours")
        if request.verb != "list":
            _check(response, request, result, exchange, us, keeper)
        return PinAnswer(result, response.receipt, exchange.task)

    def _log(self, exchange: Exchange, request: PinRequest, keeper: PeerId, outcome: str, receipt: bytes = b"") -> None:
        """`outcome`: empty, or the code of what went wrong."""
        if exchange.task == NO_TASK:
            return
        now_ms = self._now_ms()
        record = TaskRecord(
            exchange.task,
            "asker",
            keeper,
            request.root,
            "failed" if outcome else "completed",
            outcome,
            now_ms,
            now_ms,
            receipt=bool(receipt),
        )
        self._tasks.keep_task(record)
        if receipt:
            us, header = self._signer.peer_id, exchange.request_header
            kept = StoredReceipt(exchange.task, "asker", keeper, us, request.root, receipt, header, True, now_ms)
            self._receipts.keep_receipt(kept)


def _check(
    response: TaskResponse, request: PinRequest, result: PinResult, exchange: Exchange, us: PeerId, keeper: PeerId
) -> None:
    """The receipt is the keeper's, of this very request, and says what the answer says. Raises VerificationFailed."""
    if not response.receipt:
        raise VerificationFailed(f"{keeper} sent no receipt; whether it keeps the model is not attested")
    pin = result.pins[0] if result.pins else None
    check_receipt(
        verify_receipt(response.receipt),
        request=exchange.request_sha256,
        task=exchange.task,
        asker=us,
        provider=keeper,
        model_root=request.root,
        pieces=0,
        transcript=Transcript(exchange.request_sha256).digest,
        parameters=wire.applied(request, pin.until_ms if pin else 0, pin.size_bytes if pin else 0),
    )
