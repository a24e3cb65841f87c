"""What servers with one OpenAI API say differently, and how a request of ours is written for each. Pure.

Facts: vLLM 0.32.0 as it runs here; llama.cpp's server as xllamacpp 2026.10 runs here; TensorRT-LLM by its sources of
2026 (`serve/openai_protocol.py`, which forbids fields that it does not know).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final

from octonode.engines.constraint.gbnf import grammar_for
from octonode.engines.contract import FinishReason, GenerateRequest, TokenLogprob
from octonode.errors import OctonodeError

SEEDS: Final = 2**32 - 1
"""Seeds that every server takes; a seed of ours is folded into them."""
FINISH: Final[Mapping[str, FinishReason]] = MappingProxyType({"stop": "stop", "length": "length"})


@dataclass(frozen=True, slots=True)
class Dialect:
    name: str
    usage_in_each_event: bool = False
    """It tells the prompt's length with the first event, if asked."""
    continues: Mapping[str, Any] | None = None
    """Fields that make it go on from a last message of the assistant; None: it cannot."""
    salted: bool = False
    """It keeps prompt caches apart by `cache_salt`."""
    always: Mapping[str, Any] = field(default_factory=dict)
    bare_prompts_keep_schemas: bool = True
    """It constrains `/v1/completions` too."""
    takes_grammars: bool = False
    """It is constrained by a grammar of ours: its own way from a schema passes over what it cannot enforce."""
    logprobs_min: int = 0
    """The least that it takes for the chosen token alone."""


VLLM: Final = Dialect(
    "vllm",
    usage_in_each_event=True,
    continues={"continue_final_message": True, "add_generation_prompt": False},
    salted=True,
)
# its slots have no owner, so a prompt cache would be anybody's; top_k and min_p: see adapters/llama.py
LLAMA: Final = Dialect(
    "llamacpp",
    continues={},
    always={"cache_prompt": False, "return_progress": True, "top_k": 40, "min_p": 0.05},
    takes_grammars=True,
    logprobs_min=1,
)
TENSORRT_LLM: Final = Dialect("tensorrt_llm", usage_in_each_event=True, logprobs_min=1)
PLAIN: Final = Dialect("openai", bare_prompts_keep_schemas=False, logprobs_min=1)
"""Of a server that is none of these: nothing but what OpenAI's own API has."""
BY_OWNER: Final = {each.name: each for each in (VLLM, LLAMA, TENSORRT_LLM)}
"""By `owned_by` of its list of models."""


def path_of(request: GenerateRequest) -> str:
    return "/v1/completions" if request.prompt else "/v1/chat/completions"


def body_of(request: GenerateRequest, model: str, context_tokens: int, dialect: Dialect) -> dict[str, Any]:
    """The JSON body. Raises OctonodeError BAD_REQUEST for a schema that is no JSON, UNSUPPORTED for what it cannot."""
    body: dict[str, Any] = {
        "model": model,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
        **dialect.always,
    }
    if dialect.usage_in_each_event:
        body["stream_options"]["continuous_usage_stats"] = True
    if request.max_tokens < context_tokens:  # more than fits is refused by some, and none at all means what fits
        body["max_tokens"] = request.max_tokens
    if request.seed is not None:
        body["seed"] = request.seed % SEEDS
    if request.stop:
        body["stop"] = list(request.stop)
    if dialect.salted:
        # vLLM takes 128 characters and not all of them, and a scope is what the asker calls it
        scope = request.cache_scope
        body["cache_salt"] = sha256(scope.encode()).hexdigest() if scope else secrets.token_hex(16)
    if request.prompt:
        _add_prompt(body, request, dialect)
    else:
        _add_messages(body, request, dialect)
    if request.schema and dialect.takes_grammars:
        body["grammar"] = grammar_for(request.schema)
    elif request.schema:
        body["response_format"] = _response_format(request.schema)
    return body


def _add_prompt(body: dict[str, Any], request: GenerateRequest, dialect: Dialect) -> None:
    body["prompt"] = request.prompt
    if request.logprobs:
        body["logprobs"] = max(dialect.logprobs_min, request.logprobs, 0)
    if request.schema and not dialect.bare_prompts_keep_schemas:
        raise OctonodeError(f"a server of kind {dialect.name} takes no schema for a bare prompt", code="UNSUPPORTED")


def _add_messages(body: dict[str, Any], request: GenerateRequest, dialect: Dialect) -> None:
    body["messages"] = list(request.messages)
    if request.messages[-1]["role"] == "assistant":
        if dialect.continues is None:
            text = f"a server of kind {dialect.name} cannot go on from a message of the assistant"
            raise OctonodeError(text, code="UNSUPPORTED")
        body.update(dialect.continues)
    if request.logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = max(dialect.logprobs_min, request.logprobs, 0)


def _response_format(text: str) -> dict[str, Any]:
    schema = _schema(text)
    if not schema:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OctonodeError(f"the schema is not JSON: {error}", code="BAD_REQUEST") from None
    if not isinstance(schema, dict):
        raise OctonodeError("the schema is not an object", code="BAD_REQUEST")
    return schema


def text_of(choice: dict[str, Any]) -> str:
    """The text that one choice of an event adds; empty for none."""
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def logprobs_of(choice: dict[str, Any], top: int) -> tuple[TokenLogprob, ...]:
    """What one choice tells of its tokens, with at most `top` alternatives of each; the shapes of both calls.

    Raises KeyError, TypeError, ValueError for what has another shape.
    """
    told = choice.get("logprobs")
    if not told:
        return ()
    if "content" in told:
        return tuple(
            TokenLogprob(
                str(each["token"]),
                float(each["logprob"]),
                tuple((str(one["token"]), float(one["logprob"])) for one in (each.get("top_logprobs") or ())[:top]),
            )
            for each in told["content"] or ()
        )
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    return tuple(
        TokenLogprob(str(text), float(value or 0.0), _likeliest(alternatives, top))
        for text, value, alternatives in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
    )


def _likeliest(alternatives: dict[str, float] | None, top: int) -> tuple[tuple[str, float], ...]:
    """vLLM adds the chosen token to those asked for."""
    ranked = sorted((alternatives or {}).items(), key=lambda each: -float(each[1]))
    return tuple((str(text), float(value)) for text, value in ranked[:top])
