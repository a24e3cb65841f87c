"""The shapes of the HTTP faces: pure, light to import (no web framework), shared by the daemon and `client.py`."""

from __future__ import annotations

from octonode.api.schema.answers import (
    DONE,
    PING,
    AnswerFacts,
    Chunks,
    completion,
    error_event,
    line,
    model_list,
    model_object,
    sse_event,
)
from octonode.api.schema.chat import ChatRequest, parse_chat, privacy_level
from octonode.api.schema.facts import (
    CandidateFacts,
    Degraded,
    Finding,
    Joined,
    ModelFacts,
    ModelOutcome,
    ModelProgress,
    NodeFacts,
    PeerFacts,
    Publisher,
    ReceiptFacts,
    TaskCounts,
    TaskFacts,
)
from octonode.api.schema.failures import bad_request, error_body, error_from_body, error_headers
from octonode.api.schema.plain import to_json
from octonode.api.schema.shape import parse, read
from octonode.api.schema.verbs import (
    AddModel,
    Explain,
    FetchModel,
    Join,
    PublishModel,
    ServeModel,
    TrustPublisher,
    VerifyModel,
)

__all__ = [
    "DONE",
    "PING",
    "AddModel",
    "AnswerFacts",
    "CandidateFacts",
    "ChatRequest",
    "Chunks",
    "Degraded",
    "Explain",
    "FetchModel",
    "Finding",
    "Join",
    "Joined",
    "ModelFacts",
    "ModelOutcome",
    "ModelProgress",
    "NodeFacts",
    "PeerFacts",
    "PublishModel",
    "Publisher",
    "ReceiptFacts",
    "ServeModel",
    "TaskCounts",
    "TaskFacts",
    "TrustPublisher",
    "VerifyModel",
    "bad_request",
    "completion",
    "error_body",
    "error_event",
    "error_from_body",
    "error_headers",
    "line",
    "model_list",
    "model_object",
    "parse",
    "parse_chat",
    "privacy_level",
    "read",
    "sse_event",
    "to_json",
]
