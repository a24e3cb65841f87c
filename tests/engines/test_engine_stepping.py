"""Answers a step at a time, over a network that counts: what is refused before anything is computed, and the turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import trio

from octonode.engines.adapters.grammar import Grammars
from octonode.engines.adapters.sampling import Logits
from octonode.engines.adapters.stepping import Stepping
from octonode.engines.contract import GenerateRequest, TokenLogprob
from octonode.engines.slots import Slot
from octonode.errors import OctonodeError

WORDS = "abcdefgh"


class Counting:
    """A network whose next token is one more than the last; the last one of all is the end."""

    ends = frozenset({len(WORDS) - 1})

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        """(slot, tokens) of each computation, in order."""

    def tokens_of(self, request: GenerateRequest) -> list[int]:
        return [WORDS.index(each) for each in request.prompt.strip()]

    def start(self, slot: Slot, tokens: Sequence[int]) -> int:
        return 0

    def compute(self, slot: Slot, tokens: Sequence[int]) -> Logits:
        self.steps.append((slot.index, len(tokens)))
        logits = np.zeros(len(WORDS), np.float32)
        logits[tokens[-1] + 1] = 9.0
        return logits

    def told(self, logits: Logits, token: int, alternatives: int) -> TokenLogprob:
        return TokenLogprob(WORDS[token], 0.0)

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join(WORDS[each] for each in ids)


class Sink:
    """What was put out of one answer."""

    def __init__(self) -> None:
        self.text = ""
        self.prefills: list[tuple[int, int]] = []

    def prefill(self, done_tokens: int, total_tokens: int) -> None:
        self.prefills.append((done_tokens, total_tokens))

    def pieces(self, pieces: Sequence[str]) -> None:
        self.text += "".join(pieces)

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> None: ...

    async def room(self) -> None: ...

    async def flush(self) -> None: ...


def stepping(network: Counting, **sizes: Any) -> Stepping:
    sizes = {"context_tokens": 16, "chunk_tokens": 2, **sizes}
    return Stepping(network, network, Grammars("{}", len(WORDS), network.ends), **sizes)


def asking(prompt: str, max_tokens: int = 9) -> GenerateRequest:
    return GenerateRequest((), max_tokens, 0.0, prompt=prompt)


async def test_a_prompt_goes_in_by_chunks_and_the_answer_ends_where_the_network_says() -> None:
    network, sink = Counting(), Sink()
    finished = await stepping(network).generate(asking("abc"), Slot(0, False), sink)
    assert sink.text == "defg"
    assert sink.prefills == [(0, 3), (2, 3), (3, 3)]
    assert (finished.reason, finished.tokens_in, finished.tokens_out) == ("stop", 3, 4)
    assert [tokens for _, tokens in network.steps] == [2, 1, 1, 1, 1, 1]


async def test_no_token_is_computed_behind_the_last_that_was_asked_for() -> None:
    network, sink = Counting(), Sink()
    finished = await stepping(network).generate(asking("a", max_tokens=2), Slot(0, False), sink)
    assert (sink.text, finished.reason, finished.tokens_out) == ("bc", "length", 2)
    assert len(network.steps) == 2


@pytest.mark.parametrize(("prompt", "code"), [("  ", "BAD_REQUEST"), ("abcd", "CONTEXT_EXCEEDED")])
async def test_what_cannot_be_answered_is_refused_before_anything_is_computed(prompt: str, code: str) -> None:
    network = Counting()
    with pytest.raises(OctonodeError) as caught:
        await stepping(network, context_tokens=4).generate(asking(prompt), Slot(0, False), Sink())
    assert caught.value.code == code
    assert network.steps == []


async def test_two_answers_take_turns() -> None:
    network, first, second = Counting(), Sink(), Sink()
    steps = stepping(network)
    async with trio.open_nursery() as nursery:
        for index, sink in enumerate((first, second)):
            nursery.start_soon(steps.generate, asking("a"), Slot(index, False), sink)
    assert first.text == second.text == "bcdefg"
    slots = [slot for slot, _ in network.steps]
    assert all(slots[at : at + 3] not in ([0] * 3, [1] * 3) for at in range(len(slots) - 3))
