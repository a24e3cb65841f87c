"""One answer as it grows, for engines that compute a step at a time: text, stop strings, logprobs, and why it ends."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Protocol

from octonode.engines.adapters.base import Output
from octonode.engines.adapters.stopping import StopFilter
from octonode.engines.adapters.token_text import LateLogprobs
from octonode.engines.contract import FinishReason, GenerateRequest, TokenLogprob


class Drawing(Protocol):
    """`sampling.Sampler`, or another library's."""

    def draw(self, logits: Any) -> int: ...

    def done(self, token: int) -> bool: ...


class Vocabulary(Protocol):
    """What an answer asks of its model."""

    @property
    def ends(self) -> Set[int]:
        """Tokens after which an answer is over, and which have no text."""
        ...

    def told(self, logits: Any, token: int, alternatives: int) -> TokenLogprob: ...


class Text(Protocol):
    """`token_text.TokenText`, or another library's."""

    def feed(self, token: int) -> str: ...

    def finish(self) -> str: ...


class Answer:
    """`next` runs in a thread, the rest in the loop."""

    def __init__(
        self, words: Vocabulary, request: GenerateRequest, drawing: Drawing, text: Text, output: Output
    ) -> None:
        self._words = words
        self._request = request
        self._drawing = drawing
        self._text = text
        self._output = output
        self._stops = StopFilter(request.stop)
        self._logprobs = LateLogprobs()
        self._ready: list[str] = []
        self._whole = False
        self.count = 0
        """Tokens so far."""
        self.last: list[int] = []

    @property
    def reason_at_limit(self) -> FinishReason:
        return "stop" if self._stops.stopped else "length"

    def next(self, logits: Any) -> bool:
        """Draws one token; True when the answer is at its end, which `put_out` then gives whole."""
        token = self._drawing.draw(logits)
        if token in self._words.ends:
            self._whole = True
            return True
        self.count += 1
        self.last = [token]
        piece = self._text.feed(token)
        if self._request.logprobs:
            self._logprobs.add(self._words.told(logits, token, self._request.logprobs), len(piece))
        self._ready += self._stops.feed(piece) if piece else []
        self._whole = self._drawing.done(token)
        return self._whole or self._stops.stopped

    def put_out(self) -> None:
        if self._whole and not self._stops.stopped:
            self.finish()
            return
        self._give(self._ready)

    def finish(self) -> None:
        """What was held back, for an answer that ends without a stop string."""
        rest = self._text.finish()
        pieces = [*self._ready, *(self._stops.feed(rest) if rest else [])]
        if not self._stops.stopped:
            pieces += self._stops.finish()
        self._give(pieces)

    def _give(self, pieces: list[str]) -> None:
        self._ready = []
        self._output.pieces(pieces)
        if self._request.logprobs:
            self._output.logprobs(self._logprobs.put_out(pieces))
