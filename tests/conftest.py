"""Fixtures for every ring: a node's home, the real model, a clock that jumps, a guard against processes left behind.

Nothing here or in the tests may depend on how fast the machine is: CI compiles beside the tests.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio.testing
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CHILDREN_GRACE_SECONDS = 30.0

# A loaded machine is no fault of a property: neither how long an example takes nor how long it takes to make one.
settings.register_profile(
    "octonode",
    settings(),
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("octonode")

# Nor is it a fault of a server that is asked without a word about time: httpx would wait for 5 seconds.
for step in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, step, 60.0)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests do not reach them, but for two that are for the tests.

    OCTONODE_TEST_MODEL says where the real model is; `make test MUXER=stock` sets OCTONODE_NETWORK_MUXER for daemons.
    """
    for name in list(os.environ):
        if name.startswith("OCTONODE_") and name not in ("OCTONODE_TEST_MODEL", "OCTONODE_NETWORK_MUXER"):
            monkeypatch.delenv(name)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """As that of pytest-trio, but it does not jump while a thread is at work, however long the machine lets that wait.

    The other one runs on meanwhile, by hours while a row is written, and timeouts strike that nobody would have seen.
    """
    clock = trio.testing.MockClock(autojump_threshold=0)
    jump = clock._autojump

    def jump_without_threads() -> None:
        if trio.testing.active_thread_count():
            time.sleep(0.001)  # the loop looks again at once; the thread shall have the interpreter
        else:
            jump()

    clock._autojump = jump_without_threads  # type: ignore[method-assign]
    return clock


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty OCTONODE_HOME, 0700."""
    place = tmp_path / "home"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1 (98 MB, Apache-2.0). A missing model fails the test: it is part of `make test`."""
    path = Path(os.environ.get("OCTONODE_TEST_MODEL") or MODEL)
    if not path.is_file():
        pytest.fail(f"no model at {path}: run `make model`, or set OCTONODE_TEST_MODEL to a copy", pytrace=False)
    return path


@pytest.fixture(scope="session")
def built_model() -> Callable[[str], Path]:
    """The folder of a model of `scripts.get_models` by its name. A missing one fails the test, for it is part of it."""

    def find(name: str) -> Path:
        folder = MODEL.parent / name
        if not folder.is_dir():
            pytest.fail(f"no model at {folder}: run python -m scripts.get_models {name}", pytrace=False)
        return folder

    return find


@pytest.fixture(autouse=True)
def _no_children_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves child processes behind, and end them so that the next test is not disturbed.

    Children that a fixture of a wider scope started stay: those were there before, or are named by the fixture
    `lasting_children`.
    """
    before = children()
    yield
    deadline = time.monotonic() + CHILDREN_GRACE_SECONDS
    while left := children() - before - set(request.session.stash.get(LASTING, frozenset())):
        if time.monotonic() > deadline:
            commands = [f"{pid}: {command(pid)}" for pid in sorted(left)]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail("child processes left behind: " + "; ".join(commands), pytrace=False)
        time.sleep(0.02)


LASTING = pytest.StashKey[set[int]]()


@pytest.fixture(scope="session")
def lasting_children(request: pytest.FixtureRequest) -> set[int]:
    """Add pids here that a module's or session's fixture starts and ends itself."""
    return request.session.stash.setdefault(LASTING, set())


def children() -> set[int]:
    """Pids of our living direct children, over all threads; zombies do not count."""
    pids: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        try:
            pids.update(int(pid) for pid in file.read_text().split())
        except OSError:  # the thread has ended
            continue
    return {pid for pid in pids if alive(pid)}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
