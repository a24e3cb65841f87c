"""The ground under every stream: our muxer, Noise reader and negotiation against the library's, two processes each.

One round is one pair of fresh processes a kind, in turn; each figure is the median over the rounds. `library` is
py-libp2p alone. Where one end is ours and the other the library's, the worse of the two directions counts.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from scripts.bench.nodes import START_SECONDS
from scripts.bench.rows import Goal, Row, median

ROUNDS = 3
MEASURE_SECONDS = 120.0
OWN, LIBRARY = ("own", "own"), ("library", "library")
MIXED = (("own", "library"), ("library", "own"))
"""(who serves, who opens and measures)."""

Figures = dict[str, float]
Kind = tuple[str, str]

_ALONE = "py-libp2p alone at both ends, in turn; 100-byte messages, two processes on loopback"
_MIXED = "py-libp2p alone at both ends, in turn; the worse of serving it and asking it"
OPEN = Goal("ground_open_rpc", "times", ">=", 3, f"{_ALONE}: open a stream by asking first, send, receive")
FAST = Goal("ground_open_rpc_0rtt", "times", ">=", 8, f"{_ALONE}: the same without asking first (0-RTT)")
ECHO = Goal("ground_echo", "times", ">=", 2.5, f"{_ALONE}: there and back on an open stream")
MANY = Goal("ground_cpu_200_streams", "ratio", "<=", 0.1, f"{_ALONE}: CPU a message of both ends, 200 streams at once")
TOKENS = Goal("ground_token_frames", "times", ">=", 15, f"{_ALONE}: frames a second over 32 streams")
BULK = Goal("ground_bulk", "times", ">=", 5, f"{_ALONE}: bytes a second on one stream")
MIXED_OPEN = Goal("ground_mixed_open_rpc", "times", ">=", 1.3, f"{_MIXED}: open, send, receive")
MIXED_TOKENS = Goal("ground_mixed_token_frames", "times", ">=", 1.3, f"{_MIXED}: frames a second over 32 streams")
MIXED_BULK = Goal("ground_mixed_bulk", "times", ">=", 1.3, f"{_MIXED}: bytes a second on one stream")
GOALS = (OPEN, FAST, ECHO, MANY, TOKENS, BULK, MIXED_OPEN, MIXED_TOKENS, MIXED_BULK)


async def measure(folder: Path) -> list[Row]:
    del folder
    taken: dict[Kind, list[Figures]] = {kind: [] for kind in (OWN, LIBRARY, *MIXED)}
    for _ in range(ROUNDS):
        for kind, rounds in taken.items():
            rounds.append(await _round(*kind))
    middle = {kind: {name: median([each[name] for each in all_]) for name in all_[0]} for kind, all_ in taken.items()}
    for (server, opener), figures in middle.items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"ground: {server} serves {opener}: {shown}", file=sys.stderr)
    return _rows(middle)


def _rows(middle: dict[Kind, Figures]) -> list[Row]:
    own, library = middle[OWN], middle[LIBRARY]

    def faster(name: str, kind: Kind) -> float:
        """How much less it takes."""
        return library[name] / middle[kind][name]

    def more(name: str, kind: Kind) -> float:
        return middle[kind][name] / library[name]

    def worse(of: Callable[[str, Kind], float], name: str) -> float:
        return min((of(name, kind) for kind in MIXED), default=math.nan)

    return [
        OPEN.row(faster("open_ms", OWN), ROUNDS),
        FAST.row(library["open_ms"] / own["open_fast_ms"], ROUNDS),
        ECHO.row(faster("echo_ms", OWN), ROUNDS),
        MANY.row(own["many_cpu_us"] / library["many_cpu_us"], ROUNDS),
        TOKENS.row(more("token_frames_per_second", OWN), ROUNDS),
        BULK.row(more("bulk_mb_per_second", OWN), ROUNDS),
        MIXED_OPEN.row(worse(faster, "open_ms"), ROUNDS),
        MIXED_TOKENS.row(worse(more, "token_frames_per_second"), ROUNDS),
        MIXED_BULK.row(worse(more, "bulk_mb_per_second"), ROUNDS),
    ]


async def _round(server: str, opener: str) -> Figures:
    command = [sys.executable, "-m", "scripts.bench.ground_ends"]
    process = await trio.lowlevel.open_process([*command, "serve", server], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        address = b""
        with trio.fail_after(START_SECONDS):
            while not address.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                if not piece:
                    raise RuntimeError(f"the serving end ({server}) has ended; see above")
                address += piece
        with trio.fail_after(MEASURE_SECONDS):
            arguments = ["measure", opener, address.decode().strip(), str(process.pid)]
            done = await trio.run_process([*command, *arguments], capture_stdout=True)
        figures: Figures = json.loads(done.stdout)
        return figures
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
