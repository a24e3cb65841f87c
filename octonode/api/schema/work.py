"""Work of any skill from the caller's side: what `POST /api/v1/inference` is sent and how its answer is read. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from octonode.api.schema.answers import AnswerFacts
from octonode.api.schema.calls import Call, Progressing
from octonode.api.schema.inference import Infer, InferenceFacts
from octonode.api.schema.plain import to_json
from octonode.api.schema.shape import read
from octonode.errors import Unreachable
from octonode.protocol.work.skills import INPUT_FIELDS, SKILLS

T = TypeVar("T")

ASKING = ("peer", "mode", "privacy_level")
"""Options that say who is asked and how; all others are fields of the skill's request."""


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """What was made, who made it, and what proves it."""

    result: T
    facts: AnswerFacts


class Making(Progressing[InferenceFacts], Generic[T]):
    """Work in progress; `made` once its stream has been read."""

    kind = InferenceFacts
    lost = "the node was lost while the work was done; ask again"

    def __init__(self, skill: str) -> None:
        super().__init__()
        self._skill = skill

    def made(self) -> Made[T]:
        """Raises Unreachable when the node was lost before the end."""
        facts = self.done()
        if facts.octonode is None:
            raise Unreachable(self.lost)
        return Made(cast(T, read(SKILLS[self._skill].result, facts.result)), facts.octonode)


def work_call(model: str, skill: str, fields: Mapping[str, Any]) -> Call[Making[Any]]:
    """`fields` are those of the skill's request (protocol.work) and of ASKING; None counts as left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    asked = Infer(
        model,
        skill,
        input={name: to_json(value) for name, value in given.items() if name in INPUT_FIELDS},
        parameters={name: value for name, value in given.items() if name not in INPUT_FIELDS and name not in ASKING},
        **{name: given[name] for name in ASKING if name in given},
    )
    headers = {"accept": "application/x-ndjson"}
    return Call("POST", "/api/v1/inference", lambda _: Making(skill), to_json(asked), headers=headers)
