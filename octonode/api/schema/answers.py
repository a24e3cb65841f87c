"""What an answer looks like on OpenAI's face: chunk and complete objects, model lists, server-sent events. Pure.

Source of the shapes: https://platform.openai.com/docs/api-reference/chat/streaming. The `octonode` object is ours and
stands on the chunk that carries `finish_reason`, and on the complete object.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octonode.api.schema.facts import CandidateFacts, ModelFacts
from octonode.api.schema.failures import error_body
from octonode.api.schema.plain import to_json
from octonode.api.schema.tools import Call
from octonode.engines.contract import TokenLogprob, told_logprob
from octonode.errors import OctonodeError

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

# JSON leaves these as they are, and some readers of event streams take them for line ends (Python's str.splitlines).
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """The `octonode` object of an answer: who gave it, and what proves it."""

    provider: str
    """Peer id."""
    local: bool
    """True when our own engine answered."""
    model_root: str
    task: str
    """Task id, 32 hex digits: `GET /api/v1/receipts/{task}`."""
    verified: bool
    """The receipt is the provider's, about our request, and its transcript is what we passed on."""
    reason: str = ""
    """Why it is not verified."""
    receipt: bytes = b""
    """dag-cbor bytes as signed, base64 in JSON; empty when there is none."""
    request: bytes = b""
    """Our signed request as sent, base64 in JSON, for protocols/receipt.md; only where `octonode.request` was set."""
    request_header: bytes = b""
    """Header of our signed request: the receipt's request hash is its sha256."""
    attempts: int = 1
    """Candidates asked, the one that answered among them."""
    first_token_ms: float = 0.0
    seconds: float = 0.0
    candidates: tuple[CandidateFacts, ...] = ()
    """Everybody who was considered; only where `octonode.explain` was set."""
    manifest: str = ""
    """CID of the model's signed manifest; empty: UNSIGNED, known by its root alone."""


class Chunks:
    """Renders the chunks of one streamed answer as server-sent events, each of them whole bytes for one write."""

    def __init__(self, answer_id: str, model: str, created: int, *, include_usage: bool = False) -> None:
        self._envelope = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._end: dict[str, Any] = {"usage": None} if include_usage else {}
        # A chunk of text is these bytes around the text's own JSON: nothing else is rendered again per token.
        head, tail = _json({**self._envelope, "choices": [_choice({"content": ""})], **self._end}).split(b'""', 1)
        self._head, self._tail = b"data: " + head, tail + b"\n\n"

    def role(self) -> bytes:
        """The first chunk."""
        return sse_event({**self._envelope, "choices": [_choice({"role": "assistant", "content": ""})], **self._end})

    def text(self, text: str) -> bytes:
        return self._head + _json(text) + self._tail

    def call(self, call_id: str, call: Call) -> bytes:
        """The first chunk and the only one of an answer that is a call."""
        delta = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **call_object(call_id, call)}]}
        return sse_event({**self._envelope, "choices": [_choice(delta)], **self._end})

    def finish(self, reason: str, facts: AnswerFacts, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        choice = _choice({}, finish_reason=reason, logprobs=logprobs_object(logprobs))
        return sse_event({**self._envelope, "choices": [choice], **self._end, "octonode": to_json(facts)})

    def usage(self, tokens_in: int, tokens_out: int) -> bytes:
        """The last chunk, where `stream_options.include_usage` asked for it: no choice, only the usage."""
        return sse_event({**self._envelope, "choices": [], "usage": usage(tokens_in, tokens_out)})


def sse_event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _json(value) + b"\n\n"


def error_event(error: OctonodeError) -> bytes:
    """How an error is said once the answer has begun; nothing follows it."""
    return sse_event(error_body(error))


def line(value: Any) -> bytes:
    """One line of NDJSON."""
    return _json(value) + b"\n"


def completion(
    *,
    answer_id: str,
    model: str,
    created: int,
    message: dict[str, Any],
    reason: str,
    tokens: tuple[int, int],
    facts: AnswerFacts,
    logprobs: Sequence[TokenLogprob] = (),
) -> dict[str, Any]:
    """The complete object; `tokens` is (in, out)."""
    choice = {"index": 0, "message": message, "logprobs": logprobs_object(logprobs), "finish_reason": reason}
    return {
        "id": answer_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": usage(*tokens),
        "octonode": to_json(facts),
    }


def message_of(text: str, call: tuple[str, Call] | None = None) -> dict[str, Any]:
    """The assistant's message: a text, or a call with its id."""
    if call is None:
        return {"role": "assistant", "content": text, "refusal": None}
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call_object(*call)]}


def call_object(call_id: str, call: Call) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def logprobs_object(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Null where none were asked for."""
    if not tokens:
        return None
    content = [
        {**_logprob(each.text, each.logprob), "top_logprobs": [_logprob(*pair) for pair in each.top]} for each in tokens
    ]
    return {"content": content, "refusal": None}


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": told_logprob(logprob), "bytes": list(token.encode("utf-8", "replace"))}


def usage(tokens_in: int, tokens_out: int) -> dict[str, int]:
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def model_object(model: ModelFacts) -> dict[str, Any]:
    """OpenAI's model object; our facts stand under `octonode`."""
    return {
        "id": model.reference,
        "object": "model",
        "created": model.created_at_ms // 1000,
        "owned_by": model.publisher or "octonode",
        "octonode": to_json(model),
    }


def model_list(models: Sequence[ModelFacts]) -> dict[str, Any]:
    """Those that can be asked now or soon: served by somebody, or on their way to be served here."""
    shown = [each for each in models if each.servers or each.state in ("serving", "loading", "fetching")]
    return {"object": "list", "data": [model_object(each) for each in shown]}


def _choice(
    delta: dict[str, Any], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not text.isascii():
        text = text.translate(_LINE_ENDS)
    return text.encode("utf-8", "replace")
