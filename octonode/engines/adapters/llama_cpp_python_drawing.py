"""Which token comes next, drawn by llama.cpp's own chain of samplers, and the text of tokens as they come."""

from __future__ import annotations

import codecs
import ctypes
import math
from typing import Any

from octonode.engines.adapters.llama_answers import MIN_P, TOP_K
from octonode.engines.adapters.llama_cpp_python_model import LlamaModel
from octonode.engines.constraint.gbnf import grammar_for
from octonode.engines.contract import GenerateRequest
from octonode.errors import OctonodeError

_RANDOM_SEED = 0xFFFFFFFF


class Chain:
    """Samplers of one answer in llama.cpp's order: top_k, top_p, min_p, temperature, chance. Its owner closes it.

    A grammar looks at the token that was drawn, and only where it forbids it at the whole vocabulary, which takes as
    long as a small model's step. What may be drawn, and how often, stays the same.
    """

    def __init__(self, library: Any, model: LlamaModel, request: GenerateRequest) -> None:
        """Raises OctonodeError for a schema that cannot be enforced."""
        self._library = library
        self._model = model
        self._grammar = self._grammar_of(request.schema) if request.schema else None
        self._chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        if request.temperature == 0:
            self._add(library.llama_sampler_init_greedy())
            return
        self._add(library.llama_sampler_init_top_k(TOP_K))
        self._add(library.llama_sampler_init_top_p(request.top_p, 1))
        self._add(library.llama_sampler_init_min_p(MIN_P, 1))
        self._add(library.llama_sampler_init_temp(request.temperature))
        seed = _RANDOM_SEED if request.seed is None else request.seed % _RANDOM_SEED
        self._add(library.llama_sampler_init_dist(seed))

    def _grammar_of(self, schema: str) -> Any:
        text = grammar_for(schema).encode()
        sampler = self._library.llama_sampler_init_grammar(self._model.vocabulary, text, b"root")
        if not sampler:
            raise OctonodeError("llama.cpp does not take the grammar of the schema; simplify it", code="UNSUPPORTED")
        return sampler

    def _add(self, sampler: Any) -> None:
        self._library.llama_sampler_chain_add(self._chain, sampler)

    def draw(self, logits: Any) -> int:
        """`logits`: a row of the last step. Raises OctonodeError for logits that are no numbers: a grammar would end
        the process over them."""
        values = self._model.logits(logits)
        token = int(self._library.llama_sampler_sample(self._chain, self._model.context, logits))
        if self._grammar is None:
            return token
        if not self._allows(token):
            token = self._draw_allowed(values)
        self._library.llama_sampler_accept(self._grammar, token)
        return token

    def _allows(self, token: int) -> bool:
        one = (self._library.llama_token_data * 1)((token, 1.0, 0.0))
        self._library.llama_sampler_apply(self._grammar, ctypes.byref(self._candidates(one, 1)))
        return not math.isinf(one[0].logit)

    def _draw_allowed(self, values: Any) -> int:
        import numpy as np

        size = self._model.vocabulary_size
        table = np.zeros(size, np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
        table["id"], table["logit"] = np.arange(size), values
        data = table.ctypes.data_as(ctypes.POINTER(self._library.llama_token_data))
        candidates = self._candidates(data, size)
        self._library.llama_sampler_apply(self._grammar, ctypes.byref(candidates))
        self._library.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    def _candidates(self, data: Any, size: int) -> Any:
        pointer = ctypes.cast(data, ctypes.POINTER(self._library.llama_token_data))
        return self._library.llama_token_data_array(pointer, size, -1, False)

    def done(self, token: int) -> bool:
        return False  # a whole answer is followed by a token that ends it: the grammar allows no other

    def close(self) -> None:
        """Frees it; more than once is harmless."""
        samplers, self._chain, self._grammar = (self._chain, self._grammar), None, None
        for sampler in samplers:
            if sampler:
                self._library.llama_sampler_free(sampler)


class TokenBytes:
    """Pieces of text from tokens that may be parts of a character."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that this token completes; empty while a character is not whole."""
        return self._decoder.decode(self._model.piece(token))

    def finish(self) -> str:
        """Bytes that became no character are left out."""
        return ""
