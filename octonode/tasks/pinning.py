"""Skill `octonode/pin`: who may ask this node to keep models, and what is answered. Spec: protocols/pin.md."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from octonode.errors import OctonodeError
from octonode.identity import Signer
from octonode.ids import PeerId
from octonode.network.clock import wall_clock_ms
from octonode.protocol import pins as wire
from octonode.protocol.messages import TaskResponse
from octonode.protocol.pins import PinRequest, PinResult
from octonode.protocol.receipt import EngineFingerprint, Price, Receipt, Times, sign_receipt
from octonode.protocol.transcript import Transcript
from octonode.tasks.admission import Refusal
from octonode.tasks.keeping import Keeping
from octonode.tasks.pin_ports import Progress
from octonode.tasks.run import Run

SKILL = wire.SKILL


class Pinning:
    """`tasks.provider.Skill`, and the same verbs for the owner of the node. Nothing to run."""

    def __init__(self, keeping: Keeping, *, own: PeerId, allowed: Collection[PeerId]) -> None:
        self._keeping = keeping
        self._own = own
        self._allowed = frozenset(allowed)

    def refusal(self, peer: PeerId) -> Refusal | None:
        """Before the signature is looked at: who is not listed costs nothing. None: it may ask."""
        if peer == self._own or peer in self._allowed:
            return None
        return Refusal(
            "FORBIDDEN",
            "this node keeps models for listed peers; ask its owner to put your peer id into storage.allowed_peers",
        )

    async def work(self, run: Run, body: Mapping[str, Any], signer: Signer) -> TaskResponse:
        """One request to its end. Raises OctonodeError."""
        request = wire.decode_request(run.request.model, run.request.parameters, body)
        result = await self.ask(request, run.peer, lambda done, total: run.progress("fetching", done, total))
        receipt = b"" if request.verb == "list" else _receipt(run, request, result, signer)
        return TaskResponse(
            transcript=Transcript(run.request_sha256).digest, receipt=receipt, result=wire.encode_result(result)
        )

    async def ask(self, request: PinRequest, asker: PeerId, progress: Progress) -> PinResult:
        """What is pinned then. Raises OctonodeError: the codes of the page, or what the fetch raises."""
        keeping = self._keeping
        if not keeping.running:
            raise OctonodeError("this node is starting or stopping; ask again", code="LEAVING", retry_after_seconds=5)
        pins = []
        if request.verb == "pin":
            await keeping.take(request, asker)
            await keeping.until_kept(request.root, asker, progress)
            pins = [pin for pin in [keeping.book.get(request.root, asker)] if pin is not None]
        elif request.verb == "unpin":
            await keeping.undo(request.root, asker)
        else:
            pins = list(keeping.book.of_asker(asker))
        return PinResult(wire.by_root([keeping.facts(pin) for pin in pins]), await keeping.room(asker))


def _receipt(run: Run, request: PinRequest, result: PinResult, signer: Signer) -> bytes:
    """Our signed word, in the form of every receipt: until when we keep it."""
    pin = result.pins[0] if result.pins else None
    receipt = Receipt(
        request=run.request_sha256,
        task=run.task,
        asker=run.peer,
        provider=signer.peer_id,
        model_root=request.root,
        manifest="",
        engine=EngineFingerprint(SKILL, "", ""),
        parameters=wire.applied(request, pin.until_ms if pin else 0, pin.size_bytes if pin else 0),
        seed=None,
        tokens_in=0,
        tokens_out=0,
        pieces=0,
        transcript=Transcript(run.request_sha256).digest,
        finish_reason="stop",
        price=Price(),
        privacy=run.request.privacy,
        privacy_evidence="none",
        times=Times(run.started_at_ms, run.started_at_ms, 0, max(run.started_at_ms, wall_clock_ms())),
    )
    return sign_receipt(signer, receipt)
