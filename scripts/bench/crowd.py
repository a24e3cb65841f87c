"""Many at once through one connection: 256 requests a second, and a thousand streams side by side. What is lost?"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import trio

from octonode.testing.daemon import Daemon
from octonode.testing.testnet import write_scripted_model
from scripts.bench.chat import Reply, ask
from scripts.bench.nodes import pair
from scripts.bench.rows import Goal, Row, percentile

BURST_PER_SECOND = 256
BURST_SECONDS = 15
BURST_TOKENS = 16
BURST_TOKENS_PER_SECOND = 50.0
PROMPT_BYTES = 512

STREAMS = 1000
STREAMS_PER_SECOND = 100
"""They are opened one after the other: what is measured is that they stay."""
DELTAS_PER_SECOND = 5.0
TOGETHER_SECONDS = 30.0
"""How long all of them are open."""
CROWD_TOKENS = int((STREAMS / STREAMS_PER_SECOND + TOGETHER_SECONDS) * DELTAS_PER_SECOND)

BURST = Goal(
    "burst_lost",
    "requests",
    "<=",
    0,
    f"all of {BURST_PER_SECOND} requests/s for {BURST_SECONDS} s through one peer; scripted, as load_lost",
)
CROWD = Goal(
    "crowd_errors",
    "streams",
    "<=",
    0,
    f"all of {STREAMS} token streams at once through one connection to one peer, 5 deltas/s each, 30 s; scripted",
)
BURST_GOALS = (BURST,)
CROWD_GOALS = (CROWD,)

PATIENCE_SECONDS = 180.0
"""What comes late is not lost."""
OPEN_MAX = 4096
"""No bound of the provider's or the asker's is what is measured here."""
ROOM = {
    "api_connections_max": OPEN_MAX,
    "network_streams_per_peer_max": OPEN_MAX,
    "tasks_open_max": OPEN_MAX,
    "tasks_open_per_peer_max": OPEN_MAX,
    "tasks_queue_max": OPEN_MAX,
    "tasks_requests_per_second_known": OPEN_MAX,
    "tasks_requests_burst_known": OPEN_MAX,
}


@dataclass(slots=True)
class Run:
    """Replies of one open loop: requests go out on time whatever becomes of the earlier ones."""

    tokens: int
    replies: list[Reply] = field(default_factory=list)

    async def drive(self, api: str, reference: str, *, count: int, per_second: float) -> None:
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(count):
                await trio.sleep_until(begun + number / per_second)
                nursery.start_soon(self._one, api, reference, f"{number} {'words and ' * 60}"[:PROMPT_BYTES])

    async def _one(self, api: str, reference: str, prompt: str) -> None:
        reply = await ask(api, reference, prompt, self.tokens, timeout_seconds=PATIENCE_SECONDS)
        self.replies.append(reply)

    @property
    def broken(self) -> list[Reply]:
        return [reply for reply in self.replies if not reply.whole or reply.tokens_out != self.tokens]

    def told(self, what: str) -> str:
        """For people, beside the rows."""
        whole = [reply for reply in self.replies if reply.whole]
        first = [reply.first_seconds * 1000 for reply in whole] or [float("inf")]
        all_ = [reply.seconds * 1000 for reply in whole] or [float("inf")]
        figures = ", ".join(
            f"{name} p50 {percentile(values, 0.5):.0f} ms p95 {percentile(values, 0.95):.0f} ms"
            for name, values in (("first token", first), ("answer", all_))
        )
        return f"  {what}: {len(self.replies)} sent, {len(self.broken)} broken; {figures}"


async def measure_burst(folder: Path) -> list[Row]:
    model = write_scripted_model(folder / "model.scripted")
    values = {**ROOM, "engines_parallel": 256, "engines_scripted_tokens_per_second": BURST_TOKENS_PER_SECOND}
    near, far = Run(BURST_TOKENS), Run(BURST_TOKENS)
    count = BURST_PER_SECOND * BURST_SECONDS
    async with pair(folder, model, **values) as (provider, asker, reference):
        await near.drive(provider.api, reference, count=count, per_second=BURST_PER_SECOND)
        await far.drive(asker.api, reference, count=count, per_second=BURST_PER_SECOND)
        _require_one_connection(asker, provider)
    _tell(near.told("at the provider's own API"))
    _tell(far.told("through the peer"))
    return [BURST.row(len(far.broken), count)]


async def measure_crowd(folder: Path) -> list[Row]:
    model = write_scripted_model(folder / "model.scripted")
    values = {
        **ROOM,
        "engines_parallel": STREAMS,
        "engines_scripted_tokens_per_second": DELTAS_PER_SECOND,
        "engines_scripted_answer_tokens": CROWD_TOKENS,
    }
    run = Run(CROWD_TOKENS)
    async with pair(folder, model, **values) as (provider, asker, reference):
        await run.drive(asker.api, reference, count=STREAMS, per_second=STREAMS_PER_SECOND)
        _require_one_connection(asker, provider)
    _tell(run.told(f"{CROWD_TOKENS} tokens each, {CROWD_TOKENS / DELTAS_PER_SECOND:.0f} s at the engine's pace"))
    return [CROWD.row(len(run.broken), STREAMS)]


def _require_one_connection(asker: Daemon, provider: Daemon) -> None:
    """Raises RuntimeError when the two processes share more than one TCP connection, or none."""
    ends = [
        {(each.laddr, each.raddr) for each in psutil.Process(daemon.pid).net_connections("tcp") if each.raddr}
        for daemon in (asker, provider)
    ]
    shared = {(here, there) for here, there in ends[0] if (there, here) in ends[1]}
    if len(shared) != 1:
        raise RuntimeError(f"asker and provider share {len(shared)} connections, not one")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
