"""One answer made by one of our engines, for a peer or for ourselves: wait for it, run it, account for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from octonode.engines import contract
from octonode.engines.contract import Engine, EngineFacts, EngineRequest, Finished, GenerateRequest, TokenLogprob
from octonode.errors import NotFound, OctonodeError
from octonode.identity import Signer
from octonode.ids import PeerId, TaskId
from octonode.protocol.messages import Mode
from octonode.protocol.receipt import EngineFingerprint, Receipt, Times, sign_receipt
from octonode.protocol.transcript import Transcript
from octonode.protocol.work.skills import WorkResult
from octonode.tasks.orders import applied, seed_of
from octonode.tasks.pricing import FREE, PriceList
from octonode.tasks.resident import Resident
from octonode.tasks.results import pack_logprobs, pack_result, piece_of
from octonode.tasks.slots import EngineSlots

PIECE_CHARACTERS_MAX = 32 * 1024
"""An engine's larger piece is cut, so that every piece fits a frame."""
_FORGOTTEN = GenerateRequest((), 0)


class Sink(Protocol):
    """Where an answer goes while it is made."""

    def progress(self, stage: str, done: int, total: int) -> None: ...

    async def emit(self, pieces: tuple[str, ...]) -> None:
        """May wait: the engine then stalls this request alone."""
        ...


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made, for whom."""

    task: TaskId
    asker: PeerId
    model_root: str
    request: EngineRequest
    request_header: bytes
    request_sha256: bytes
    privacy: str
    received_at_ms: int
    mode: Mode = ""


class Generation:
    """One order on its way. `work` may be called once; what it has done so far can be read at any time."""

    def __init__(
        self,
        order: Order,
        *,
        resident: Resident,
        slots: EngineSlots,
        now_ms: Callable[[], int],
        prices: PriceList = FREE,
    ) -> None:
        self.order = order
        self.transcript = Transcript(order.request_sha256)
        self.facts: EngineFacts | None = None
        self.manifest = ""
        self.tokens_in = 0
        self.tokens_out = 0
        self.finish_reason = "cancel"
        self.result = b""
        """Bytes of the result, or of the logprobs that were asked for; empty for a plain text."""
        self.made: WorkResult | None = None
        self.logprobs: list[TokenLogprob] = []
        self._resident = resident
        self._slots = slots
        self._now_ms = now_ms
        self._prices = prices
        self._started_at_ms = 0
        self._first_at_ms = 0

    async def work(self, sink: Sink) -> Finished:
        """Waits for the model and for a slot, then streams into `sink`. Raises OctonodeError."""
        root = self.order.model_root
        self._resident.ask(root)
        try:
            return await self._work(root, sink)
        finally:
            self._resident.used(root)

    async def _work(self, root: str, sink: Sink) -> Finished:
        engine = await self._engine(sink)
        self.facts = engine.facts
        async with self._slots.slot(
            root,
            engine.facts.parallel,
            lambda place: sink.progress("queued", place, self._slots.waiting),
            mode=self.order.mode,
            batch_size=engine.facts.batch_size if engine.facts.batch_size > 1 else engine.facts.parallel,
            on_collect=lambda here, wanted: sink.progress("collecting", here, wanted),
        ):
            # It may have been unloaded or restarted while we stood in line.
            engine = await self._engine(sink)
            self.facts = engine.facts
            return await self._run(engine, sink)

    async def _engine(self, sink: Sink) -> Engine:
        """The loaded engine; waits, with progress, through the loading of a model that is wanted here."""
        root = self.order.model_root
        while True:
            seen = self._resident.changes
            engine = self._resident.engine(root)
            model = self._resident.model(root)
            if model is not None and model.model is not None:
                self.manifest = model.model.manifest
            if engine is not None:
                return engine
            if model is None:
                raise NotFound(f"{root} is not served here; `octonode models ls` shows what is", code="MODEL_NOT_FOUND")
            if model.state == "failed":
                raise OctonodeError(
                    f"{root} cannot be loaded now: {model.reason}",
                    code="MODEL_UNAVAILABLE",
                    retry_after_seconds=max(1.0, model.retry_in_seconds),
                )
            if model.state == "standby":  # it was unloaded for another one while we stood in line
                self._resident.ask(root)
            else:
                sink.progress(model.state, model.done_bytes, model.total_bytes)
            await self._resident.wait_changed(seen)

    async def _run(self, engine: Engine, sink: Sink) -> Finished:
        self._started_at_ms = self._now_ms()
        started = trio.current_time()
        first = 0.0
        request = self.order.request
        text = isinstance(request, GenerateRequest)
        sink.progress("prefill" if text else "step", 0, 0)
        async with engine.generate(request) if isinstance(request, GenerateRequest) else engine.make(request) as events:
            async for event in events:
                if type(event) is contract.Pieces:
                    if not self._first_at_ms:
                        self._first_at_ms = self._now_ms()
                        first = trio.current_time()
                    pieces = event.pieces if _all_small(event.pieces) else _cut(event.pieces)
                    self.transcript.extend(pieces)
                    self.tokens_out += len(event.pieces)
                    await sink.emit(pieces)
                elif type(event) is contract.Prefill:
                    self.tokens_in = event.total_tokens
                    sink.progress("prefill", event.done_tokens, event.total_tokens)
                elif type(event) is contract.Step:
                    sink.progress("step", event.done, event.total)
                elif type(event) is contract.Logprobs:
                    self.logprobs += event.tokens
                elif type(event) is contract.Made:
                    await self._take_result(event.result, sink)
                else:
                    assert isinstance(event, Finished)
                    self._finished(event, first - started, trio.current_time() - first)
                    return event
        raise OctonodeError("the engine ended the answer without saying so; try again", code="ENGINE_FAILED")

    async def _take_result(self, result: WorkResult, sink: Sink) -> None:
        self.made, self.result = result, pack_result(result)
        self._first_at_ms = self._now_ms()
        piece = piece_of(self.result)
        self.transcript.add(piece)
        await sink.emit((piece,))

    @property
    def first_token_seconds(self) -> float | None:
        """From the request's arrival to the first piece; None before it."""
        return (self._first_at_ms - self.order.received_at_ms) / 1000 if self._first_at_ms else None

    def _finished(self, event: Finished, first_seconds: float, decode_seconds: float) -> None:
        self.tokens_in = event.tokens_in
        self.tokens_out = event.tokens_out
        self.finish_reason = event.reason
        if self.logprobs:
            self.result = pack_logprobs(self.logprobs)
        if self._first_at_ms and event.reason != "cancel" and isinstance(self.order.request, GenerateRequest):
            self._slots.measured.note(
                self.order.model_root,
                first_token_ms=first_seconds * 1000,
                tokens=event.tokens_out - 1,
                seconds=decode_seconds,
            )

    def let_go(self) -> None:
        """Of what only the work needed: the request, which may hold a large picture, and the result as a record."""
        self.order, self.made, self.logprobs = replace(self.order, request=_FORGOTTEN), None, []

    def receipt(self, signer: Signer) -> bytes:
        """The signed receipt of what was done, dag-cbor. Once an engine was chosen, and before `let_go`."""
        facts, order = self.facts, self.order
        assert facts is not None
        now_ms = self._now_ms()
        receipt = Receipt(
            request=order.request_sha256,
            task=order.task,
            asker=order.asker,
            provider=signer.peer_id,
            model_root=order.model_root,
            manifest=self.manifest,
            engine=EngineFingerprint(
                f"{facts.engine} {facts.build}", facts.backend, facts.instruction_set, dict(facts.flags)
            ),
            parameters=applied(order.request),
            seed=seed_of(order.request),
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            pieces=self.transcript.count,
            transcript=self.transcript.digest,
            finish_reason=self.finish_reason,
            price=self._prices.price(
                order.mode,
                tokens_in=self.tokens_in,
                tokens_out=self.tokens_out,
                milliseconds=now_ms - self._started_at_ms if self._started_at_ms else 0,
            ),
            privacy=order.privacy,
            privacy_evidence="none",
            times=Times(order.received_at_ms, self._started_at_ms, self._first_at_ms, now_ms),
        )
        return sign_receipt(signer, receipt)


def _all_small(pieces: tuple[str, ...]) -> bool:
    return all(len(piece) <= PIECE_CHARACTERS_MAX for piece in pieces)


def _cut(pieces: tuple[str, ...]) -> tuple[str, ...]:
    size = PIECE_CHARACTERS_MAX
    return tuple(piece[at : at + size] for piece in pieces for at in range(0, max(1, len(piece)), size))
