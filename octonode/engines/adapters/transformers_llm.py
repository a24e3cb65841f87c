"""SafeTensors language models with transformers on torch: the small fallback where vLLM is not.

Requests take turns, one step each, so that a long prompt or answer holds up nobody for longer than a step. There is no
batching: n streams share the speed of one. Cancelling a request ends it before its next step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from octonode.engines.adapters import torch_device
from octonode.engines.adapters.answering import Answer
from octonode.engines.adapters.base import Output
from octonode.engines.adapters.grammar import Grammars
from octonode.engines.adapters.stoppable import run_stoppable
from octonode.engines.adapters.token_text import TokenText
from octonode.engines.adapters.transformers_text import Sampler, TextModel
from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest
from octonode.engines.slots import Slot
from octonode.errors import OctonodeError

T = TypeVar("T")
ENGINE: Final = "transformers"
PREFILL_TOKENS: Final = 64
"""Of a prompt in one step, where the settings do not say."""


class TransformersAdapter:
    """One model. Its steps run in threads, one at a time."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        folder = torch_device.model_folder(request, ENGINE, "config.json")
        return await run_stoppable(lambda _: self._load(request, folder))

    def _load(self, request: LoadRequest, folder: Path) -> EngineFacts:
        torch, device = torch_device.open_torch(request)
        library = torch_device.imported(ENGINE, lambda: __import__("transformers"))
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = library.AutoTokenizer.from_pretrained(str(folder), **options)
            model = library.AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=getattr(torch, device.dtype), use_safetensors=True, **options
            )
            model = model.to(device.name).eval()
        except Exception as error:
            raise torch_device.load_failed(error) from None
        self._text = TextModel(torch, library, model, tokenizer, request.parallel)
        self._grammars = Grammars(tokenizer, int(model.get_output_embeddings().weight.shape[0]), self._text.ends)
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or request.context_tokens
        self._context = min(request.context_tokens, int(most))
        self._chunk = int(request.options.get("prefill_chunk_tokens", 0)) or PREFILL_TOKENS
        self._turn = trio.Lock()  # first come, first served: each waits for one step of each other
        return EngineFacts(
            engine=ENGINE,
            build=f"transformers {library.__version__}, torch {torch.__version__}",
            backend=device.backend,
            instruction_set=device.instruction_set,
            context_tokens=self._context,
            parallel=request.parallel,
            quantization=_quantization(model, device),
            flags={"threads": request.threads, "prefill_chunk_tokens": self._chunk, "device": device.title},
        )

    def close(self) -> None:
        pass

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        tokens = await self._step(partial(self._text.tokens_of, request))
        if len(tokens) >= self._context:
            raise OctonodeError(
                f"the prompt has {len(tokens)} tokens and the context {self._context}; shorten it",
                code="CONTEXT_EXCEEDED",
            )
        constraint = await self._step(partial(self._grammars.constraint, request.schema)) if request.schema else None
        sampler = Sampler(self._text.torch, request, constraint)
        cached, logits = await self._prefill(tokens, slot, output)
        most = min(request.max_tokens, self._context - len(tokens))
        answer = Answer(self._text, request, sampler, TokenText(self._text.tokenizer, tokens), output)
        for count in range(1, most + 1):
            ended = await self._step(partial(answer.next, logits))
            answer.put_out()
            if ended:
                return Finished("stop", len(tokens), answer.count, cached)
            await output.room()
            if count < most:
                logits = await self._step(partial(self._text.compute, slot, answer.last))
        answer.finish()
        return Finished(answer.reason_at_limit, len(tokens), answer.count, cached)

    async def _prefill(self, tokens: list[int], slot: Slot, output: Output) -> tuple[int, Any]:
        """(tokens that were computed before, logits of the first token of the answer)."""
        cached = done = await self._step(partial(self._text.start, slot, tokens))
        output.prefill(done, len(tokens))
        logits: Any = None
        while done < len(tokens):
            part = tokens[done : done + self._chunk]
            logits = await self._step(partial(self._text.compute, slot, part))
            done += len(part)
            output.prefill(done, len(tokens))
        return cached, logits

    async def _step(self, work: Callable[[], T]) -> T:
        async with self._turn:
            return await trio.to_thread.run_sync(work)


def _quantization(model: Any, device: torch_device.Device) -> str:
    said = getattr(model.config, "quantization_config", None)
    method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    return str(getattr(method, "value", method) or device.dtype)
