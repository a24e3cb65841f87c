"""What one hop of the network adds to the first token, on an idle pair of nodes."""

from __future__ import annotations

from pathlib import Path

from octonode.config import NetworkConfig
from octonode.testing.testnet import write_scripted_model
from scripts.bench.chat import Reply, ask
from scripts.bench.nodes import pair
from scripts.bench.rows import Goal, Row, percentile

PAIRS = 200
WARM = 10
TOKENS = 16
_STOCK = NetworkConfig().muxer == "stock"
_AGAINST = "the same question at the provider's own API, in turn; scripted engine"

P50 = Goal("first_token_added_p50", "ms", "<=", 8.0 if _STOCK else 2.5, _AGAINST)
P95 = Goal("first_token_added_p95", "ms", "<=", 20.0 if _STOCK else 6.0, _AGAINST)
GOALS = (P50, P95)


async def measure(folder: Path) -> list[Row]:
    model = write_scripted_model(folder / "model.scripted")
    async with pair(folder, model) as (provider, asker, reference):
        near: list[float] = []
        far: list[float] = []
        for number in range(WARM + PAIRS):
            prompt = f"question {number}: what is a peer?"
            here = await ask(provider.api, reference, prompt, TOKENS)
            there = await ask(asker.api, reference, prompt, TOKENS)
            _check(here, there)
            if number >= WARM:
                near.append(here.first_seconds * 1000)
                far.append(there.first_seconds * 1000)
    base = percentile(near, 0.5)
    added = [each - base for each in far]
    return [P50.row(percentile(added, 0.5), PAIRS), P95.row(percentile(added, 0.95), PAIRS)]


def _check(here: Reply, there: Reply) -> None:
    if not (here.whole and there.whole and here.text == there.text):
        raise RuntimeError(f"answers differ or broke off: {here} {there}")
