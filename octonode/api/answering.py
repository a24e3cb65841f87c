"""One question of a face while it is being answered: its events followed, its cold model told of, its facts kept.

An answer's status is decided late: nothing is sent before there is something to send, so that what fails until then
has a real HTTP status and a client's own retry works.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

from octonode.api.ports import Ports
from octonode.api.schema import AnswerFacts, CandidateFacts, ModelFacts, read, to_json
from octonode.api.schema.fields import Terms
from octonode.errors import OctonodeError
from octonode.ids import PeerId, public_key_from_peer_id
from octonode.protocol.work.skills import WorkRequest, WorkResult
from octonode.tasks.asking import Answered, Ask, AskEvent, Attempt, Made, Pieces, Progress

COLD_WAIT_SECONDS = 10.0
"""How long a question waits for a model that is being fetched or loaded, before it is told to come back."""
COLD_STAGES = frozenset({"fetching", "loading"})
COLD_RETRY_SECONDS_MAX = 60.0

OnProgress = Callable[[Progress], None]


async def take_no_text(_: str) -> None:
    """For answers that are no text."""


class Answering:
    """One answer while it is being given: follows the events of its question and says at the end what they were."""

    def __init__(self, model: ModelFacts, terms: Terms, candidates: tuple[CandidateFacts, ...] = ()) -> None:
        self.model = model
        self._common = terms
        self._candidates = candidates
        self._attempts = 0
        self._answered: Answered | None = None
        self._made: WorkResult | None = None
        self._cold: tuple[float, Progress] | None = None  # when the model was first seen cold, and how far it was

    @property
    def end(self) -> Answered:
        assert self._answered is not None, "follow has returned"
        return self._answered

    @property
    def made(self) -> WorkResult:
        assert self._made is not None, "follow has returned, and the question was no chat"
        return self._made

    async def follow(
        self,
        events: AsyncIterator[AskEvent],
        take: Callable[[str], Awaitable[None]] = take_no_text,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Hands each text to `take`. Raises what `events` does, and MODEL_LOADING when a cold model stays cold."""
        progress: Progress | None = None
        with trio.CancelScope() as patience:
            async for event in events:
                if isinstance(event, Pieces):
                    patience.deadline = math.inf
                    await take(event.text)
                elif isinstance(event, Progress):
                    progress = event
                    patience.deadline = self._cold_deadline(event)
                    if on_progress is not None:
                        on_progress(event)
                elif isinstance(event, Attempt):
                    self._attempts += 1
                elif isinstance(event, Made):
                    self._made = event.result
                else:
                    self._answered = event
        if patience.cancelled_caught and progress is not None:
            raise self._still_cold(progress)
        if self._answered is None:
            raise OctonodeError("the answer ended without a word of its end; ask again", code="PROVIDER_LOST")

    def _cold_deadline(self, progress: Progress) -> float:
        if progress.stage not in COLD_STAGES:
            return math.inf
        if self._cold is None:
            self._cold = (trio.current_time(), progress)
        return self._cold[0] + COLD_WAIT_SECONDS

    def _still_cold(self, progress: Progress) -> OctonodeError:
        assert self._cold is not None
        since, first = self._cold
        done = progress.done - first.done if progress.stage == first.stage else 0
        pace = done / max(trio.current_time() - since, 1e-3)
        left_seconds = (progress.total - progress.done) / pace if pace > 0 else COLD_WAIT_SECONDS
        return OctonodeError(
            f"{self.model.reference} is {progress.stage} at {progress.provider}; ask again in a while",
            code="MODEL_LOADING",
            retry_after_seconds=max(1.0, min(COLD_RETRY_SECONDS_MAX, left_seconds)),
            detail={"progress": to_json(progress)},
        )

    def facts(self) -> AnswerFacts:
        """Who answered, and what proves it."""
        end = self.end
        return AnswerFacts(
            provider=end.provider,
            local=end.local,
            model_root=self.model.root,
            task=end.task.hex(),
            verified=end.verified,
            reason=end.reason,
            receipt=end.receipt or b"",
            request=end.request if self._common.request else b"",
            request_header=end.request_header,
            attempts=max(1, self._attempts),
            first_token_ms=round(end.first_token_seconds * 1000, 3),
            seconds=round(end.seconds, 6),
            candidates=self._candidates,
            manifest=self.model.manifest,
        )


async def begin(ports: Ports, ask: Ask, model: ModelFacts, terms: Terms) -> Answering:
    """An answering of `ask`, with everybody who is considered where the caller wants to know."""
    found = await ports.asking.explain(ask) if terms.explain else ()
    return Answering(model, terms, tuple(read(CandidateFacts, to_json(each)) for each in found))


def ask_on(terms: Terms, model: ModelFacts, *, work: WorkRequest | None = None, **fields: Any) -> Ask:
    """The `Ask` of a request. Raises BAD_REQUEST for a peer to ask that is no peer id, and as `check_skill`."""
    peer = peer_of(terms.peer, "octonode.peer")
    ask = Ask(model.root, work=work, privacy=terms.privacy, peer=peer, mode=terms.mode, **fields)
    check_skill(model, ask.skill)
    return ask


def peer_of(peer: str, param: str) -> PeerId | None:
    """The one peer to ask, None for the empty text. Raises BAD_REQUEST, with `param`, for what is no peer id."""
    if not peer:
        return None
    try:
        public_key_from_peer_id(peer)
    except ValueError:
        message = f"{peer[:64]!r} is no peer id (12D3KooW...); see: octonode peers"
        raise OctonodeError(message, code="BAD_REQUEST", detail={"param": param}) from None
    return PeerId(peer)


def check_skill(model: ModelFacts, skill: str) -> None:
    """Raises UNSUPPORTED for what none of those who serve the model can do: that will not change by asking again."""
    if model.skills and skill not in model.skills:
        message = f"{model.reference} cannot {skill}; it can {', '.join(model.skills)}"
        raise OctonodeError(message, code="UNSUPPORTED", detail={"param": "model"})


def proof_headers(facts: AnswerFacts) -> dict[str, str]:
    """What an answer that is no JSON says of itself; the receipt is at the path it names."""
    return {
        "x-octonode-provider": facts.provider,
        "x-octonode-model-root": facts.model_root,
        "x-octonode-task": facts.task,
        "x-octonode-verified": "true" if facts.verified else "false",
        "x-octonode-receipt": f"/api/v1/receipts/{facts.task}",
    }
