"""Text of tokens as they come, with a tokenizer of transformers: whole characters, and where each token's text ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from octonode.engines.contract import TokenLogprob

CONTEXT_TOKENS: Final = 6
"""Of the prompt, before the answer: some tokenizers write the same token with or without a space after them."""
HELD_TOKENS_MAX: Final = 8
"""That may wait for the rest of a character: no character has more bytes, so what is longer is none."""
_INCOMPLETE: Final = "\ufffd"


class TokenText:
    """Pieces of one answer."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT_TOKENS:])
        self._start, self._given = 0, len(self._ids)

    def feed(self, token: int) -> str:
        """The text that this token completes; empty while a character is not whole."""
        self._ids.append(token)
        before, whole = self._text(self._ids[self._start : self._given]), self._text(self._ids[self._start :])
        held = len(self._ids) - self._given
        if len(whole) <= len(before) or (whole.endswith(_INCOMPLETE) and held < HELD_TOKENS_MAX):
            return ""
        self._ids = self._ids[self._given :]
        self._start, self._given = 0, len(self._ids)
        return whole[len(before) :]

    def finish(self) -> str:
        """What was held back: bytes that became no character are left out."""
        before, whole = self._text(self._ids[: self._given]), self._text(self._ids)
        return whole[len(before) :].rstrip(_INCOMPLETE)

    def _text(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


class LateLogprobs:
    """Keeps what is to be told of each token until its text has gone out."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._read = 0
        self._out = 0

    def add(self, told: TokenLogprob, characters: int) -> None:
        """`characters`: of text that this token completed."""
        self._read += characters
        self._waiting.append((self._read, told))

    def put_out(self, pieces: Sequence[str]) -> list[TokenLogprob]:
        """Those that are due once these pieces are out. A token without text of its own goes with the next."""
        self._out += sum(map(len, pieces))
        due: list[TokenLogprob] = []
        while self._out and self._waiting and self._waiting[0][0] <= self._out:
            due.append(self._waiting.popleft()[1])
        return due
