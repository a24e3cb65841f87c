"""64 requests a second for half a minute: what the peer adds, what is lost, and whether memory grows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import trio

from octonode.config import NetworkConfig
from octonode.testing.testnet import write_scripted_model
from scripts.bench.chat import Reply, ask
from scripts.bench.nodes import pair, resident_bytes
from scripts.bench.rows import Goal, Row, percentile

REQUESTS_PER_SECOND = 64
SECONDS = 32
WARM_SECONDS = 2
TOKENS = 16
TOKENS_PER_SECOND = 50.0
"""One token each 20 ms."""
PROMPT_BYTES = 512
PARALLEL = 64
_STOCK = NetworkConfig().muxer == "stock"
_AGAINST = "the same 64 requests/s at the provider's own API; scripted, 512-byte prompt, 16 tokens, one each 20 ms"
_P50, _P95 = (8.0, 30.0) if _STOCK else (2.5, 10.0)

FIRST_P50 = Goal("load_first_token_added_p50", "ms", "<=", _P50, _AGAINST)
FIRST_P95 = Goal("load_first_token_added_p95", "ms", "<=", _P95, _AGAINST)
WHOLE_P50 = Goal("load_answer_added_p50", "ms", "<=", _P50, _AGAINST)
WHOLE_P95 = Goal("load_answer_added_p95", "ms", "<=", _P95, _AGAINST)
LOST = Goal("load_lost", "requests", "<=", 0, "all requests sent through the peer")
GROWTH_ASKER = Goal("load_memory_growth_asker", "%", "<=", 5, "its resident memory at second 10, at second 30")
GROWTH_PROVIDER = Goal("load_memory_growth_provider", "%", "<=", 5, "its resident memory at second 10, at second 30")
GOALS = (FIRST_P50, FIRST_P95, WHOLE_P50, WHOLE_P95, LOST, GROWTH_ASKER, GROWTH_PROVIDER)


@dataclass(slots=True)
class Run:
    replies: list[Reply] = field(default_factory=list)
    """Of requests sent after the warm-up."""
    resident: dict[int, list[int]] = field(default_factory=dict)
    """Process id -> bytes at second 10 and at second 30."""

    @property
    def lost(self) -> int:
        return sum(not reply.whole or reply.tokens_out != TOKENS for reply in self.replies)

    def first_ms(self) -> list[float]:
        return [reply.first_seconds * 1000 for reply in self.replies if reply.whole]

    def whole_ms(self) -> list[float]:
        return [reply.seconds * 1000 for reply in self.replies if reply.whole]


async def measure(folder: Path) -> list[Row]:
    model = write_scripted_model(folder / "model.scripted")
    values = {"engines_parallel": PARALLEL, "engines_scripted_tokens_per_second": TOKENS_PER_SECOND}
    async with pair(folder, model, **values) as (provider, asker, reference):
        near = await _run(provider.api, reference, ())
        far = await _run(asker.api, reference, (asker.pid, provider.pid))
    if near.lost:
        raise RuntimeError(f"{near.lost} of {len(near.replies)} were lost at the provider's own API")
    count = len(far.replies)
    rows = [LOST.row(far.lost, count)]
    for goal, share, there, here in (
        (FIRST_P50, 0.5, far.first_ms(), near.first_ms()),
        (FIRST_P95, 0.95, far.first_ms(), near.first_ms()),
        (WHOLE_P50, 0.5, far.whole_ms(), near.whole_ms()),
        (WHOLE_P95, 0.95, far.whole_ms(), near.whole_ms()),
    ):
        if there:
            rows.append(goal.row(percentile(there, share) - percentile(here, share), count))
        else:
            rows.append(goal.missing("no answer came"))
    for goal, pid in ((GROWTH_ASKER, asker.pid), (GROWTH_PROVIDER, provider.pid)):
        early, late = far.resident[pid]
        rows.append(goal.row(100 * (late - early) / early, 1))
    return rows


async def _run(api: str, reference: str, pids: tuple[int, ...]) -> Run:
    """An open loop: requests go out on time whatever becomes of the earlier ones."""
    run = Run()

    async def one(number: int) -> None:
        prompt = f"{number} {'words and ' * 60}"[:PROMPT_BYTES]
        reply = await ask(api, reference, prompt, TOKENS)
        if number >= WARM_SECONDS * REQUESTS_PER_SECOND:
            run.replies.append(reply)

    async def sample() -> None:
        await trio.sleep(10)
        for pid in pids:
            run.resident[pid] = [resident_bytes(pid)]
        await trio.sleep(20)
        for pid in pids:
            run.resident[pid].append(resident_bytes(pid))

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sample)
        for number in range(SECONDS * REQUESTS_PER_SECOND):
            await trio.sleep_until(begun + number / REQUESTS_PER_SECOND)
            nursery.start_soon(one, number)
    return run
