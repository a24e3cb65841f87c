"""A request as the server of llama.cpp wants it, and the events of its answer as ours. Pure."""

from __future__ import annotations

import math
from typing import Any

from octonode.engines.adapters.base import Output
from octonode.engines.adapters.gguf_file import broken_numbers
from octonode.engines.constraint.gbnf import grammar_for
from octonode.engines.contract import FinishReason, GenerateRequest, TokenLogprob
from octonode.engines.slots import Slot
from octonode.errors import OctonodeError

CHAT_PATH, RAW_PATH = "/v1/chat/completions", "/v1/completions"
TOP_K, MIN_P = 40, 0.05
"""llama.cpp's defaults for what a request cannot say, stated here so that a new version does not change answers."""
_RANDOM_SEED = 0xFFFFFFFF
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


def question(request: GenerateRequest, slot: Slot) -> tuple[str, dict[str, Any]]:
    """(path, body). Raises OctonodeError for a schema that cannot be enforced."""
    body: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": TOP_K,
        "min_p": MIN_P,
        "seed": _RANDOM_SEED if request.seed is None else request.seed % _RANDOM_SEED,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "cache_prompt": slot.reuse,
        "id_slot": slot.index,
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if request.schema:
        # Not the server's own way from a schema: it passes over what it cannot enforce, with a warning in its log.
        body["grammar"] = grammar_for(request.schema)
    alternatives = max(1, request.logprobs)
    if request.prompt:
        return RAW_PATH, body | {"prompt": request.prompt} | ({"logprobs": alternatives} if request.logprobs else {})
    told = {"logprobs": True, "top_logprobs": alternatives} if request.logprobs else {}
    return CHAT_PATH, body | {"messages": list(request.messages)} | told


class AnswerReader:
    """Puts out what the events of one answer hold."""

    def __init__(self, request: GenerateRequest, output: Output) -> None:
        self._top = max(0, request.logprobs)
        self._output = output
        self._told: list[TokenLogprob] = []
        """Of tokens whose character is not whole yet."""
        self.reason: FinishReason | None = None
        self.usage: dict[str, Any] | None = None

    def read(self, event: dict[str, Any]) -> None:
        """Raises OctonodeError ENGINE_FAILED for probabilities that are no numbers."""
        self.usage = event.get("usage") or self.usage
        progress = event.get("prompt_progress")
        if progress is not None:
            self._output.prefill(progress["processed"], progress["total"])
            return
        choices = event.get("choices")
        if not choices:
            return
        choice = choices[0]
        content = choice["text"] if "text" in choice else choice["delta"].get("content")
        self._told += [self._token(told) for told in (choice.get("logprobs") or {}).get("content") or ()]
        if content:
            self._output.pieces([content])
        finish = choice.get("finish_reason")
        if finish is not None:
            self.reason = _FINISH.get(finish, "stop")
        if self._told and (content or finish is not None):
            self._output.logprobs(self._told)
            self._told = []

    def _token(self, told: dict[str, Any]) -> TokenLogprob:
        top = [(_text(each), _number(each)) for each in told.get("top_logprobs") or ()]
        return TokenLogprob(_text(told), _number(told), tuple(top[: self._top]))


def _text(told: dict[str, Any]) -> str:
    return bytes(told["bytes"]).decode("utf-8", "replace") if told.get("bytes") else str(told.get("token", ""))


def _number(told: dict[str, Any]) -> float:
    value = told.get("logprob")
    if not isinstance(value, int | float) or math.isnan(value):
        raise broken_numbers()
    return min(0.0, float(value))


def speed_of(document: Any) -> float:
    """Prompt tokens a second, from the whole answer to a raw prompt with `n_probs`. Raises OctonodeError ENGINE_FAILED
    when what the model computes is no number."""
    try:
        first = document["choices"][0]["logprobs"]["content"][0]
        speed = float(document["timings"]["prompt_per_second"])
    except (KeyError, IndexError, TypeError, ValueError):
        raise OctonodeError("the engine's answer to a first prompt has no figures", code="ENGINE_FAILED") from None
    _number(first)
    return speed
