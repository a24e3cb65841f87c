"""A request of any skill in plain maps, as the native API and the jobs have it: to an `Ask`, and its answer back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Final

from octonode.engines.contract import told_logprob
from octonode.errors import OctonodeError
from octonode.ids import PeerId
from octonode.protocol.messages import Mode, Privacy
from octonode.protocol.work.records import write
from octonode.protocol.work.skills import CHAT, SKILLS, WorkResult, join
from octonode.tasks.asking import Answered, Ask, AskEvent, Attempt, Made, Pieces
from octonode.tasks.chat import generate_request
from octonode.tasks.job import Job, JobResult, JobWork

CHAT_INPUTS: Final = frozenset({"messages", "prompt", "schema"})
CHAT_PARAMETERS: Final = frozenset({"max_tokens", "temperature", "top_p", "seed", "stop", "logprobs"})
JOB_DEADLINE_SECONDS: Final = 3600.0
"""Of one attempt; a provider takes no task for longer."""


def ask_of(
    skill: str,
    model_root: str,
    inputs: Mapping[str, Any],
    parameters: Mapping[str, Any],
    *,
    mode: Mode = "",
    privacy: Privacy = "public",
    peer: PeerId | None = None,
    deadline_seconds: float = 600.0,
) -> Ask:
    """Raises OctonodeError that names the field: BAD_REQUEST, UNSUPPORTED for an unknown skill, TOO_LARGE."""
    common = Ask(model_root, mode=mode, privacy=privacy, peer=peer, deadline_seconds=deadline_seconds)
    return _chat(common, inputs, parameters) if skill == CHAT else _work(common, skill, inputs, parameters)


def _work(common: Ask, skill: str, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> Ask:
    if skill not in SKILLS:
        message = f"there is no skill {skill[:32]!r}; known are {', '.join((CHAT, *SKILLS))}"
        raise OctonodeError(message, code="UNSUPPORTED", detail={"param": "skill"})
    return replace(common, work=join(skill, inputs, parameters))


def _chat(common: Ask, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> Ask:
    for given, known, half in ((inputs, CHAT_INPUTS, "input"), (parameters, CHAT_PARAMETERS, "parameters")):
        for name in given:
            if name not in known:
                message = f"{half} of chat has no field {str(name)[:64]!r}; known are {', '.join(sorted(known))}"
                raise OctonodeError(message, code="BAD_REQUEST", detail={"param": half})
    request = generate_request(inputs, parameters)
    return replace(
        common,
        messages=request.messages,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
        prompt=request.prompt,
        schema=request.schema,
        logprobs=request.logprobs,
    )


def chat_result(text: str, answered: Answered) -> dict[str, Any]:
    """The result of a chat as a map, beside which the skills' results are those of `protocol.work`."""
    result: dict[str, Any] = {
        "text": text,
        "finish_reason": answered.finish_reason,
        "tokens_in": answered.tokens_in,
        "tokens_out": answered.tokens_out,
    }
    if answered.logprobs:
        result["logprobs"] = [
            [token.text, told_logprob(token.logprob), [[text, told_logprob(value)] for text, value in token.top]]
            for token in answered.logprobs
        ]
    return result


class Performer:
    """Asks for the work of jobs: `jobs.Perform`. `ask` is that of the dispatcher."""

    def __init__(self, ask: Callable[[Ask], AbstractAsyncContextManager[AsyncIterator[AskEvent]]]) -> None:
        self._ask = ask

    async def __call__(self, job: Job, work: JobWork) -> JobResult:
        """What came of one attempt. Raises OctonodeError."""
        ask = ask_of(
            job.skill,
            job.model_root,
            work.inputs,
            work.parameters,
            mode="async",
            privacy=job.privacy,
            peer=PeerId(job.peer) if job.peer else None,
            deadline_seconds=JOB_DEADLINE_SECONDS,
        )
        texts: list[str] = []
        made: WorkResult | None = None
        answered: Answered | None = None
        attempts = 0
        async with self._ask(ask) as events:
            async for event in events:
                if isinstance(event, Pieces):
                    texts.append(event.text)
                elif isinstance(event, Made):
                    made = event.result
                elif isinstance(event, Attempt):
                    attempts += 1
                elif isinstance(event, Answered):
                    answered = event
        if answered is None or (made is None and ask.work is not None):
            raise OctonodeError("the answer ended without a word of its end", code="PROVIDER_LOST")
        result = write(made) if made is not None else chat_result("".join(texts), answered)
        return JobResult(result, facts_of(answered, attempts))


def facts_of(answered: Answered, attempts: int) -> dict[str, Any]:
    """Who answered and what proves it, as a map of plain values."""
    return {
        "provider": str(answered.provider),
        "local": answered.local,
        "task": answered.task,
        "verified": answered.verified,
        "reason": answered.reason,
        "receipt": answered.receipt or b"",
        "request_header": answered.request_header,
        "attempts": max(1, attempts),
        "first_token_ms": round(answered.first_token_seconds * 1000, 3),
        "seconds": round(answered.seconds, 6),
    }
