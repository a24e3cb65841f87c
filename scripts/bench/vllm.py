"""Tokens of a real model that vLLM serves, through a peer against vLLM's own server with the same arguments, in turn.

Needs `.venv-vllm`, which `make test-vllm` makes; without it the rows say so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from octonode.config_engines import VllmConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.servers.vllm import MODEL_NAME, SOCKET_NAME, VllmServer
from scripts.bench.daemon import free_port
from scripts.bench.nodes import ROOT, pair
from scripts.bench.own_server import serving
from scripts.bench.rows import Goal, Row
from scripts.bench.tokens import STREAMS, added_ms, ask_api, gain, ratio, rounds

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
MODEL = ROOT / "build" / "models" / "smollm2-safetensors"
ROUNDS = 4
CONTEXT_TOKENS = 512
START_SECONDS = 300.0
_AGAINST = "vLLM's own HTTP server with the same arguments, in turn; SmolLM2-135M BF16 on the CPU"

GOALS_BY_STREAMS = {
    n: Goal(f"vllm_peer_vs_own_server_{n}", "ratio", ">=", 0.97, f"{_AGAINST}, {n} streams") for n in STREAMS
}
FIRST = {
    n: Goal(f"vllm_first_token_added_p50_{n}", "ms", "<=", 10, f"{_AGAINST}, {n} streams, p50 of each") for n in STREAMS
}
GAIN = Goal(
    "vllm_streams_gain_8", "ratio", ">=", 0.95, "gain from 1 to 8 streams through a peer / of vLLM's own server"
)
GOALS = (*GOALS_BY_STREAMS.values(), *FIRST.values(), GAIN)
SETTINGS = VllmConfig(dtype="bfloat16", enforce_eager=True)


async def measure(folder: Path) -> list[Row]:
    if not PYTHON.exists() or not MODEL.is_dir():
        raise RuntimeError("vLLM is not installed here; `make test-vllm` makes .venv-vllm and its model")
    values = {
        "engines_pythons": f"vllm={PYTHON}", "engines_default": "vllm", "engines_parallel": max(STREAMS),
        "engines_context_tokens": CONTEXT_TOKENS, "engines_measure_seconds": 0,
        "engines_load_timeout_seconds": START_SECONDS, "vllm_dtype": SETTINGS.dtype, "vllm_enforce_eager": "true",
    }  # fmt: skip
    rows: list[Row] = []
    async with pair(folder, MODEL, start_seconds=START_SECONDS, **values) as (_, asker, reference), _own(folder) as own:
        ways = {"peer": partial(ask_api, asker.api, reference), "own": partial(ask_api, own, MODEL_NAME)}
        speeds: dict[int, dict[str, list[float]]] = {}
        for streams in STREAMS:
            speeds[streams], firsts = await rounds(ways, streams, ROUNDS)
            rows.append(GOALS_BY_STREAMS[streams].row(ratio(speeds[streams], "own"), ROUNDS))
            rows.append(FIRST[streams].row(added_ms(firsts, "own"), len(firsts["peer"])))
    rows.append(GAIN.row(gain(speeds[8], speeds[1]), ROUNDS))
    return rows


@asynccontextmanager
async def _own(folder: Path) -> AsyncIterator[str]:
    """Base URL of a vLLM server with the arguments that our driver gives it, on a port in place of its socket."""
    directory = folder / "own-vllm"
    directory.mkdir()
    request = LoadRequest("vllm", MODEL, "bench", CONTEXT_TOKENS, max(STREAMS), 1)
    launch = await VllmServer(SETTINGS, str(PYTHON)).launch(request, directory)
    port = free_port()
    command, place = [*launch.command], [*launch.command].index("--uds")
    assert command[place + 1] == SOCKET_NAME
    command[place : place + 2] = ["--host", "127.0.0.1", "--port", str(port)]
    async with serving(command, port, directory, launch.environment, START_SECONDS) as base:
        yield base
