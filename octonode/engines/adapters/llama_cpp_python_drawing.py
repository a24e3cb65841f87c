"""Which token comes next, drawn by llama.cpp's own chain of samplers, and the text of tokens as they come."""

from __future__ import annotations

import codecs
from typing import Any

from octonode.engines.adapters.llama_answers import MIN_P, TOP_K
from octonode.engines.adapters.llama_cpp_python_model import LlamaModel
from octonode.engines.constraint.gbnf import grammar_for
from octonode.engines.contract import GenerateRequest
from octonode.errors import OctonodeError

_RANDOM_SEED = 0xFFFFFFFF


class Chain:
    """Of one answer: grammar, top_k, top_p, min_p, temperature, chance, in llama.cpp's order. Its owner closes it."""

    def __init__(self, library: Any, model: LlamaModel, request: GenerateRequest) -> None:
        """Raises OctonodeError for a schema that cannot be enforced."""
        self._library = library
        self._model = model
        grammar = grammar_for(request.schema) if request.schema else ""
        self._chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        if grammar:
            sampler = library.llama_sampler_init_grammar(model.vocabulary, grammar.encode(), b"root")
            if not sampler:
                self.close()
                raise OctonodeError(
                    "llama.cpp does not take the grammar of the schema; simplify it", code="UNSUPPORTED"
                )
            self._add(sampler)
        if request.temperature == 0:
            self._add(library.llama_sampler_init_greedy())
            return
        self._add(library.llama_sampler_init_top_k(TOP_K))
        self._add(library.llama_sampler_init_top_p(request.top_p, 1))
        self._add(library.llama_sampler_init_min_p(MIN_P, 1))
        self._add(library.llama_sampler_init_temp(request.temperature))
        seed = _RANDOM_SEED if request.seed is None else request.seed % _RANDOM_SEED
        self._add(library.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        self._library.llama_sampler_chain_add(self._chain, sampler)

    def draw(self, logits: Any) -> int:
        """`logits`: a row of the last step. Raises OctonodeError for logits that are no numbers: a grammar in there
        would end the process over them."""
        self._model.logits(logits)
        return int(self._library.llama_sampler_sample(self._chain, self._model.context, logits))

    def done(self, token: int) -> bool:
        return False  # a whole answer is followed by a token that ends it: the grammar allows no other

    def close(self) -> None:
        """Frees the chain; more than once is harmless."""
        chain, self._chain = self._chain, None
        if chain:
            self._library.llama_sampler_free(chain)


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
