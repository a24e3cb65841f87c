"""OpenAI's older text completion: a prompt that is gone on from, without a chat template. Pure.

Source of the format: https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from octonode.api.schema.answers import AnswerFacts, sse_event, usage
from octonode.api.schema.failures import bad_request
from octonode.api.schema.fields import (
    SEED_MAX,
    SEED_MIN,
    Served,
    Terms,
    body_of,
    flag_of,
    max_tokens_of,
    number_of,
    object_of,
    stops_of,
    terms_of,
    whole_of,
)
from octonode.api.schema.plain import to_json
from octonode.api.schema.shape import text
from octonode.engines.contract import TokenLogprob, told_logprob

PROMPT_CHARACTERS_MAX: Final = 1 << 22
LOGPROBS_MAX: Final = 5
MAX_TOKENS_DEFAULT: Final = 16
"""OpenAI's, for this request alone."""

SERVED: Final = Served(
    read=frozenset(
        {
            *("model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"),
            *("logprobs", "privacy_level", "octonode"),
        }
    ),
    ignored=frozenset({"user"}),
    neutral={
        "n": lambda value: value == 1,
        "best_of": lambda value: value == 1,
        "echo": lambda value: value is False,
        "suffix": lambda value: value == "",
        "logit_bias": lambda value: value == {},
        "presence_penalty": lambda value: value == 0,
        "frequency_penalty": lambda value: value == 0,
    },
)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    terms: Terms
    prompt: str
    max_tokens: int = MAX_TOKENS_DEFAULT
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    logprobs: int = 0
    """Alternatives to tell of each token; -1: the chosen token alone, 0: nothing."""


def parse_completion(body: Any, privacy_header: str | None = None) -> CompletionRequest:
    """The request in a decoded JSON body. Raises BAD_REQUEST, UNSUPPORTED or PRIVACY_UNAVAILABLE, with `param`."""
    body = body_of(body)
    SERVED.check(body)
    logprobs = whole_of(body, "logprobs", 0, LOGPROBS_MAX)
    return CompletionRequest(
        terms=terms_of(body, privacy_header),
        prompt=_prompt(body.get("prompt")),
        max_tokens=max_tokens_of(body) or MAX_TOKENS_DEFAULT,
        temperature=number_of(body, "temperature", 0, 2),
        top_p=number_of(body, "top_p", 0, 1, above=True),
        seed=whole_of(body, "seed", SEED_MIN, SEED_MAX),
        stop=stops_of(body.get("stop")),
        stream=flag_of(body, "stream"),
        include_usage=flag_of(object_of(body, "stream_options"), "include_usage"),
        logprobs=0 if logprobs is None else logprobs or -1,
    )


def _prompt(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, list):
        message = "prompt takes one text; ask once for each, and send texts, since tokens differ from model to model"
        raise bad_request(message, "prompt", code="UNSUPPORTED")
    if not isinstance(value, str) or not value:
        raise bad_request("prompt must be a text that is not empty", "prompt")
    return text(value, "prompt", PROMPT_CHARACTERS_MAX)


class CompletionChunks:
    """Renders a streamed answer as server-sent events, and the whole one; both are `text_completion`."""

    def __init__(self, answer_id: str, request: CompletionRequest, created: int) -> None:
        self._request = request
        self._envelope = {
            "id": answer_id,
            "object": "text_completion",
            "created": created,
            "model": request.terms.model,
        }
        self._end: dict[str, Any] = {"usage": None} if request.include_usage else {}

    def text(self, said: str) -> bytes:
        return sse_event({**self._envelope, "choices": [_choice(said, None, None)], **self._end})

    def finish(self, reason: str, facts: AnswerFacts, tokens: Sequence[TokenLogprob] = ()) -> bytes:
        """With the probabilities of all tokens: they come when the answer is whole."""
        choice = _choice("", reason, self._logprobs(tokens))
        return sse_event({**self._envelope, "choices": [choice], **self._end, "octonode": to_json(facts)})

    def usage(self, tokens_in: int, tokens_out: int) -> bytes:
        return sse_event({**self._envelope, "choices": [], "usage": usage(tokens_in, tokens_out)})

    def whole(
        self, said: str, reason: str, tokens: Sequence[TokenLogprob], counts: tuple[int, int], facts: AnswerFacts
    ) -> dict[str, Any]:
        """The complete object; `counts` is (tokens in, tokens out)."""
        choice = _choice(said, reason, self._logprobs(tokens))
        return {**self._envelope, "choices": [choice], "usage": usage(*counts), "octonode": to_json(facts)}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._request.logprobs or not tokens:
            return None
        ends = list(accumulate(len(token.text) for token in tokens))
        tops = [{name: told_logprob(value) for name, value in token.top} for token in tokens]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [told_logprob(token.logprob) for token in tokens],
            "top_logprobs": tops if self._request.logprobs > 0 else None,
            "text_offset": [0, *ends[:-1]],
        }


def _choice(said: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"text": said, "index": 0, "logprobs": logprobs, "finish_reason": reason}
