"""Which tokens of which requests go through the model together: one step of continuous batching. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Row:
    """One request as the model sees it: `tokens` it has or shall have, of which `done` are in the cache of its slot."""

    slot: int
    tokens: list[int]
    prompt_tokens: int
    done: int = 0

    @property
    def prefilling(self) -> bool:
        return self.done < self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens `start` to `end` of a row; `last`: the logits after them say what comes next."""

    row: Row
    start: int
    end: int

    @property
    def last(self) -> bool:
        return self.end == len(self.row.tokens)


@dataclass(frozen=True, slots=True)
class Step:
    parts: tuple[Part, ...] = field(default=())

    @property
    def tokens(self) -> int:
        return sum(part.end - part.start for part in self.parts)


def plan_step(rows: Sequence[Row], chunk: int) -> Step:
    """Every decoding row takes its one token along; what is left of `chunk` goes to prompts, the oldest first.

    So a newcomer's prompt delays running rows by one chunk at most, and at least one prompt token always goes on.
    """
    parts = [Part(row, row.done, len(row.tokens)) for row in rows if not row.prefilling and row.done < len(row.tokens)]
    left = max(1, chunk - len(parts))
    for row in rows:
        if row.prefilling and left:
            end = min(row.prompt_tokens, row.done + left)
            parts.append(Part(row, row.done, end))
            left -= end - row.done
    return Step(tuple(parts))
