"""Which token comes next, drawn from logits in numpy.

The rules and their order are llama.cpp's, so that a request means the same whichever engine runs it: the likeliest
TOP_K, of these `top_p`, of these MIN_P, and then the temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from octonode.engines.contract import GenerateRequest, TokenLogprob

Logits = npt.NDArray[np.float32]

TOP_K, MIN_P = 40, 0.05
"""For what a request cannot say, as in `llama.py`."""
LOGPROBS_MAX: Final = 20


class Constraint(Protocol):
    """`grammar.Constraint`."""

    def allowed(self) -> Any: ...

    def take(self, token: int) -> bool: ...


class Sampler:
    """Draws the tokens of one answer; equal seeds draw alike."""

    def __init__(self, request: GenerateRequest, constraint: Constraint | None = None) -> None:
        self._request = request
        self._constraint = constraint
        # entropy has to be positive; the seed is any 64 bits
        self._random = np.random.default_rng(None if request.seed is None else request.seed % 2**64)

    def draw(self, logits: Logits) -> int:
        """`logits` [vocabulary]. Raises OctonodeError for a schema whose work is too much."""
        if self._constraint is not None:
            logits = np.where(self._constraint.allowed(), logits, -np.inf)
        if self._request.temperature == 0:
            return int(logits.argmax())
        places, values = likeliest(logits, self._request.top_p)
        scaled = values / self._request.temperature
        chances = np.exp(scaled - scaled.max())
        return int(self._random.choice(places, p=chances / chances.sum()))

    def done(self, token: int) -> bool:
        """Whether the schema is satisfied with this token."""
        return self._constraint is not None and self._constraint.take(token)


def likeliest(logits: Logits, top_p: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """(tokens that may be drawn, their logits), the likeliest first; at least one. Pure."""
    count = min(TOP_K, len(logits))
    places = np.argpartition(logits, -count)[-count:]
    places = places[np.argsort(-logits[places], kind="stable")]
    values = logits[places].astype(np.float64)
    chances = np.exp(values - values[0])
    chances /= chances.sum()
    kept = (np.cumsum(chances) - chances < top_p) & (chances >= MIN_P * chances[0])
    kept[0] = True
    return places[kept], values[kept]


def log_chances(logits: Logits) -> npt.NDArray[np.float64]:
    """Natural logarithms of the probabilities of all tokens, before any rule of sampling. Pure."""
    values = logits.astype(np.float64)
    highest = values.max()
    return np.asarray(values - highest - np.log(np.exp(values - highest).sum()), np.float64)


def told(logits: Logits, token: int, alternatives: int, word: Callable[[int], str]) -> TokenLogprob:
    """The chosen token's logarithm of probability, and the `alternatives` likeliest; -1: none of them. Pure."""
    chances = log_chances(logits)
    best = np.argsort(-chances, kind="stable")[: min(max(alternatives, 0), LOGPROBS_MAX)]
    top = tuple((word(int(each)), float(chances[each])) for each in best)
    return TokenLogprob(word(token), float(chances[token]), top)
