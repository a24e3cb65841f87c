"""SafeTensors language models with transformers on torch: the small fallback where vLLM is not.

Requests take turns (`stepping`). There is no batching: n streams share the speed of one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from octonode.engines.adapters import torch_device
from octonode.engines.adapters.base import Output
from octonode.engines.adapters.grammar import Grammars
from octonode.engines.adapters.sampling import MIN_P, TOP_K
from octonode.engines.adapters.stepping import Stepping
from octonode.engines.adapters.stoppable import run_stoppable
from octonode.engines.adapters.transformers_text import TextModel
from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest
from octonode.engines.slots import Slot

ENGINE: Final = "transformers"
PREFILL_TOKENS: Final = 64
"""Of a prompt in one step, where the settings do not say."""


class TransformersAdapter:
    """One model."""

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
        text = TextModel(torch, library, model, tokenizer, request.parallel)
        grammars = Grammars(tokenizer, int(model.get_output_embeddings().weight.shape[0]), text.ends)
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or request.context_tokens
        context_tokens = min(request.context_tokens, int(most))
        chunk_tokens = int(request.options.get("prefill_chunk_tokens", 0)) or PREFILL_TOKENS
        self._stepping = Stepping(text, tokenizer, grammars, context_tokens=context_tokens, chunk_tokens=chunk_tokens)
        return EngineFacts(
            engine=ENGINE,
            build=f"transformers {library.__version__}, torch {torch.__version__}",
            backend=device.backend,
            instruction_set=device.instruction_set,
            context_tokens=context_tokens,
            parallel=request.parallel,
            quantization=_quantization(model, device),
            flags={
                "threads": request.threads,
                "prefill_chunk_tokens": chunk_tokens,
                "top_k": TOP_K,
                "min_p": MIN_P,
                "device": device.title,
            },
        )

    def close(self) -> None:
        pass

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        return await self._stepping.generate(request, slot, output)


def _quantization(model: Any, device: torch_device.Device) -> str:
    said = getattr(model.config, "quantization_config", None)
    method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    return str(getattr(method, "value", method) or device.dtype)
