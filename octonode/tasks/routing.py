"""Who is asked, in which order, and why not the others. Pure: announcements in, verdicts out.

Hard needs first (state, model, privacy, context, forced peer), each with its reason; then one order among those left.
The local engine is candidate zero: nothing is sent anywhere when we can answer ourselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from octonode.ids import PeerId
from octonode.protocol.announcement import Announcement, Serving
from octonode.tasks.asking import Ask, Candidate, Ranking
from octonode.tasks.pricing import offered

BYTES_PER_TOKEN_MOST = 32
"""Text rarely has tokens as long as this: what is over the context even then is not sent."""
BYTES_PER_TOKEN_USUAL = 4
"""Of English text; good enough to tell a long prompt from a short one."""

PRIVACY_BUILT = frozenset({"public"})
"""Levels this version can keep; others are refused, never downgraded."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """Our own loaded engine of the model."""

    context_tokens: int = 0
    parallel: int = 0
    running: int = 0
    tokens_per_second: float = 0.0
    first_token_ms: float = 0.0
    waiting_for: str = ""
    """Empty when it is ready; else what it is at (`fetching`, `loading`): then it comes last, with its progress."""
    failed: str = ""
    """Why it cannot be loaded."""
    skills: tuple[str, ...] = ()
    """Empty while it is not loaded."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What we remember of a peer: failures in a row, and until when it asked to be left alone."""

    failures: int = 0
    not_before_ms: int = 0


def choose(
    ask: Ask,
    *,
    us: PeerId,
    local: LocalModel | None,
    announcements: Sequence[Announcement],
    standings: Mapping[PeerId, Standing],
    now_ms: int,
) -> tuple[Candidate, ...]:
    """Everybody with a verdict: the accepted in the order of asking, then the rejected. A total order."""
    verdicts: list[tuple[Candidate, tuple[float, ...]]] = []
    if local is not None:
        verdicts.append((_local(ask, us, local), (_LOADING if local.waiting_for else 0.0,)))
    newest: dict[PeerId, Announcement] = {}
    for announcement in announcements:
        known = newest.get(announcement.peer_id)
        if announcement.peer_id != us and (known is None or announcement.sequence > known.sequence):
            newest[announcement.peer_id] = announcement
    rank = RANKINGS[ask.rank]
    for announcement in newest.values():
        serving = serving_of(announcement, ask.model_root)
        if serving is not None:
            serving = expected(offered(serving, ask.mode) or serving, ask)
        candidate = _remote(ask, announcement, serving, now_ms)
        standing = standings.get(announcement.peer_id, Standing())
        waits = standing.not_before_ms > now_ms
        key = (_class(serving), float(waits), float(min(standing.failures, 8)), *rank(serving)) if serving else (1.0,)
        verdicts.append((candidate, key))
    if ask.peer is not None and ask.peer != us and ask.peer not in newest:
        verdicts.append((Candidate(ask.peer, False, True, "you named it; it has announced nothing here"), (1.0,)))
    accepted = sorted((v for v in verdicts if v[0].accepted), key=lambda v: (v[1], v[0].peer))
    rejected = sorted((v[0] for v in verdicts if not v[0].accepted), key=lambda c: (not c.local, c.peer))
    ranked = tuple(replace(candidate, rank=place) for place, (candidate, _) in enumerate(accepted))
    return ranked + tuple(rejected)


_LOADED, _LOADING, _UNLOADED = 1.0, 2.0, 3.0
"""Peers that have it loaded, then our own engine that is at it, then peers that would have to load it."""


def _class(serving: Serving) -> float:
    return _UNLOADED if serving.loads_in_ms else _LOADED


def serving_of(announcement: Announcement, root: str) -> Serving | None:
    return next((serving for serving in announcement.serving if serving.root == root), None)


def _local(ask: Ask, us: PeerId, local: LocalModel) -> Candidate:
    reason = ""
    if ask.peer is not None and ask.peer != us:
        reason = f"the question is for {ask.peer} alone"
    elif ask.privacy not in PRIVACY_BUILT:
        reason = f"privacy level {ask.privacy} is not kept by this version"
    else:
        reason = (
            local.failed
            or _too_late(ask, local)
            or _unskilled(ask, local.skills)
            or _over_context(ask, local.context_tokens)
        )
    first = f"the local engine is asked last: {local.waiting_for}" if local.waiting_for else "the local engine is first"
    return Candidate(
        us,
        local=True,
        accepted=not reason,
        reason=reason or first,
        tokens_per_second=local.tokens_per_second,
        first_token_ms=local.first_token_ms,
        running=local.running,
        parallel=local.parallel,
        context_tokens=local.context_tokens,
    )


def _remote(ask: Ask, announcement: Announcement, serving: Serving | None, now_ms: int) -> Candidate:
    reason = _why_not(ask, announcement, serving, now_ms)
    if serving is None:
        return Candidate(announcement.peer_id, False, False, reason, tier=announcement.tier)
    return Candidate(
        announcement.peer_id,
        local=False,
        accepted=not reason,
        reason=reason or f"ranked by {ask.rank}{_loads_first(serving)}",
        tier=announcement.tier,
        tokens_per_second=serving.tokens_per_second,
        first_token_ms=serving.first_token_ms,
        running=serving.running,
        parallel=serving.parallel,
        context_tokens=serving.context_tokens,
        price_in_micro_octo=serving.price_in_micro_octo,
        price_out_micro_octo=serving.price_out_micro_octo,
        price_basis=serving.price_basis,
    )


def _why_not(ask: Ask, announcement: Announcement, serving: Serving | None, now_ms: int) -> str:
    """The first hard need that is not met, for people; empty when all are."""
    if ask.peer is not None and announcement.peer_id != ask.peer:
        return f"the question is for {ask.peer} alone"
    if announcement.state != "active":
        return "it is leaving the network"
    if announcement.expires_at_ms <= now_ms:
        return "its announcement has expired"
    if serving is None:
        return "it does not serve this model"
    if ask.privacy not in PRIVACY_BUILT:
        return f"privacy level {ask.privacy} is not kept by this version"
    if ask.mode and ask.mode not in serving.modes:
        return f"it does not offer mode {ask.mode}"
    if ask.mode == "realtime" and serving.loads_in_ms:
        return "the model is not loaded there now, and a realtime task never waits"
    return _unskilled(ask, serving.skills) or _over_context(ask, serving.context_tokens)


def _loads_first(serving: Serving) -> str:
    if not serving.loads_in_ms:
        return ""
    return f"; it is not loaded there now, which took {serving.loads_in_ms / 1000:.1f} s last time"


def _too_late(ask: Ask, local: LocalModel) -> str:
    if ask.mode != "realtime" or not local.waiting_for:
        return ""
    return f"the local engine is not there yet ({local.waiting_for}), and a realtime task never waits"


def _unskilled(ask: Ask, skills: Sequence[str]) -> str:
    if not skills or ask.skill in skills:
        return ""
    return f"the model has no skill {ask.skill} there; it has {', '.join(skills)}"


def _over_context(ask: Ask, context_tokens: int) -> str:
    least = prompt_tokens_least(ask)
    if not context_tokens or least < context_tokens:
        return ""
    return f"its context of {context_tokens} tokens is shorter than the prompt of at least {least}"


def prompt_tokens_least(ask: Ask) -> int:
    """Fewer than any tokenizer makes of the prompt; 0 for work that is no chat."""
    return prompt_bytes(ask) // BYTES_PER_TOKEN_MOST if ask.work is None else 0


def prompt_bytes(ask: Ask) -> int:
    return len(ask.prompt.encode()) + sum(len(message.get("content", "").encode()) for message in ask.messages)


def expected(serving: Serving, ask: Ask) -> Serving:
    """The announced figures as they are for this request: the first token by the length of its prompt, between and
    beyond the two lengths that were measured; the speed of work that is no chat in results a second."""
    if ask.work is not None:
        seconds = 1 / serving.results_per_second if serving.results_per_second else 0.0
        return replace(serving, tokens_per_second=serving.results_per_second, first_token_ms=round(seconds * 1000))
    if not serving.long_tokens or not serving.first_token_ms:
        return serving
    longer_ms = max(0, serving.first_token_long_ms - serving.first_token_ms)
    tokens = prompt_bytes(ask) / BYTES_PER_TOKEN_USUAL
    return replace(serving, first_token_ms=round(serving.first_token_ms + longer_ms * tokens / serving.long_tokens))


def _load(serving: Serving) -> float:
    """Tasks per slot; 1 and more: a new one waits."""
    return serving.running / max(1, serving.parallel)


def _first_token(serving: Serving) -> float:
    """An unmeasured one counts as a second: better than one known to be slow."""
    return float((serving.first_token_ms or 1000) + serving.loads_in_ms)


def _price(serving: Serving) -> float:
    return float(serving.price_in_micro_octo + serving.price_out_micro_octo)


RANKINGS: dict[Ranking, Callable[[Serving], tuple[float, ...]]] = {
    "balanced": lambda s: (float(_load(s) >= 1), -(s.tokens_per_second or 1.0) * (1 - min(_load(s), 0.9)), _price(s)),
    "speed": lambda s: (float(_load(s) >= 1), -s.tokens_per_second, _first_token(s)),
    "first_token": lambda s: (float(_load(s) >= 1), _first_token(s), -s.tokens_per_second),
    "cost": lambda s: (_price(s), float(_load(s) >= 1), -s.tokens_per_second),
}
"""Smaller comes first. All figures are the announcement's own, measured by the node that announces them."""
