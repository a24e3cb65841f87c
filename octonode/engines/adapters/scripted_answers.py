"""What the scripted engine says: a function of the model root, the request and, above temperature 0, the seed. Pure but
for requests without a seed.

A token is a word of a text of ours; an answer by a schema is a small value that satisfies it, in pieces of a few
characters. Probabilities are made up, always alike, and add up to no more than one.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Sequence
from typing import Protocol

from octonode.engines.constraint.minimal import minimal_json
from octonode.engines.constraint.reading import read_schema
from octonode.engines.contract import GenerateRequest, TokenLogprob

ANSWER_TOKENS_MIN = 32
ANSWER_TOKENS_SPREAD = 64
SCHEMA_PIECE_CHARACTERS = 4

_BLOCK_TOKENS = hashlib.sha256().digest_size
_TEXT = """
a river of light runs under the old bridge and every stone there keeps one small word of it children count boats while
grandmother says naïve café año Zürich smørrebrød żółw мир 世界 日本 한국 🦉 🐙 they answer slowly in many voices until
evening closes its wide green window over salt wind harbour lantern copper thread between seven quiet roads home again
"""
_WORDS = tuple(_TEXT.split())


class Script(Protocol):
    """The pieces of one answer, any of them at once: so an answer can be continued anywhere."""

    @property
    def remaining(self) -> int:
        """Pieces that are left of the answer, after what its request says the assistant already said."""
        ...

    def piece(self, index: int) -> str:
        """The `index`-th of them."""
        ...


def script_for(model_root: str, request: GenerateRequest, answer_tokens: int = 0) -> Script:
    """Raises OctonodeError for a schema that cannot be enforced. `answer_tokens`: length of answers without one."""
    if request.schema:
        return SchemaScript(request)
    return WordScript(model_root, request, answer_tokens)


def prompt_words(request: GenerateRequest) -> list[str]:
    """The prompt's tokens."""
    if request.prompt:
        return request.prompt.split() or [request.prompt]
    return [word for message in request.messages for word in message["content"].split()]


def _said(request: GenerateRequest) -> tuple[list[list[str]], str]:
    """The conversation as role and content, and what the assistant has said of the answer."""
    if request.prompt:
        return [["prompt", request.prompt]], ""
    messages = [[message["role"], message["content"]] for message in request.messages]
    said = messages.pop()[1] if messages[-1][0] == "assistant" else ""
    return messages, said


class WordScript:
    """Words without end but for the length of the answer."""

    def __init__(self, model_root: str, request: GenerateRequest, answer_tokens: int = 0) -> None:
        messages, said = _said(request)
        self._skip = len(said.split())
        parts: list[object] = [model_root, messages]
        if request.temperature > 0:
            parts.append(secrets.token_hex(16) if request.seed is None else request.seed)
        self._key = hashlib.sha256(json.dumps(parts).encode()).digest()
        self._blocks: dict[int, bytes] = {}
        length = answer_tokens or ANSWER_TOKENS_MIN + self._key[0] % ANSWER_TOKENS_SPREAD
        self.remaining = max(0, length - self._skip)

    def piece(self, index: int) -> str:
        """The answer's first word has no space before it."""
        position = self._skip + index
        block, offset = divmod(position, _BLOCK_TOKENS)
        if block not in self._blocks:
            self._blocks = {block: hashlib.sha256(self._key + block.to_bytes(8, "big")).digest()}
        word = _WORDS[self._blocks[block][offset] % len(_WORDS)]
        return word if position == 0 else " " + word


class SchemaScript:
    """A value that satisfies the schema of the request."""

    def __init__(self, request: GenerateRequest) -> None:
        text = minimal_json(read_schema(request.schema))
        said = _said(request)[1]
        text = text.removeprefix(said)
        size = SCHEMA_PIECE_CHARACTERS
        self._pieces = [text[start : start + size] for start in range(0, len(text), size)]
        self.remaining = len(self._pieces)

    def piece(self, index: int) -> str:
        return self._pieces[index]


def logprobs_of(pieces: Sequence[str], alternatives: int) -> list[TokenLogprob]:
    """Made-up probabilities of pieces, each the likeliest in its place."""
    return [_logprob(piece, alternatives) for piece in pieces]


def _logprob(piece: str, alternatives: int) -> TokenLogprob:
    digest = hashlib.sha256(piece.encode("utf-8", "replace")).digest()
    chance = 0.5 + digest[0] / 1024
    others = [word for word in _WORDS if word != piece.strip()][: max(0, alternatives - 1)]
    # halves of what is left, then of what that leaves: falling, and never more than one in all
    rest = [(f" {word}", math.log((1 - chance) / 2**place)) for place, word in enumerate(others, 1)]
    top = ((piece, math.log(chance)), *rest) if alternatives > 0 else ()
    return TokenLogprob(piece, math.log(chance), top)
