"""ONNX language models with onnxruntime-genai, int4 as its builder makes them.

Requests take turns, one step each: a token, or one chunk of a prompt, whose size is measured at load. Cancelling a
request ends it before its next step. Why not the library's own sampling and batching:
`protocols/decisions/0020-onnx-engines.md`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from octonode.engines.adapters.answering import Answer
from octonode.engines.adapters.base import Output
from octonode.engines.adapters.chunking import chunk_tokens
from octonode.engines.adapters.grammar import Grammars
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.adapters.onnx_text import EXTRA, OnnxText
from octonode.engines.adapters.sampling import MIN_P, TOP_K, Logits, Sampler
from octonode.engines.adapters.token_text import TokenText
from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest
from octonode.engines.slots import Slot
from octonode.errors import OctonodeError

T = TypeVar("T")
ENGINE: Final = "onnx-llm"
_MEASURED_TOKENS: Final = 64
_COMPARED_TOKENS: Final = 8
_SAME_LOGITS: Final = 0.01
"""Floats of 32 bits differ by 0.0001 here, products of 8 bits by 0.5."""


class OnnxLlmAdapter:
    """One model. Its steps run in threads, one at a time."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        self._turn = trio.Lock()  # first come, first served: each waits for one step of each other
        return await trio.to_thread.run_sync(self._load, request)

    def _load(self, request: LoadRequest) -> EngineFacts:
        folder = ModelFolder(request.model_path, ENGINE)
        self._text = OnnxText(folder, request)
        self._grammars = Grammars(self._text.tokens.json, self._text.vocabulary, self._text.ends, extra=EXTRA)
        self._chunk = int(request.options.get("prefill_chunk_tokens", 0)) or self._measured_chunk()
        exact = self._continues_exactly()
        return EngineFacts(
            engine=ENGINE,
            build=f"onnxruntime-genai {self._text.module.__version__}",
            backend=self._text.backend,
            instruction_set=platform.machine(),
            context_tokens=self._text.context_tokens,
            parallel=request.parallel,
            quantization=str(folder.map("config.json").get("quantization_config", {}).get("quant_method", "")),
            flags={
                "threads": request.threads,
                "prefill_chunk_tokens": self._chunk,
                "top_k": TOP_K,
                "min_p": MIN_P,
                "continues_exactly": exact,
            },
        )

    def _measured_chunk(self) -> int:
        """Tokens of a prompt that are read together: running answers wait for them, and a cancelled one goes on with
        them."""
        slot = Slot(0, False)
        tokens = [0] * min(_MEASURED_TOKENS, self._text.context_tokens - 1)
        best = 0.0
        for _ in range(2):  # the first run allocates
            self._text.start(slot, tokens)
            began = time.perf_counter()
            self._text.compute(slot, tokens)
            best = max(best, len(tokens) / (time.perf_counter() - began))
        return chunk_tokens(best)

    def _continues_exactly(self) -> bool:
        """Whether reading tokens together gives what reading them one by one does. With activations of 8 bits the
        kernels differ: an answer continued from its text may then leave the unbroken one where two words are close."""
        slot = Slot(0, False)
        tokens = list(range(3, 3 + min(_COMPARED_TOKENS, self._text.context_tokens - 1)))
        self._text.start(slot, tokens)
        together = self._text.compute(slot, tokens)
        self._text.start(slot, tokens)
        for token in tokens:
            one_by_one = self._text.compute(slot, [token])
        return bool(abs(together - one_by_one).max() < _SAME_LOGITS)

    def close(self) -> None:
        pass

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        tokens = await self._step(partial(self._text.tokens_of, request))
        context = self._text.context_tokens
        if not tokens:
            raise OctonodeError("the prompt has no tokens", code="BAD_REQUEST")
        if len(tokens) >= context:
            raise OctonodeError(
                f"the prompt has {len(tokens)} tokens and the context {context}; shorten it", code="CONTEXT_EXCEEDED"
            )
        constraint = await self._step(partial(self._grammars.constraint, request.schema)) if request.schema else None
        cached, logits = await self._prefill(tokens, slot, output)
        pieces = TokenText(self._text.tokens, tokens)
        answer = Answer(self._text, request, Sampler(request, constraint), pieces, output)
        ended = await self._step(partial(answer.next, logits))
        most = min(request.max_tokens, context - len(tokens))
        while True:
            answer.put_out()
            if ended:
                return Finished("stop", len(tokens), answer.count, cached)
            if answer.count == most:
                break
            await output.room()
            ended = await self._step(lambda: answer.next(self._text.compute(slot, answer.last)))
        answer.finish()
        return Finished(answer.reason_at_limit, len(tokens), answer.count, cached)

    async def _prefill(self, tokens: list[int], slot: Slot, output: Output) -> tuple[int, Logits]:
        """(tokens that were computed before, logits of the first token of the answer)."""
        cached = done = await self._step(partial(self._text.start, slot, tokens))
        output.prefill(done, len(tokens))
        while True:
            part = tokens[done : done + self._chunk]
            logits = await self._step(partial(self._text.compute, slot, part))
            done += len(part)
            output.prefill(done, len(tokens))
            if done == len(tokens):
                return cached, logits

    async def _step(self, work: Callable[[], T]) -> T:
        """In a thread, in turn. It is waited for even when cancelled: nothing runs in a slot that another may get."""
        async with self._turn:
            return await trio.to_thread.run_sync(work)
