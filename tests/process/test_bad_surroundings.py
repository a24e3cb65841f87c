"""When the machine or the network is not as it should be: full disk, taken port, wrong clock, dead bootstrap."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from octonode.client import Client
from octonode.testing.daemon import Daemon
from tests.process.fleet import Fleet, fails, octonode, works

pytestmark = pytest.mark.process

SKEWED = (sys.executable, str(Path(__file__).with_name("skewed_daemon.py")))
DEAD = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"


@contextmanager
def file_size_limit(pid: int, size_bytes: int) -> Iterator[None]:
    """The process can write no file beyond this, and sees then what it sees on a full disk: EFBIG for ENOSPC."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_a_full_disk(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    """While fetching and while importing: told as such, nothing is left that is not whole, and later it goes on."""
    a = fleet.start(tmp_path / "a", "--public")
    root = works(a.home, "models", "add", str(scripted), "--name", "words", "--publish")["model"]["root"]
    works(a.home, "models", "serve", "words")
    b = fleet.start(tmp_path / "b", "--bootstrap", a.address, "--trust", a.peer_id)
    fleet.met(b, a)
    model = f"{a.peer_id}/words"
    with file_size_limit(b.pid, 512 * 1024):
        message = fails(b.home, "models", "fetch", model, code="DISK_FULL", exit_code=1)
        assert "meets a limit on file sizes" in message
        assert "Free some space" in message
        assert "octonode models gc" in message
        assert "the same command again" in message
        shown = works(b.home, "models", "show", model)
        assert (shown["complete"], shown["have_bytes"]) == (False, 0)
        # The node is up, and what needs no disk works.
        assert httpx.get(f"{b.api}/readyz").status_code == 200
        assert works(b.home, "run", model, "hello")["octonode"]["provider"] == a.peer_id
    assert works(b.home, "models", "fetch", model)["model"]["complete"] is True
    assert works(b.home, "models", "verify", model)["note"] == ""
    assert works(b.home, "models", "show", f"cid:{root}")["have_bytes"] == scripted.stat().st_size


def test_a_full_disk_at_an_import(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    node = fleet.start(tmp_path / "home")
    elsewhere = Path("/dev/shm") / f"octonode-test-{os.getpid()}.model"  # another file system: it must be copied
    elsewhere.write_bytes(scripted.read_bytes())
    try:
        with file_size_limit(node.pid, 512 * 1024):
            message = fails(node.home, "models", "add", str(elsewhere), code="DISK_FULL", exit_code=1)
            assert "meets a limit on file sizes" in message
            assert works(node.home, "models", "ls")["models"] == []
            assert [path for path in (node.home / "models").rglob("*") if path.is_file()] == []
        assert works(node.home, "models", "add", str(elsewhere))["model"]["complete"] is True
    finally:
        elsewhere.unlink()


@pytest.mark.parametrize("flag", ["--api", "--p2p", "--gateway"])
def test_a_port_that_is_taken(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        ports = dict.fromkeys(("--api", "--p2p", "--gateway"), "127.0.0.1:0") | {flag: place}
        arguments = [part for pair in ports.items() for part in pair]
        message = fails(tmp_path / "home", "start", *arguments, code="CONFIG", exit_code=2)
        assert str(taken.getsockname()[1]) in message
        assert flag in message
        section = {"--api": "api", "--p2p": "network", "--gateway": "gateway"}[flag]
        seen = octonode(tmp_path / "home", "doctor", extra={f"OCTONODE_{section.upper()}_LISTEN": place})
        assert seen.code == 1
        assert f"FAILED   port {section}: {place}" in seen.out
        assert f"{flag} 127.0.0.1:0" in seen.out
    assert not (tmp_path / "home" / "daemon.json").exists()
    assert "no node runs" in fails(tmp_path / "home", "status", code="NOT_RUNNING", exit_code=5)


def test_an_address_that_is_not_ours(tmp_path: Path) -> None:
    message = fails(tmp_path / "home", "start", "--api", "203.0.113.5:0", code="CONFIG", exit_code=2)
    assert "203.0.113.5" in message


def test_an_engine_that_is_none(tmp_path: Path) -> None:
    message = fails(tmp_path / "home", "start", "--engine", "lama", code="CONFIG", exit_code=2)
    assert "did you mean llama?" in message


def test_a_dead_bootstrap_peer(fleet: Fleet, tmp_path: Path) -> None:
    node = fleet.start(tmp_path / "home", "--bootstrap", DEAD)
    assert httpx.get(f"{node.api}/healthz").status_code == 200

    def told() -> str:
        seen = octonode(node.home, "doctor")
        assert seen.code == 1
        return seen.out if "127.0.0.1/tcp/1" in seen.out else ""

    said = fleet.until(told)
    assert "FAILED   peers: 0 connected" in said
    assert works(node.home, "peers")["peers"] == []
    assert node.running
    # Somebody who lives brings it into the network all the same.
    other = fleet.start(tmp_path / "other")
    works(node.home, "join", other.ready.join)
    fleet.met(node, other)


def test_a_clock_that_is_an_hour_off(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    a = fleet.start(tmp_path / "a", "--public")
    works(a.home, "models", "add", str(scripted), "--name", "words", "--publish")
    model = works(a.home, "models", "serve", "words")["model"]["reference"]
    b = fleet.start(tmp_path / "b", "--bootstrap", a.address)
    fleet.met(b, a)
    for seconds in ("3600", "-3600"):
        extra = {"CLOCK_OFF_SECONDS": seconds}
        off = fleet.start(tmp_path / f"off{seconds}", "--bootstrap", a.address, command=SKEWED, extra=extra)
        message = fails(off.home, "run", model, "hello", "--peer", a.peer_id, code="CLOCK_SKEW", exit_code=3)
        assert "check the clocks" in message
        assert "3600" in message
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "octonode": {"peer": a.peer_id}}
        response = httpx.post(f"{off.api}/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "CLOCK_SKEW")
        fleet.until(partial(clock_is_wrong, off))
        assert "time synchronisation" in octonode(off.home, "doctor").out
        assert off.running
        # Nobody else is harmed, nor told that his own clock is wrong.
        assert clock_of(a) == "ok"
        assert works(b.home, "run", model, "hello")["octonode"]["provider"] == a.peer_id


def clock_of(node: Daemon) -> str:
    """What `octonode doctor` finds of the clock."""
    with Client.from_home(node.home) as client:
        return next(each.status for each in client.doctor() if each.check == "clock")


def clock_is_wrong(node: Daemon) -> bool:
    return clock_of(node) == "failed"


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("a file, not a folder")
    message = fails(home, "start", code="CONFIG", exit_code=2)
    assert str(home) in message
    assert "set OCTONODE_HOME to a folder" in message


def test_a_damaged_key(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "node.key").write_bytes(b"too short")
    done = octonode(home, "start", "--json")
    assert done.code in (1, 2), done
    assert "node.key" in done.error["message"]
    assert (home / "node.key").read_bytes() == b"too short"  # an identity is never replaced in silence
