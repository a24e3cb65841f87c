"""ONNX language models with onnxruntime-genai, int4 as its builder makes them.

Requests take turns (`stepping`); the size of a prompt's chunk is measured at load. Why not the library's own sampling
and batching: `protocols/decisions/0020-onnx-engines.md`.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Final

import trio

from octonode.engines.adapters.base import Output
from octonode.engines.adapters.chunking import chunk_tokens
from octonode.engines.adapters.grammar import Grammars
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.adapters.onnx_text import EXTRA, OnnxText
from octonode.engines.adapters.sampling import MIN_P, TOP_K
from octonode.engines.adapters.stepping import Stepping
from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest
from octonode.engines.slots import Slot

ENGINE: Final = "onnx-llm"
_MEASURED_TOKENS: Final = 64
_COMPARED_TOKENS: Final = 8
_SAME_LOGITS: Final = 0.01
"""Floats of 32 bits differ by 0.0001 here, products of 8 bits by 0.5."""


class OnnxLlmAdapter:
    """One model."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        return await trio.to_thread.run_sync(self._load, request)

    def _load(self, request: LoadRequest) -> EngineFacts:
        folder = ModelFolder(request.model_path, ENGINE)
        self._text = OnnxText(folder, request)
        grammars = Grammars(self._text.tokens.json, self._text.vocabulary, self._text.ends, extra=EXTRA)
        chunk_tokens = int(request.options.get("prefill_chunk_tokens", 0)) or self._measured_chunk()
        exact = self._continues_exactly()
        self._stepping = Stepping(
            self._text, self._text.tokens, grammars, context_tokens=self._text.context_tokens, chunk_tokens=chunk_tokens
        )
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
                "prefill_chunk_tokens": chunk_tokens,
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
        return await self._stepping.generate(request, slot, output)
