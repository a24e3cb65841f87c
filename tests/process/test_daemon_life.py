"""A daemon's life: the ready line, its home, the drain, and what stands after kill -9."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import pytest

from octonode.testing.daemon import Daemon
from tests.process.fleet import Asking, Fleet, environment, fails, octonode, works

pytestmark = pytest.mark.process

SLOW = {"OCTONODE_ENGINES_SCRIPTED_TOKENS_PER_SECOND": "25", "OCTONODE_ENGINES_SCRIPTED_ANSWER_TOKENS": "500"}
"""Answers of 20 seconds: what happens in the middle of one does so on a busy machine too."""
READY = ["peer_id", "addresses", "api", "gateway", "join", "pid"]


def serving(fleet: Fleet, home: Path, model: Path, *flags: str) -> tuple[Daemon, str]:
    """A node that serves `model` slowly to anybody, and the reference of the model."""
    node = fleet.start(home, "--public", *flags, extra=SLOW)
    works(home, "models", "add", str(model), "--name", "words", "--publish")
    reference = works(home, "models", "serve", "words")["model"]["reference"]
    assert reference == f"{node.peer_id}/words"
    return node, reference


def test_the_first_line_says_where_the_node_is_and_events_follow(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    node = fleet.start(tmp_path / "home", "--model", f"file:{scripted}")
    served = fleet.event(node, "model", state="serving")
    first, *later = node.events
    assert list(first) == READY
    assert first["peer_id"] == works(node.home, "id")["peer_id"]
    assert first["addresses"]
    assert all(address.endswith(f"/p2p/{first['peer_id']}") for address in first["addresses"])
    assert first["join"].startswith("octonode:")
    assert httpx.get(f"{first['api']}/healthz").status_code == 200
    assert httpx.get(f"http://{first['gateway']}/ipfs/{served['root']}?format=raw").status_code == 200
    assert later
    assert all(event["event"] and event["at_ms"] > 0 for event in later)
    told = json.loads((node.home / "daemon.json").read_text())
    assert (told["api"], told["pid"]) == (first["api"], first["pid"])
    assert fleet.stop(node) == 0
    assert [event["event"] for event in list(node.events)[-2:]] == ["leaving", "stopped"]


def test_all_state_is_in_its_home(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    """The user's own folder and the folder of temporary files stay as they were."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    node = fleet.start(tmp_path / "home", extra={"TMPDIR": str(temporary)})
    works(node.home, "models", "add", str(scripted), "--name", "words", extra={"TMPDIR": str(temporary)})
    works(node.home, "models", "serve", "words")
    assert works(node.home, "run", "words", "hello")["answer"]
    assert fleet.stop(node) == 0
    user = Path(environment(node.home)["HOME"])
    assert list(user.rglob("*")) == []
    assert list(temporary.rglob("*")) == []
    assert {path.name for path in tmp_path.iterdir()} == {"home", "home-user", "temporary"}
    assert (node.home / "node.key").stat().st_mode & 0o077 == 0
    assert not (node.home / "daemon.json").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "stop"])
def test_a_drain_brings_the_open_answer_to_its_end(
    fleet: Fleet, tmp_path: Path, scripted: Path, how: signal.Signals | str
) -> None:
    b, reference = serving(fleet, tmp_path / "b", scripted)
    c = fleet.start(tmp_path / "c", "--bootstrap", b.address)
    fleet.met(c, b)
    asking = Asking(c, reference, max_tokens=48 if isinstance(how, str) else 150)
    asking.begun()
    if isinstance(how, str):
        assert works(b.home, "stop")["stopped"] == b.pid
    else:
        b.send_signal(how)
        fleet.until(lambda: httpx.get(f"{b.api}/readyz").status_code == 503)
        assert "stopping" in httpx.get(f"{b.api}/readyz").text
    assert fleet.do(b.wait) == 0
    answer = asking.whole()
    assert answer.tokens_out >= 32
    assert answer.facts is not None
    assert answer.facts.provider == b.peer_id
    message = fails(b.home, "status", code="NOT_RUNNING", exit_code=5)
    assert "octonode start" in message
    assert fleet.stop(c) == 0


def test_a_second_signal_quits_at_once(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    node, reference = serving(fleet, tmp_path / "home", scripted)
    asking = Asking(node, reference)
    asking.begun()
    node.send_signal(signal.SIGINT)
    fleet.event(node, "leaving")
    node.send_signal(signal.SIGINT)
    assert fleet.do(node.wait) == 130
    assert "quitting at once" in node.stderr_tail()
    assert "Traceback" not in node.stderr_tail()
    assert asking.failed().code in ("UNREACHABLE", "LEAVING", "CANCELED")
    fleet.again(node)  # nothing stale stands in its way, and it serves again what it was told to serve
    fleet.event(node, "model", state="serving", reference=reference)


def test_after_kill_9_it_starts_again_and_serves_again(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    node, reference = serving(fleet, tmp_path / "home", scripted)
    before = works(node.home, "run", reference, "hello", "--temperature", "0", "--max-tokens", "30")["answer"]
    workers = [each["pid"] for each in node.events if each.get("event") == "worker" and each["state"] == "ready"]
    fleet.kill(node)
    assert (node.home / "daemon.json").exists()
    message = fails(node.home, "status", code="NOT_RUNNING", exit_code=5)
    assert "octonode start" in message
    doctor = octonode(node.home, "doctor")
    assert "no daemon runs on this home" in doctor.out
    fleet.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))  # a worker never outlives its node
    node.events.clear()
    fleet.again(node)
    fleet.event(node, "model", state="serving", reference=reference)
    assert works(node.home, "run", reference, "hello", "--temperature", "0", "--max-tokens", "30")["answer"] == before
    assert works(node.home, "status")["peer_id"] == node.peer_id


def test_what_was_stopped_is_not_served_after_a_restart(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    node, reference = serving(fleet, tmp_path / "home", scripted)
    works(node.home, "models", "serve", "words", "--stop")  # by another name than it was served under
    assert works(node.home, "status")["serving"] == []
    assert fleet.stop(node) == 0
    fleet.again(node)
    assert works(node.home, "models", "show", reference)["state"] == "held"
    assert httpx.get(f"{node.api}/readyz").status_code == 200


def test_a_second_daemon_on_the_same_home_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    node = fleet.start(tmp_path / "home")
    message = fails(node.home, "start", "--api", "127.0.0.1:0", code="ALREADY_RUNNING", exit_code=1)
    assert f"(pid {node.pid})" in message
    assert "octonode stop" in message
    assert "OCTONODE_HOME" in message
    assert works(node.home, "status")["pid"] == node.pid  # the first one did not notice


def test_a_reader_that_goes_away_does_not_end_the_daemon(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    import subprocess

    from tests.process.fleet import COMMAND

    home = tmp_path / "home"
    ports = [part for flag in ("--api", "--p2p", "--gateway") for part in (flag, "127.0.0.1:0")]
    process = subprocess.Popen(
        [*COMMAND, "start", "--json", *ports], env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["pid"] == process.pid
    process.stdout.close()
    works(home, "models", "add", str(scripted), "--name", "words")
    works(home, "models", "serve", "words")  # makes events that nobody reads
    assert works(home, "run", "words", "hello")["answer"]
    works(home, "stop")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
