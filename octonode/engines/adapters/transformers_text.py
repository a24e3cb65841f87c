"""One causal language model of transformers, a step at a time: prompts in, the next token out. Blocks.

Each slot keeps what it computed of its last prompt and answer; a next prompt of the same scope that begins alike goes
on from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octonode.engines.adapters import sampling, torch_device
from octonode.engines.adapters.sampling import Logits
from octonode.engines.contract import GenerateRequest, TokenLogprob
from octonode.engines.slots import Slot, common_prefix
from octonode.errors import OctonodeError


@dataclass
class Held:
    """What lies in one slot: tokens that were computed, and their keys and values."""

    tokens: list[int] = field(default_factory=list)
    cache: Any = None


class TextModel:
    """The network, its tokenizer and its slots. Never used by two threads at the same time."""

    def __init__(self, torch: Any, transformers: Any, model: Any, tokenizer: Any, parallel: int) -> None:
        self.torch = torch
        self._library = transformers
        self.model = model
        self.tokenizer = tokenizer
        self._slots = [Held() for _ in range(parallel)]
        self.ends = _ends(model, tokenizer)
        takes = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in takes else "past_key_values"
        self._options = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})

    def tokens_of(self, request: GenerateRequest) -> list[int]:
        """The prompt's tokens. Raises OctonodeError BAD_REQUEST when the chat template refuses the messages."""
        if request.prompt:
            return list(self.tokenizer(request.prompt, truncation=False, padding=False)["input_ids"])
        if not getattr(self.tokenizer, "chat_template", None):
            text = "this model has no chat template; ask it by /v1/completions, with a prompt"
            raise OctonodeError(text, code="UNSUPPORTED")
        go_on = request.messages[-1]["role"] == "assistant"
        try:
            text = self.tokenizer.apply_chat_template(
                list(request.messages),
                tokenize=False,
                add_generation_prompt=not go_on,
                continue_final_message=go_on,
            )
        except Exception as error:  # a template raises what it likes
            text = f"the model's chat template refuses these messages: {str(error)[:200]}"
            raise OctonodeError(text, code="BAD_REQUEST") from None
        encoded = self.tokenizer(text, add_special_tokens=False, truncation=False, padding=False)
        return list(encoded["input_ids"])

    def start(self, slot: Slot, tokens: Sequence[int]) -> int:
        """Makes the slot ready for this prompt; how many of its tokens are computed already, never all of them."""
        held = self._slots[slot.index]
        same = common_prefix(held.tokens, tokens) if slot.reuse and _can_be_cut(held.cache) else 0
        if same == 0:
            self._slots[slot.index] = Held(cache=self._library.DynamicCache(config=self.model.config))
        elif same < len(held.tokens):
            held.cache.crop(same - len(held.tokens))
            held.tokens = held.tokens[:same]
        return same

    def compute(self, slot: Slot, tokens: Sequence[int]) -> Logits:
        """Goes on by these tokens; logits [vocabulary] of what comes next.

        Raises OctonodeError ENGINE_FAILED for values that are no numbers, or when the memory is not enough.
        """
        held, torch = self._slots[slot.index], self.torch
        with torch.inference_mode():
            ids = torch.tensor([list(tokens)], device=self.model.device)
            try:
                outcome = self.model(input_ids=ids, **{self._cache_name: held.cache}, **self._options)
            except Exception as error:
                self._slots[slot.index] = Held()
                raise torch_device.run_failed(error, "ask with a shorter prompt, or for less at a time") from None
            held.tokens.extend(tokens)
            logits: Logits = outcome.logits[0, -1].float().cpu().numpy()
        if np.isnan(logits).any():
            self._slots[slot.index] = Held()
            raise torch_device.not_numbers()
        return logits

    def told(self, logits: Logits, token: int, alternatives: int) -> TokenLogprob:
        """See `sampling.told`."""
        return sampling.told(logits, token, alternatives, self._word)

    def _word(self, token: int) -> str:
        return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    said = getattr(model.generation_config, "eos_token_id", None)
    ends = list(said) if isinstance(said, (list, tuple)) else [said]
    return frozenset(each for each in (*ends, tokenizer.eos_token_id) if isinstance(each, int))


def _can_be_cut(cache: Any) -> bool:
    """Not where layers forget (sliding windows, recurrent ones)."""
    return cache is not None and not any(cache.is_sliding) and bool(cache.is_croppable)
