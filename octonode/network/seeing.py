"""Why a node sees nobody: what membership knows, put in sentences that say what to do. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from octonode.ids import PeerId

SENTENCES_MAX = 16
_FEW = 3


@dataclass(slots=True)
class Dial:
    """How it stands with one bootstrap or static address."""

    address: str
    peer_id: PeerId
    kind: Literal["bootstrap", "static"]
    failures: int = 0
    """In a row."""
    reason: str = ""
    reached: bool = False
    """Connected now, or at the last try."""

    def succeeded(self) -> None:
        self.failures, self.reason, self.reached = 0, "", True

    def failed(self, reason: str) -> None:
        self.failures += 1
        self.reason, self.reached = reason, False

    @property
    def sentence(self) -> str:
        return f"the {self.kind} peer {self.address} does not answer ({self.failures} tries): {self.reason}"


@dataclass(frozen=True, slots=True)
class MembershipReport:
    """For `status` and `doctor`."""

    connected: int
    greeted: int
    """Connected peers that exchanged announcements with us."""
    known: int
    """Peers with a fresh announcement."""
    dials: tuple[Dial, ...]
    findings: tuple[str, ...]
    """Empty when there is nothing to say."""


def findings(
    *,
    own: PeerId,
    dials: Collection[Dial],
    connected: Collection[PeerId],
    greeted: Collection[PeerId],
    known: int,
    failing: Mapping[PeerId, str],
    undialled: Mapping[PeerId, str],
    counts: Mapping[str, int],
) -> list[str]:
    """Sentences for a person, the likeliest cause first. `failing`: connected peers whose greeting failed, with the
    reason; `undialled`: announced peers that could not be dialled; `counts`: verdicts on announcements."""
    said = [f"{dial.address} is this node's own address; name another node" for dial in dials if dial.peer_id == own]
    others = [dial for dial in dials if dial.peer_id != own]
    said += [dial.sentence for dial in others if dial.failures]
    if not connected and not others:
        said.append(
            "no bootstrap peer is set: run `octonode join LINE` with the line that another node printed at its start"
        )
    said += [f"{peer} is connected, but greeting it failed: {why}" for peer, why in failing.items()]
    if not greeted:
        said += [f"{peer} was heard of, but cannot be dialled: {why}" for peer, why in list(undialled.items())[:_FEW]]
    if greeted and known <= 1:
        said.append("the one peer we are connected to knows of nobody else yet")
    late = counts.get("EXPIRED", 0) + counts.get("CLOCK_SKEW", 0)
    if late and not known:
        said.append(f"{late} announcements were refused for their time: check the clock of this machine")
    return said[:SENTENCES_MAX]
