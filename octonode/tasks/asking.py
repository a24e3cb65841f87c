"""A question and what comes back for it, as values. `dispatcher` turns one into the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octonode.engines.contract import TokenLogprob
from octonode.errors import OctonodeError
from octonode.ids import PeerId, TaskId
from octonode.protocol.messages import Mode, Privacy
from octonode.protocol.work.skills import CHAT, WorkRequest, WorkResult, skill_of

NO_TASK = TaskId(b"")

Ranking = Literal["balanced", "speed", "first_token", "cost"]
"""How candidates are ordered; `routing.RANKINGS` says by what."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for whoever serves the model best: a chat completion, unless `work` says otherwise."""

    model_root: str
    """Root CID of the model."""
    messages: tuple[dict[str, str], ...] = ()
    """OpenAI's list of {role, content}."""
    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    prompt: str = ""
    """In place of messages: a text to go on from, without a chat template."""
    schema: str = ""
    """JSON Schema, as JSON text, that the answer must satisfy."""
    logprobs: int = 0
    """Alternatives to tell of each token; 0: none, -1: the chosen token alone."""
    work: WorkRequest | None = None
    """In place of a chat: a request of another skill, whose result comes as `Made`."""
    privacy: Privacy = "public"
    mode: Mode = ""
    """How soon, and at which of a node's prices."""
    peer: PeerId | None = None
    """Ask this peer alone, no other and not the local engine. Our own id: the local engine alone."""
    rank: Ranking = "balanced"
    conversation: bytes = b""
    """16 bytes that later questions of the same conversation repeat, so that prompt caches help; empty: a new one."""
    deadline_seconds: float = 600.0
    """The task expires at its provider after this; at most an hour."""

    @property
    def skill(self) -> str:
        return CHAT if self.work is None else skill_of(self.work).name


@dataclass(frozen=True, slots=True)
class Attempt:
    """A candidate is being asked now. The second and later ones say why the one before was left."""

    number: int
    """From 0."""
    provider: PeerId
    local: bool
    moved_on: str = ""
    """Code and message of the attempt before; empty for the first."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The provider works and has no text yet."""

    provider: PeerId
    stage: str
    """`queued`, `collecting`, `fetching`, `loading`, `prefill`, `decode`, `step`."""
    done: int = 0
    total: int = 0
    """Units of the stage: place in the queue, bytes, tokens, steps; 0 of 0 where unknown."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Text of the answer, in order and without gaps."""

    pieces: tuple[str, ...]
    first: int = 0
    """Index of the first of them in the answer."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Made:
    """The result of a request that is no chat, just before `Answered`."""

    result: WorkResult


@dataclass(frozen=True, slots=True)
class Answered:
    """The last event: the answer is whole."""

    finish_reason: str
    """`stop` or `length`."""
    tokens_in: int
    tokens_out: int
    provider: PeerId
    local: bool
    verified: bool
    """The receipt is the provider's, about our request, and its transcript is what we received."""
    reason: str = ""
    """Why it is not verified."""
    receipt: bytes | None = None
    """dag-cbor bytes as signed, protocols/receipt.md; None when the provider sent none."""
    request: bytes = b""
    """Our signed request as it was sent: `[header, signature, body]`, with the prompt in it. Never kept."""
    request_header: bytes = b""
    """Header of our signed request, the bytes that the receipt's request hash is about."""
    task: TaskId = NO_TASK
    pieces_total: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the answer's tokens in order, where they were asked for. The transcript does not cover them."""
    first_token_seconds: float = 0.0
    """From the first attempt to the first piece."""
    seconds: float = 0.0
    """From the first attempt to this event."""


AskEvent = Attempt | Progress | Pieces | Made | Answered


class ProviderLost(OctonodeError):
    """The provider was lost after it had begun to answer. `received` is what it gave before, in order."""

    code = "PROVIDER_LOST"

    def __init__(self, message: str, *, provider: PeerId, received: tuple[str, ...], attested: int = 0) -> None:
        super().__init__(message, detail={"provider": provider, "pieces": len(received), "attested_pieces": attested})
        self.provider = provider
        self.received = received
        self.attested = attested
        """How many of the pieces stand under a checkpoint that the provider signed."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One who might answer, with the verdict. `Dispatcher.explain` gives all of them, the accepted ones in order."""

    peer: PeerId
    local: bool
    accepted: bool
    reason: str
    """Why it was rejected, or by what it was ranked."""
    rank: int = 0
    """Order in which accepted candidates are asked, from 0."""
    tier: str = ""
    tokens_per_second: float = 0.0
    first_token_ms: float = 0.0
    running: int = 0
    parallel: int = 0
    context_tokens: int = 0
    price_in_micro_octo: int = 0
    price_out_micro_octo: int = 0
    """Of the mode that was asked for."""
    price_basis: str = "tokens"
