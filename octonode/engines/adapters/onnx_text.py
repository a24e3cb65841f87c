"""One language model of onnxruntime-genai, a step at a time: prompts in, the next token's logits out. Blocks.

Each slot has a generator of the library, which holds the keys and values of what it read; a next prompt of the same
scope that begins alike goes on from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from octonode.engines.adapters import sampling
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.adapters.onnx_session import check_finite, library
from octonode.engines.adapters.sampling import Logits
from octonode.engines.contract import GenerateRequest, LoadRequest, TokenLogprob
from octonode.engines.slots import Slot, common_prefix
from octonode.errors import OctonodeError

EXTRA: Final = "onnx-llm"
PROVIDERS: Final = (("cuda", "is_cuda_available"), ("dml", "is_dml_available"))
"""Of the library, in the order of preference -> what says that it is there; else the processor."""


@dataclass
class Held:
    """What lies in one slot."""

    generator: Any = None
    tokens: list[int] = field(default_factory=list)


class Tokens:
    """tokenizer.json, with the words of a tokenizer of transformers that `token_text` asks for."""

    def __init__(self, folder: ModelFolder) -> None:
        """Raises OctonodeError FORMAT_REFUSED, ConfigError."""
        tokenizers = library("tokenizers", EXTRA)
        path = folder.file("tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # the library raises Exception itself
            text = f"tokenizer.json of the model cannot be read ({type(error).__name__})"
            raise OctonodeError(text, code="FORMAT_REFUSED") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.json = path.read_text("utf-8")

    def encode(self, text: str, *, special: bool) -> list[int]:
        """`special`: put the tokens around it that the tokenizer puts around a text of its own."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, **_: bool) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


class OnnxText:
    """The network, its tokenizer and its slots. Never used by two threads at the same time."""

    def __init__(self, folder: ModelFolder, request: LoadRequest) -> None:
        """Raises OctonodeError: FORMAT_REFUSED, ENGINE_FAILED; ConfigError."""
        self.module = library("onnxruntime_genai", EXTRA)
        config = folder.map("genai_config.json")
        said = config.get("model", {})
        self.tokens = Tokens(folder)
        self.backend = next((name for name, there in PROVIDERS if getattr(self.module, there)()), "cpu")
        try:
            settings = self.module.Config(os.fspath(folder.path))
            settings.overlay(json.dumps(_threads(request)))
            settings.clear_providers()
            if self.backend != "cpu":
                settings.append_provider(self.backend)
            self._model = self.module.Model(settings)
            self._templates = self.module.Tokenizer(self._model)
        except Exception as error:  # RuntimeError, and what its C++ lets through
            reason = " ".join(str(error).split())[:200]
            text = f"onnxruntime-genai cannot load the model ({reason}); is it whole? try: octonode models verify"
            raise OctonodeError(text, code="ENGINE_FAILED") from None
        self.ends = frozenset(int(each) for each in self._templates.eos_token_ids)
        self.vocabulary = int(said.get("vocab_size", 0))
        self.context_tokens = min(request.context_tokens, int(said.get("context_length") or request.context_tokens))
        self._slots = [Held() for _ in range(request.parallel)]

    def tokens_of(self, request: GenerateRequest) -> list[int]:
        """The prompt's tokens. Raises OctonodeError BAD_REQUEST when the chat template refuses the messages."""
        if request.prompt:
            return self.tokens.encode(request.prompt, special=True)
        asked, said = list(request.messages), ""
        if asked[-1]["role"] == "assistant":  # the answer goes on from there
            said = asked.pop()["content"]
        try:
            text = self._templates.apply_chat_template(json.dumps(asked), add_generation_prompt=True)
        except Exception as error:  # a template raises what it likes
            refused = f"the model's chat template refuses these messages: {str(error)[:200]}"
            raise OctonodeError(refused, code="BAD_REQUEST") from None
        return self.tokens.encode(text + said, special=False)

    def start(self, slot: Slot, tokens: Sequence[int]) -> int:
        """Makes the slot ready for this prompt; how many of its tokens are computed already, never all of them."""
        held = self._slots[slot.index]
        same = common_prefix(held.tokens, tokens) if slot.reuse else 0
        if held.generator is not None and same < len(held.tokens):
            try:
                held.generator.rewind_to(same)
            except Exception:  # not every cache can be cut
                held = self._slots[slot.index] = Held()
        if held.generator is None:
            same = 0
            held.generator = self._new_generator()
        held.tokens = held.tokens[:same]
        return same

    def compute(self, slot: Slot, tokens: Sequence[int]) -> Logits:
        """Goes on by these tokens; logits [vocabulary] of what comes next.

        Raises OctonodeError ENGINE_FAILED, also for values that are no numbers.
        """
        held = self._slots[slot.index]
        try:
            held.generator.append_tokens(np.asarray(tokens, np.int32))
            values = np.asarray(held.generator.get_logits(), np.float32).reshape(-1, self.vocabulary)
            logits: Logits = values[-1]
            check_finite(logits)
        except Exception as error:
            self._slots[slot.index] = Held()  # what lies in it now nobody knows
            if isinstance(error, OctonodeError):
                raise
            text = f"onnxruntime-genai failed: {type(error).__name__}"
            raise OctonodeError(text, code="ENGINE_FAILED") from None
        held.tokens.extend(tokens)
        return logits

    def told(self, logits: Logits, token: int, alternatives: int) -> TokenLogprob:
        """See `sampling.told`."""
        return sampling.told(logits, token, alternatives, self._word)

    def _word(self, token: int) -> str:
        return self.tokens.decode([token], skip_special_tokens=False)

    def _new_generator(self) -> Any:
        """Its keys and values have room for a whole context. Raises OctonodeError ENGINE_FAILED."""
        try:
            parameters = self.module.GeneratorParams(self._model)
            parameters.set_search_options(max_length=self.context_tokens, do_sample=False)
            return self.module.Generator(self._model, parameters)
        except Exception as error:
            text = f"there is no room for another answer ({str(error)[:120]}); lower engines.context_tokens"
            raise OctonodeError(text, code="ENGINE_FAILED") from None


def _threads(request: LoadRequest) -> dict[str, Any]:
    options = {"intra_op_num_threads": max(1, request.threads), "inter_op_num_threads": 1}
    # as in `onnx_session`: threads that wait shall not take the processor from others
    return {"model": {"decoder": {"session_options": {**options, "session.intra_op.allow_spinning": "0"}}}}
