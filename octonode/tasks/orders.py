"""Requests of every skill between an `Ask`, a TASK_REQUEST and what an engine takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octonode.engines.contract import EngineRequest, GenerateRequest
from octonode.errors import OctonodeError
from octonode.protocol.messages import TaskRequest
from octonode.protocol.work import skills
from octonode.protocol.work.skills import CHAT
from octonode.tasks import chat
from octonode.tasks.asking import Ask


def task_request(ask: Ask, token: str) -> TaskRequest:
    """The request as it goes to a provider; every parameter is written out, so that the receipt can be compared."""
    inputs, parameters = (chat.input_of(ask), chat.parameters_of(ask)) if ask.work is None else skills.split(ask.work)
    return TaskRequest(
        skill=ask.skill,
        model=ask.model_root,
        input=inputs,
        parameters=parameters,
        privacy=ask.privacy,
        token=token,
        mode=ask.mode,
    )


def parameters_of(ask: Ask) -> dict[str, Any]:
    return chat.parameters_of(ask) if ask.work is None else skills.split(ask.work)[1]


def engine_request(
    skill: str, inputs: Mapping[str, Any], parameters: Mapping[str, Any], *, cache_scope: str = ""
) -> EngineRequest:
    """What the engine is asked for. Raises OctonodeError (BAD_REQUEST, UNSUPPORTED) that names the field."""
    if skill == CHAT:
        return chat.generate_request(inputs, parameters, cache_scope=cache_scope)
    return skills.join(skill, inputs, parameters)


def check(ask: Ask) -> None:
    """Raises OctonodeError for what no provider would take: our own faults first."""
    if ask.work is not None and (ask.messages or ask.prompt):
        raise OctonodeError("a question is a chat or other work, not both", code="BAD_REQUEST")
    request = task_request(ask, "")
    engine_request(request.skill, request.input, request.parameters)


def applied(request: EngineRequest) -> dict[str, Any]:
    """The parameters for the receipt: as applied, the seed aside."""
    if isinstance(request, GenerateRequest):
        return chat.applied(request)
    return {name: value for name, value in skills.split(request)[1].items() if name != "seed"}


def seed_of(request: EngineRequest) -> int | None:
    seed: int | None = getattr(request, "seed", None)
    return seed
