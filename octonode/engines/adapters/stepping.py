"""Answers of an engine that computes a step at a time: a chunk of a prompt, or one token.

Requests take turns, one step each, first come, first served: so a long prompt or answer holds up nobody for longer than
a step of each other. Cancelling a request ends it before its next step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import trio

from octonode.engines.adapters.answering import Answer, Vocabulary
from octonode.engines.adapters.base import Output
from octonode.engines.adapters.grammar import Grammars
from octonode.engines.adapters.sampling import Logits, Sampler
from octonode.engines.adapters.token_text import TokenText
from octonode.engines.contract import Finished, GenerateRequest
from octonode.engines.slots import Slot
from octonode.errors import OctonodeError

T = TypeVar("T")


class Network(Vocabulary, Protocol):
    """One language model with its slots. Blocks; never used by two threads at the same time."""

    def tokens_of(self, request: GenerateRequest) -> list[int]:
        """The prompt's tokens. Raises OctonodeError BAD_REQUEST, UNSUPPORTED."""
        ...

    def start(self, slot: Slot, tokens: Sequence[int]) -> int:
        """Makes the slot ready for this prompt; how many of its tokens are computed already, never all of them."""
        ...

    def compute(self, slot: Slot, tokens: Sequence[int]) -> Logits:
        """Goes on by these tokens; logits [vocabulary] of what comes next. Raises OctonodeError ENGINE_FAILED."""
        ...


class Stepping:
    """The steps of all requests run in threads, one at a time."""

    def __init__(
        self, network: Network, tokenizer: Any, grammars: Grammars, *, context_tokens: int, chunk_tokens: int
    ) -> None:
        """`tokenizer` as `TokenText` takes it; `chunk_tokens` of a prompt are one step."""
        self._network = network
        self._tokenizer = tokenizer
        self._grammars = grammars
        self._context_tokens = context_tokens
        self._chunk_tokens = chunk_tokens
        self._turn = trio.Lock()

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        """As `Adapter.generate`."""
        tokens = await self._step(partial(self._network.tokens_of, request))
        self._check_length(tokens)
        constraint = await self._step(partial(self._grammars.constraint, request.schema)) if request.schema else None
        cached, logits = await self._prefill(tokens, slot, output)
        text = TokenText(self._tokenizer, tokens)
        answer = Answer(self._network, request, Sampler(request, constraint), text, output)
        ended = await self._step(partial(answer.next, logits))
        most = min(request.max_tokens, self._context_tokens - len(tokens))
        while True:
            answer.put_out()
            if ended:
                return Finished("stop", len(tokens), answer.count, cached)
            if answer.count == most:
                break
            await output.room()
            ended = await self._step(lambda: answer.next(self._network.compute(slot, answer.last)))
        answer.finish()
        return Finished(answer.reason_at_limit, len(tokens), answer.count, cached)

    def _check_length(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise OctonodeError("the prompt has no tokens; write a text", code="BAD_REQUEST")
        if len(tokens) >= self._context_tokens:
            raise OctonodeError(
                f"the prompt has {len(tokens)} tokens and the context {self._context_tokens}; shorten it",
                code="CONTEXT_EXCEEDED",
            )

    async def _prefill(self, tokens: list[int], slot: Slot, output: Output) -> tuple[int, Logits]:
        """(tokens that were computed before, logits of the first token of the answer)."""
        cached = done = await self._step(partial(self._network.start, slot, tokens))
        output.prefill(done, len(tokens))
        while True:
            part = tokens[done : done + self._chunk_tokens]
            logits = await self._step(partial(self._network.compute, slot, part))
            done += len(part)
            output.prefill(done, len(tokens))
            if done == len(tokens):
                return cached, logits

    async def _step(self, work: Callable[[], T]) -> T:
        """In a thread, in turn. It is waited for even when cancelled: nothing runs in a slot that another may get."""
        async with self._turn:
            return await trio.to_thread.run_sync(work)
