"""`/api/v1/inference`: work of any skill, answered now or kept as a job. Pure. Spec: protocols/http.md."""

from __future__ import annotations

import base64
import binascii
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from octonode.api.schema.answers import AnswerFacts
from octonode.api.schema.calls import Call, many, one
from octonode.api.schema.failures import bad_request
from octonode.api.schema.plain import quoted, to_json
from octonode.protocol.work.skills import CHAT, SKILLS

Mode = Literal["", "realtime", "batch", "async"]


@dataclass(frozen=True, slots=True)
class Infer:
    """Work for whoever serves the model best. Bytes in `input` are base64."""

    model: str
    skill: str = CHAT
    input: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    mode: Mode = ""
    """`async`: kept as a job and answered at once; else the answer is the result."""
    peer: str = ""
    """Ask this peer alone."""
    privacy_level: str = "public"
    priority: int = 5
    """Of a job, 0 to 9, the most urgent."""
    webhook: str = ""
    """Of a job: where its end is posted."""
    ttl_seconds: float = 0.0
    """Of a job: how long its result is kept; 0, and at most: as the node's settings say."""


@dataclass(frozen=True, slots=True)
class Failure:
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class InferenceFacts:
    """One piece of work: a job, or an answer that was given at once."""

    id: str
    """Of the job; of an answer at once that of its task."""
    state: str
    """submitted, working, completed, failed, canceled."""
    model: str
    model_root: str
    skill: str
    mode: str = ""
    priority: int = 0
    place: int = 0
    """In the queue, from 1; 0: it does not wait."""
    attempt: int = 0
    """Times that it was begun."""
    created_at_ms: int = 0
    started_at_ms: int = 0
    ended_at_ms: int = 0
    expires_at_ms: int = 0
    """When it is forgotten; 0 until it has ended."""
    webhook: str = ""
    webhook_state: str = ""
    """pending, delivered, failed; empty before its end."""
    webhook_tries: int = 0
    error: Failure | None = None
    """Of a job that failed; of one that works still: why its last attempt did."""
    result: Any = None
    """Of chat {text, finish_reason, tokens_in, tokens_out}, else the record of the skill, protocols/skills.md."""
    octonode: AnswerFacts | None = None
    """Who did it, and what proves it."""


def bytes_fields(skill: str) -> frozenset[str]:
    """Fields of the skill's request that hold bytes."""
    if skill not in SKILLS:
        return frozenset()
    hints = typing.get_type_hints(SKILLS[skill].request)
    return frozenset(name for name, hint in hints.items() if hint is bytes)


def decoded(skill: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` of JSON with bytes for base64. Raises BAD_REQUEST that names the field."""
    values = dict(fields)
    for name in bytes_fields(skill) & values.keys():
        try:
            values[name] = base64.b64decode(values[name], validate=True)
        except (binascii.Error, ValueError, TypeError):
            raise bad_request(f"input.{name} must be base64", f"input.{name}") from None
    return values


class InferenceCalls:
    """What the client sends."""

    @staticmethod
    def submit(asked: Infer) -> Call[InferenceFacts]:
        return Call("POST", "/api/v1/inference", one(InferenceFacts), to_json(asked))

    @staticmethod
    def get(job: str, wait_seconds: float = 0.0) -> Call[InferenceFacts]:
        query = f"?wait={wait_seconds:g}" if wait_seconds else ""
        return Call("GET", f"/api/v1/inference/{quoted(job, safe='')}{query}", one(InferenceFacts))

    jobs = Call("GET", "/api/v1/inference?limit=1000", many(InferenceFacts, "jobs"))

    @staticmethod
    def cancel(job: str) -> Call[InferenceFacts]:
        return Call("DELETE", f"/api/v1/inference/{quoted(job, safe='')}", one(InferenceFacts))
