"""The shapes of the HTTP faces: pure, light to import (no web framework), shared by the daemon and `client.py`."""

from __future__ import annotations

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
from octonode.api.schema.verbs import (
    AddModel,
    FetchModel,
    Join,
    PublishModel,
    ServeModel,
    TrustPublisher,
    VerifyModel,
)

__all__ = [
    "AddModel",
    "CandidateFacts",
    "Degraded",
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
]
