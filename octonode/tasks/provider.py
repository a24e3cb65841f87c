"""The provider's side: streams on AGENT_PROTOCOL, each a task for one of our engines."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import trio

from octonode.config import TasksConfig
from octonode.errors import RemoteProtocolError
from octonode.identity import Signer
from octonode.ids import PeerId
from octonode.network.clock import wall_clock_ms
from octonode.network.host import Stream, StreamReset
from octonode.protocol.exchange import Exchange, Received, report
from octonode.protocol.limits import DEFAULT_LIMITS, Limits
from octonode.protocol.messages import ErrorReport, Header, Message, TaskRequest, TaskResponse
from octonode.protocol.replay import ReplayWindow
from octonode.protocol.states import State
from octonode.protocol.work.skills import CHAT, SKILLS
from octonode.tasks.admission import Admission, Arrival, Refusal
from octonode.tasks.pricing import FREE, PriceList
from octonode.tasks.receipts import ReceiptStore, StoredReceipt, TaskLog, TaskRecord
from octonode.tasks.resident import Resident
from octonode.tasks.routing import PRIVACY_BUILT
from octonode.tasks.run import Run, bounded
from octonode.tasks.slots import EngineSlots, Measured, new_id
from octonode.tasks.timers import Pace, Watch
from octonode.tasks.writer import WRITE_SECONDS_MAX, SlowReader, Writer

log = logging.getLogger(__name__)

RUNS_ENDED_MAX, RUNS_ENDED_BYTES_MAX = 64, 64 * 1024 * 1024
"""Ended tasks whose answers are kept for the same request again, and their bytes; the oldest goes first."""
REATTACH_SECONDS = 1.0
"""How long a task whose last stream was lost goes on, in case its asker comes back for it."""
STREAMS_PER_TASK_MAX = 4

Key = tuple[PeerId, bytes]
"""Asker and message id of the request."""


class Access(Protocol):
    """Who may send us tasks: `network.access`."""

    @property
    def policy(self) -> str:
        """`token`, `peers` or `open`."""
        ...

    def allows(self, peer_id: PeerId, token: str) -> bool: ...

    def known(self, peer_id: PeerId) -> bool:
        """Known peers have larger rates: listed, or they have shown a right token."""
        ...


class Skill(Protocol):
    """Work of this node that no engine does, such as `tasks.pinning`. Who may ask for it is its own to say."""

    def refusal(self, peer: PeerId) -> Refusal | None:
        """Before the signature is looked at; must be cheap. None: the peer may ask, with a token or without."""
        ...

    async def work(self, run: Run, body: Mapping[str, Any], signer: Signer) -> TaskResponse:
        """Raises OctonodeError."""
        ...


class Provider:
    """Serves tasks. Constructor without I/O; `run` owns the work, `handle` is the stream handler."""

    def __init__(
        self,
        *,
        signer: Signer,
        settings: TasksConfig,
        resident: Resident,
        slots: EngineSlots,
        access: Access,
        receipts: ReceiptStore,
        tasks: TaskLog,
        skills: Mapping[str, Skill] | None = None,
        prices: PriceList = FREE,
        limits: Limits = DEFAULT_LIMITS,
        now_ms: Callable[[], int] = wall_clock_ms,
        new_id: Callable[[], bytes] = new_id,
    ) -> None:
        self._signer = signer
        self._resident = resident
        self._slots = slots
        self._access = access
        self._receipts = receipts
        self._tasks = tasks
        self._skills = dict(skills or {})
        self._prices = prices
        self._limits = limits
        self._now_ms = now_ms
        self._new_id = new_id
        self._replay = ReplayWindow(limits)
        self._admission = Admission(settings)
        self._runs: OrderedDict[Key, Run] = OrderedDict()
        self._ended: OrderedDict[Key, int] = OrderedDict()  # bytes of the answer
        self._idle = trio.lowlevel.ParkingLot()
        self._pace, self._watch = Pace(), Watch(WRITE_SECONDS_MAX)
        self._streams = 0
        """Streams whose task's news are not yet all read by the asker."""
        self._nursery: trio.Nursery | None = None

    @property
    def open(self) -> int:
        """Tasks not ended, queued ones among them."""
        return self._admission.open_tasks

    @property
    def leaving(self) -> bool:
        return self._admission.leaving

    def measured(self, root: str) -> Measured:
        """Speed and first token of our own engine, as its tasks have shown it."""
        return self._slots.measured.of(root)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled; tasks still open are then cut."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._pace.run)
            nursery.start_soon(self._watch.run)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def drain(self, deadline_seconds: float) -> bool:
        """Refuse new tasks with LEAVING and wait for the open ones. False when the deadline cut some off."""
        self._admission.leaving = True
        with trio.move_on_after(deadline_seconds):
            await self._until_idle()
            return True
        for run in tuple(self._runs.values()):
            run.cut(ErrorReport("LEAVING", "this node was stopped; ask another one"))
        with trio.move_on_after(WRITE_SECONDS_MAX):
            await self._until_idle()
        return False

    async def _until_idle(self) -> None:
        while self.open or self._streams:
            await self._idle.park()

    async def handle(self, stream: Stream) -> None:
        """One task from its request to its terminal frame. Raises StreamReset when the asker is lost."""
        exchange = Exchange(
            "provider", self._signer, stream.peer_id, self._limits, new_id=self._new_id, replay=self._replay
        )
        exchange.gate = partial(self._gate, stream.peer_id)
        try:
            events = await self._read_request(stream, exchange)
            if not events:
                return
            run = self._run_for(events[0], exchange)
        except RemoteProtocolError as fault:
            await self._refuse(stream, exchange, bounded(report(fault)))
            return
        if isinstance(run, ErrorReport):
            await self._refuse(stream, exchange, run)
            return
        self._take(events[1:], exchange, run)
        self._streams += 1
        try:
            await self._serve(stream, exchange, run)
        finally:
            self._streams -= 1
            self._idle.unpark_all()

    def _gate(self, peer: PeerId, header: Header, message: Message) -> None:
        """The cheap checks, before the signature. Raises RemoteProtocolError with the refusal's code."""
        if not isinstance(message, TaskRequest):
            raise RemoteProtocolError("negotiation is not built yet; send a TASK_REQUEST", code="UNSUPPORTED")
        skill = self._skills.get(message.skill)
        refusal = skill.refusal(peer) if skill is not None else None
        if refusal is None:
            allowed = skill is not None or self._access.allows(peer, message.token)
            known = self._knows(peer, message.skill)
            arrival = Arrival(peer, known, allowed, self._access.policy, header.expires_at_ms)
            refusal = self._admission.first_look(arrival, self._now_ms())
        if refusal is not None:
            raise RemoteProtocolError(
                refusal.message, code=refusal.code, retry_after_seconds=refusal.retry_after_ms / 1000 or None
            )

    def _knows(self, peer: PeerId, skill: str) -> bool:
        """Whether it has the larger rates: a skill knows its own askers."""
        return skill in self._skills or self._access.known(peer)

    async def _read_request(self, stream: Stream, exchange: Exchange) -> list[Received]:
        """The request and what came with it; nothing when the peer left. Raises RemoteProtocolError, StreamReset."""
        with trio.move_on_after(self._limits.request_wait_ms / 1000):
            while True:
                data = await stream.receive()
                if not data:
                    exchange.receive_end(self._now_ms())
                    return []
                events = exchange.receive(data, self._now_ms())
                if events:
                    return events
        await stream.reset()
        return []

    def _run_for(self, request: Received, exchange: Exchange) -> Run | ErrorReport:
        """The run of this request: a new one, the one it belongs to already, or why there is none."""
        key = (exchange.remote, bytes(request.header.id))
        if request.again:
            run = self._runs.get(key)
            if run is None or len(run.delivered) >= STREAMS_PER_TASK_MAX:
                return ErrorReport(
                    "REPLAY", "this request was made before and its answer is kept no more; send a new one"
                )
            return run
        assert exchange.request is not None
        skill = self._skills.get(exchange.request.skill)
        known = self._knows(exchange.remote, exchange.request.skill)
        refusal = self._second_look(exchange, known)
        if refusal is not None:
            self._log_rejected(exchange, refusal)
            return ErrorReport(refusal.code, refusal.message, refusal.retry_after_ms)
        assert self._nursery is not None
        run = Run(
            exchange,
            conversation=request.header.conversation,
            now_ms=self._now_ms,
            work=skill.work if skill is not None else None,
        )
        self._runs[key] = run
        self._nursery.start_soon(self._work, key, run, known)
        return run

    def _second_look(self, exchange: Exchange, known: bool) -> Refusal | None:
        """What is left to check of a request whose signature holds. None: it counts as open now."""
        request = exchange.request
        assert request is not None
        if self._nursery is None:
            return Refusal("LEAVING", "this node is starting or stopping; ask another one", 5000)
        if request.skill in self._skills:
            return self._admission.begin(exchange.remote, queue_full=False, known=known)
        if request.skill != CHAT and request.skill not in SKILLS:
            known_skills = ", ".join((CHAT, *SKILLS))
            return Refusal("UNSUPPORTED", f"skill {request.skill[:32]!r} is not known here; known are {known_skills}")
        if request.privacy not in PRIVACY_BUILT:
            return Refusal("PRIVACY_UNAVAILABLE", f"privacy level {request.privacy} cannot be kept by this node")
        engine = self._resident.engine(request.model)
        if engine is None and self._resident.model(request.model) is None:
            return Refusal("MODEL_NOT_FOUND", f"{request.model} is not served here")
        if engine is not None and request.skill not in engine.facts.skills:
            has = ", ".join(engine.facts.skills)
            return Refusal("UNSUPPORTED", f"{request.model} has no skill {request.skill}; it has {has}")
        if not self._prices.offers(request.mode):
            return Refusal("UNSUPPORTED", f"mode {request.mode} is not offered here; ask without a mode")
        if request.mode == "realtime":
            return self._not_at_once(request) or self._admission.begin(exchange.remote, queue_full=False, known=known)
        full = engine is not None and self._slots.full(request.model, engine.facts.parallel, request.mode)
        return self._admission.begin(exchange.remote, queue_full=full, known=known)

    def _not_at_once(self, request: TaskRequest) -> Refusal | None:
        """Why a realtime task cannot begin now; it never waits."""
        engine = self._resident.engine(request.model)
        if engine is None:
            return Refusal("MODEL_LOADING", f"{request.model} is not loaded yet, and a realtime task never waits", 1000)
        if self._slots.full(request.model, engine.facts.parallel, "realtime"):
            slots = engine.facts.parallel
            message = (
                f"all {slots} slots are taken, and a realtime task never waits; ask another node, or without a mode"
            )
            return Refusal("OVERLOADED", message, 1000)
        return None

    async def _work(self, key: Key, run: Run, known: bool) -> None:
        try:
            await run.work(resident=self._resident, slots=self._slots, signer=self._signer, prices=self._prices)
        finally:
            self._admission.end(run.peer, known=known)
            self._ended[key] = run.answer_bytes
            while len(self._ended) > RUNS_ENDED_MAX or sum(self._ended.values()) > RUNS_ENDED_BYTES_MAX:
                self._runs.pop(self._ended.popitem(last=False)[0], None)
            self._idle.unpark_all()
        self._keep(run)

    def _keep(self, run: Run) -> None:
        record = run.record()
        self._tasks.keep_task(record)
        if isinstance(run.terminal, TaskResponse) and run.terminal.receipt:
            self._receipts.keep_receipt(
                StoredReceipt(
                    task=run.task,
                    role="provider",
                    provider=self._signer.peer_id,
                    asker=run.peer,
                    model_root=run.request.model,
                    receipt=run.terminal.receipt,
                    request_header=run.request_header,
                    verified=True,
                    ended_at_ms=record.ended_at_ms,
                )
            )

    def _log_rejected(self, exchange: Exchange, refusal: Refusal) -> None:
        assert exchange.request is not None
        now_ms = self._now_ms()
        model = exchange.request.model
        record = TaskRecord(exchange.task, "provider", exchange.remote, model, "rejected", refusal.code, now_ms, now_ms)
        self._tasks.keep_task(record)

    async def _serve(self, stream: Stream, exchange: Exchange, run: Run) -> None:
        """Write the task's news while reading for a cancel. Raises StreamReset."""
        writer = Writer(
            stream, exchange, run, signer=self._signer, now_ms=self._now_ms, pace=self._pace, watch=self._watch
        )
        run.attach(writer)
        fault: list[RemoteProtocolError] = []
        lost = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, stream, exchange, run, nursery.cancel_scope, fault)
                await writer.write()
                lost = False
                nursery.cancel_scope.cancel()
        except* SlowReader:
            run.detach(writer)
            if not run.delivered:
                run.cut(ErrorReport("SLOW_READER", "the asker did not read"))
        except* StreamReset:
            pass
        finally:
            run.detach(writer)
            if lost and not run.delivered and run.terminal is None and self._nursery is not None:
                self._nursery.start_soon(self._give_up, run)
        if fault:
            await self._refuse(stream, exchange, bounded(report(fault[0])))
        elif lost:
            await stream.reset()
        else:
            await _until_read(stream)

    async def _listen(
        self,
        stream: Stream,
        exchange: Exchange,
        run: Run,
        scope: trio.CancelScope,
        fault: list[RemoteProtocolError],
    ) -> None:
        """Reads until the asker's end. Its loss ends this stream; a broken rule is left in `fault`."""
        try:
            while True:
                data = await stream.receive()
                if not data:
                    exchange.receive_end(self._now_ms())
                    return
                self._take(exchange.receive(data, self._now_ms()), exchange, run)
        except StreamReset:
            pass
        except RemoteProtocolError as error:
            fault.append(error)
        scope.cancel()

    def _take(self, events: list[Received], exchange: Exchange, run: Run) -> None:
        for event in events:
            message = event.message
            if isinstance(message, TaskRequest) and message.operation == "cancel":
                run.cancel()
            elif event.artifact is not None and exchange.input is not None:
                run.give_input(exchange.input)

    async def _give_up(self, run: Run) -> None:
        await trio.sleep(REATTACH_SECONDS)
        if not run.delivered:
            run.cancel()

    async def _refuse(self, stream: Stream, exchange: Exchange, why: ErrorReport) -> None:
        """Say why, where the protocol still allows a word; the transport then lets the peer read it."""
        if exchange.state not in (State.OPEN, State.CANCELING, State.BROKEN):
            await stream.reset()
            return
        with trio.move_on_after(WRITE_SECONDS_MAX) as scope:
            await stream.send(exchange.send(why, self._now_ms()))
        if scope.cancelled_caught:
            await stream.reset()


async def _until_read(stream: Stream) -> None:
    """Until the asker has ended its side, as it does once it has read our last frame. Raises StreamReset."""
    with trio.move_on_after(WRITE_SECONDS_MAX):
        await stream.finish()
        while await stream.receive():
            pass
