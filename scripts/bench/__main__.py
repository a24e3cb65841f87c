"""`make bench`: figures against their goals, side by side in one run, into build/bench.json.

    python -m scripts.bench                     all rows, about thirty minutes on two cores
    python -m scripts.bench --only NAME         one row, or all rows that begin with NAME
    python -m scripts.bench --list              the names

A figure that falls short is shown first and is no error; a row that cannot be measured is one (exit status 1). One
engine thread everywhere. Other work on the machine makes every figure worse: leave it alone meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from scripts.bench import (
    announcing,
    bitswap,
    crowd,
    daemon,
    engines,
    first_token,
    gossip,
    ground,
    load,
    many_sources,
    store,
    tokens,
    transfer,
    vllm,
)
from scripts.bench.nodes import ROOT, scratch
from scripts.bench.rows import Goal, Row, table, write


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are measured together."""

    goals: tuple[Goal, ...]
    measure: Callable[[Path], Awaitable[list[Row]]]


GROUPS = (
    Group(daemon.HELP_GOALS, daemon.measure_help),
    Group(transfer.CID_GOALS, transfer.measure_cid),
    Group(daemon.START_GOALS, daemon.measure_start),
    Group(ground.GOALS, ground.measure),
    Group(first_token.GOALS, first_token.measure),
    Group(tokens.GOALS, tokens.measure),
    Group(vllm.GOALS, vllm.measure),
    Group(engines.GENERATING_GOALS, engines.measure_generating),
    Group(engines.BATCHING_GOALS, engines.measure_batching),
    Group(engines.LINE_GOALS, engines.measure_line),
    Group(transfer.GOALS, transfer.measure),
    Group(bitswap.GOALS, bitswap.measure),
    Group(many_sources.GOALS, many_sources.measure),
    Group(store.OPEN_GOALS, store.measure_open),
    Group(store.SERVING_GOALS, store.measure_serving),
    Group(load.GOALS, load.measure),
    Group(crowd.BURST_GOALS, crowd.measure_burst),
    Group(crowd.CROWD_GOALS, crowd.measure_crowd),
    Group(gossip.GOALS, gossip.measure),
    Group(announcing.GOALS, announcing.measure),
    Group(daemon.CPU_GOALS, daemon.measure_cpu),
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description="Figures against their goals.")
    parser.add_argument("--only", default="", metavar="NAME", help="one row, or all rows that begin with NAME")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    options = parser.parse_args(arguments)
    names = [goal.name for group in GROUPS for goal in group.goals]
    if options.list:
        print("\n".join(names))
        return 0
    chosen = [name for name in names if name == options.only] or [
        name for name in names if name.startswith(options.only)
    ]
    if not chosen:
        print(f"there is no row {options.only}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    rows = [row for group in GROUPS for row in run(group, set(chosen))]
    write(rows, ROOT / "build" / "bench.json")
    print(table(rows))
    return 1 if any(row.value is None for row in rows) else 0


def run(group: Group, chosen: set[str]) -> list[Row]:
    """The chosen rows of a group, measured; where that fails, rows that say why."""
    wanted = [goal for goal in group.goals if goal.name in chosen]
    if not wanted:
        return []
    print(f"measuring {', '.join(goal.name for goal in wanted)} ...", file=sys.stderr, flush=True)
    try:
        with scratch() as folder:
            rows = trio.run(group.measure, folder)
    except Exception as error:
        traceback.print_exc()
        return [goal.missing(f"{type(error).__name__}: {str(error)[:200]}") for goal in wanted]
    return [row for row in rows if row.name in chosen]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
