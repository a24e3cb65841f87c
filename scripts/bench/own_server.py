"""The engine's own HTTP server, without any of our processes around it: what an adapter is measured against."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from octonode.engines.contract import LoadRequest
from scripts.bench.daemon import free_port

START_SECONDS = 120.0
_MAIN = """
import json, signal, sys
from pathlib import Path
import xllamacpp
from octonode.engines.adapters.llama_parameters import server_parameters
from octonode.engines.contract import LoadRequest
from scripts.bench.daemon import free_port
fields, port = json.loads(sys.argv[1]), int(sys.argv[2])
request = LoadRequest(**{**fields, "model_path": Path(fields["model_path"])})
parameters = server_parameters(xllamacpp, request, "unused.sock", int(request.options["prefill_chunk_tokens"]))
parameters.hostnames, parameters.port = ["127.0.0.1"], port
server = xllamacpp.Server(parameters)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
print("ready", flush=True)
signal.pause()
"""


@asynccontextmanager
async def own_server(folder: Path, request: LoadRequest) -> AsyncIterator[str]:
    """Base URL of an xllamacpp server with the parameters that our worker would have; it ends with the block.

    The size of its chunks must be in the request: what a worker measures could differ between the two.
    """
    port = free_port()
    plain = {**dataclasses.asdict(request), "model_path": str(request.model_path)}
    command = [sys.executable, "-c", _MAIN, json.dumps(plain), str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    async with serving(command, port, folder, environment, START_SECONDS) as base:
        yield base


@asynccontextmanager
async def serving(
    command: Sequence[str], port: int, directory: Path, environment: Mapping[str, str], start_seconds: float
) -> AsyncIterator[str]:
    """Base URL of a server on this port of loopback, once it is healthy; it and all that it started end with the
    block. Raises RuntimeError with the end of what it wrote when it ends by itself before."""
    log = directory / "own-server.log"
    with log.open("wb") as written:
        process = await trio.lowlevel.open_process(
            [*command], stdout=written, stderr=written, cwd=directory, env={**environment}, process_group=0
        )
    base = f"http://127.0.0.1:{port}"
    try:
        with trio.fail_after(start_seconds):
            await _until_healthy(base, process, log)
        yield base
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


async def _until_healthy(base: str, process: trio.Process, log: Path) -> None:
    async with httpx.AsyncClient() as client:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"the engine's own server ended: {log.read_text(errors='replace')[-500:]}")
            try:
                if (await client.get(f"{base}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await trio.sleep(0.1)
