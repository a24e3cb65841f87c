"""The engine's own HTTP server, without any of our processes around it: what an adapter is measured against."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from octonode.engines.contract import LoadRequest

START_SECONDS = 120.0
_MAIN = """
import json, signal, sys
from pathlib import Path
import xllamacpp
from octonode.engines.adapters.llama_parameters import server_parameters
from octonode.engines.contract import LoadRequest
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
    port = await free_port()
    plain = {**dataclasses.asdict(request), "model_path": str(request.model_path)}
    command = [sys.executable, "-c", _MAIN, json.dumps(plain), str(port)]
    with (folder / "own-server.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            command,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        )
    try:
        with trio.fail_after(START_SECONDS):
            await _until_healthy(f"http://127.0.0.1:{port}", process, folder / "own-server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def free_port() -> int:
    """One that nobody listens on now."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    return port


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
