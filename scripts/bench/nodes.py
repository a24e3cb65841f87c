"""Real daemons for a measurement, and what the kernel says of their processes."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import trio

from octonode.client import AsyncClient
from octonode.errors import OctonodeError
from octonode.models.formats import SCRIPTED_MAGIC
from octonode.testing.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
START_SECONDS = 120.0
MEBIBYTE = 1024 * 1024


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder under build/, which is on a disk and not in memory; gone afterwards."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=build))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def large_model(path: Path, size_bytes: int) -> Path:
    """A file of the scripted format of any size, the same bytes each time."""
    dice = random.Random(0)
    with path.open("wb") as file:
        file.write(SCRIPTED_MAGIC)
        while (left := size_bytes - file.tell()) > 0:
            file.write(dice.randbytes(min(MEBIBYTE, left)))
    return path


def settings(**values: object) -> dict[str, str]:
    """OCTONODE_* variables; one engine thread always."""
    named = {"engines_threads": 1, **values}
    return {f"OCTONODE_{name.upper()}": str(value) for name, value in named.items()}


@asynccontextmanager
async def pair(
    folder: Path, model: Path, *, start_seconds: float = START_SECONDS, **values: object
) -> AsyncIterator[tuple[Daemon, Daemon, str]]:
    """(provider, asker, reference): B serves `model`, C has neither model nor engine and came by B's join line.

    By the join line C is a known peer of B: it may send 100 requests a second, a stranger 10.
    """
    environment = settings(**values)
    flags = ("--trust-all", "--model", f"file:{model}")
    with trio.fail_after(start_seconds) as patience:
        async with Daemon(folder / "B", *flags, environment=environment) as provider:
            served = await provider.wait_for("model", state="serving")
            asker = Daemon(folder / "C", "--trust-all", "--bootstrap", provider.ready.join, environment=environment)
            async with asker:
                reference = f"cid:{served['root']}"
                await candidate(asker, reference, provider.peer_id)
                patience.deadline = float("inf")
                yield provider, asker, reference


async def candidate(asker: Daemon, reference: str, peer_id: str) -> None:
    """Until `asker` would ask `peer_id` for that model."""
    async with AsyncClient.from_home(asker.home) as client:
        while True:
            try:
                found = await client.explain(reference)
            except OctonodeError as error:  # nobody is known yet
                if error.row.http_status not in (404, 503):
                    raise
                found = ()
            if any(each.peer == peer_id and each.accepted for each in found):
                return
            await trio.sleep(0.1)


def resident_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def reset_peak(pid: int) -> None:
    """Begin to count the peak of resident memory anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} has no peak of resident memory")
