"""Questions between real nodes: who may ask, who is asked, what is left in the hand, and what a loss looks like."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from octonode.client import Client
from octonode.testing.daemon import Daemon
from tests.process.fleet import Asking, Fleet, fails, octonode, works

pytestmark = pytest.mark.process

SLOW = {"OCTONODE_ENGINES_SCRIPTED_TOKENS_PER_SECOND": "20", "OCTONODE_ENGINES_SCRIPTED_ANSWER_TOKENS": "400"}
"""Answers of 20 seconds: what happens in the middle of one does so on a busy machine too."""
RECIPE = Path(__file__).resolve().parents[2] / "protocols" / "receipt.md"


@pytest.fixture(scope="module")
def b(fleet: Fleet, place: Path, scripted: Path) -> Daemon:
    """Serves `words` slowly, to those who hold its join line: the default."""
    node = fleet.start(place / "b", extra=SLOW)
    works(node.home, "models", "add", str(scripted), "--name", "words", "--publish")
    works(node.home, "models", "serve", "words")
    return node


@pytest.fixture(scope="module")
def model(b: Daemon) -> str:
    return f"{b.peer_id}/words"


@pytest.fixture(scope="module")
def c(fleet: Fleet, place: Path, b: Daemon) -> Daemon:
    """Has joined b."""
    node = fleet.start(place / "c")
    works(node.home, "join", b.ready.join)
    fleet.met(node, b)
    return node


def open_tasks(node: Daemon) -> int:
    with Client.from_home(node.home) as client:
        tasks = client.node().tasks
    return tasks.running + tasks.queued


def test_only_who_has_joined_may_ask(fleet: Fleet, tmp_path: Path, b: Daemon, model: str) -> None:
    stranger = fleet.start(tmp_path / "stranger", "--bootstrap", b.address)  # knows the address and has no line
    fleet.met(stranger, b)
    message = fails(stranger.home, "run", model, "hello", code="UNAUTHORIZED", exit_code=3)
    assert "octonode join LINE" in message
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    response = httpx.post(f"{stranger.api}/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHORIZED")
    assert works(stranger.home, "join", b.ready.join)["peer_id"] == b.peer_id
    assert works(stranger.home, "run", model, "hello", "--max-tokens", "9")["octonode"]["provider"] == b.peer_id
    fleet.stop(stranger)
    fleet.again(stranger)  # now and at every start
    fleet.met(stranger, b)
    assert works(stranger.home, "run", model, "hello", "--max-tokens", "9")["octonode"]["provider"] == b.peer_id
    fleet.stop(stranger)


def test_a_join_line_as_bootstrap_is_enough(fleet: Fleet, tmp_path: Path, b: Daemon, model: str) -> None:
    node = fleet.start(tmp_path / "node", "--bootstrap", b.ready.join)
    fleet.met(node, b)
    assert works(node.home, "run", model, "hello", "--max-tokens", "9")["octonode"]["provider"] == b.peer_id
    fleet.stop(node)


def test_run_streams_text_and_nothing_else(c: Daemon, model: str) -> None:
    plain = octonode(c.home, "run", model, "hello", "--temperature", "0", "--max-tokens", "9")
    told = works(c.home, "run", model, "hello", "--temperature", "0", "--max-tokens", "9")
    assert (plain.code, plain.err) == (0, "")
    assert plain.out == told["answer"] + "\n"
    assert told["octonode"]["verified"] is True
    assert octonode(c.home, "run", model, "--temperature", "0", "--max-tokens", "9", given="hello").out == plain.out
    assert (told["tokens_out"], told["finish_reason"]) == (9, "length")


def test_run_asks_the_peer_that_is_named(c: Daemon, b: Daemon, model: str) -> None:
    told = works(c.home, "run", model, "hello", "--peer", b.peer_id, "--max-tokens", "9")
    assert told["octonode"]["provider"] == b.peer_id
    done = octonode(c.home, "run", model, "hello", "--peer", c.peer_id, "--json")
    assert done.code == 4, done
    assert works(c.home, "models", "ls")["models"][0]["state"] == "network"  # and loads nothing for it


def test_explain_says_who_would_answer_and_asks_nobody(c: Daemon, b: Daemon, model: str) -> None:
    before = works(b.home, "status")["tasks"]["completed"]
    (candidate,) = works(c.home, "run", model, "--explain")["candidates"]
    assert (candidate["peer"], candidate["accepted"], candidate["rank"]) == (b.peer_id, True, 0)
    text = octonode(c.home, "run", model, "--explain").out
    assert text.split()[:3] == ["RANK", "PEER", "WHY"]
    assert b.peer_id in text
    assert works(b.home, "status")["tasks"]["completed"] == before


def test_the_receipt_of_a_task_is_checked_by_the_recipe_of_its_page(
    c: Daemon, b: Daemon, model: str, tmp_path: Path
) -> None:
    """The saved bytes and the Python of protocols/receipt.md, run as the page says, are enough; and both can fail."""
    told = works(c.home, "task", "send", model, "what is signed?", "--out", str(tmp_path / "out"), "--max-tokens", "9")
    assert told["octonode"]["verified"] is True
    assert told["receipt"]["provider"] == b.peer_id
    assert told["receipt"]["asker"] == c.peer_id
    (recipe,) = re.findall(r"```python\n(.*?)```", RECIPE.read_text(encoding="utf-8"), re.S)
    script, request, receipt = tmp_path / "check.py", tmp_path / "out" / "request.bin", tmp_path / "out" / "receipt.bin"
    script.write_text(recipe)

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, script, request, receipt], capture_output=True, text=True, timeout=60)

    good = check()
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith(f"verified: {b.peer_id} gave {told['tokens_out']} tokens")
    for file in (request, receipt):
        true = file.read_bytes()
        file.write_bytes(true[:-40] + bytes([true[-40] ^ 1]) + true[-39:])
        assert check().returncode != 0, file
        file.write_bytes(true)
    text = octonode(c.home, "task", "send", model, "again", "--out", str(tmp_path / "again"), "--max-tokens", "9").out
    assert "receipt   verified, saved in" in text


def test_the_client_that_goes_away_cancels_at_the_provider(fleet: Fleet, c: Daemon, b: Daemon, model: str) -> None:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "a long one"}], "stream": True}
    with httpx.stream("POST", f"{c.api}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if '"content"' in line)
        assert open_tasks(b) == 1
    fleet.until(lambda: open_tasks(b) == 0)
    with Client.from_home(b.home) as client:  # kept a moment after it is no longer open
        fleet.until(lambda: [each.state for each in client.tasks(limit=1)] == ["canceled"])
    assert works(c.home, "run", model, "hello", "--max-tokens", "9")["octonode"]["provider"] == b.peer_id


def test_a_worker_that_is_killed_mid_answer(fleet: Fleet, c: Daemon, b: Daemon, model: str) -> None:
    (pid,) = [each["pid"] for each in b.events if each.get("event") == "worker" and each["state"] == "ready"][-1:]
    asking = Asking(c, model, "before the crash")
    asking.begun()
    b.events.clear()
    os.kill(pid, signal.SIGKILL)
    error = asking.failed()
    assert error.code in ("PROVIDER_LOST", "ENGINE_CRASHED")
    assert b.peer_id in error.message
    assert "worker" in error.message or "engine" in error.message
    assert b.running
    # nobody else has it: who asks in the meantime waits until it is loaded again
    after = works(c.home, "run", model, "after the crash", "--max-tokens", "9")
    assert after["octonode"]["provider"] == b.peer_id
    fleet.event(b, "worker", state="ready")


def test_a_provider_that_is_killed(fleet: Fleet, tmp_path: Path, scripted: Path, c: Daemon, b: Daemon) -> None:
    """Mid-stream the client hears of it; before the first token it never knows: the next candidate answers."""
    flags = ("--bootstrap", b.address, "--public", "--trust-all", "--model", f"{b.peer_id}/words")
    d = fleet.start(tmp_path / "d", *flags, extra=SLOW)
    root = fleet.event(d, "model", state="serving")["root"]
    fleet.met(c, b, d)
    model = f"cid:{root}"
    with Client.from_home(c.home) as client:
        fleet.until(lambda: {b.peer_id, d.peer_id} <= set(client.model(model).servers))
    asking = Asking(c, model, "mid-stream", peer=d.peer_id)
    asking.begun()
    fleet.kill(d)
    error = asking.failed()
    assert error.code == "PROVIDER_LOST"
    assert (error.row.exit_code, error.row.http_status) == (5, 502)
    assert d.peer_id in error.message
    # d is still announced, and each question that goes to it first is answered by b without a word of that
    with Client.from_home(c.home) as client:
        answers = [Asking(c, model, f"question {number}", max_tokens=8).whole() for number in range(3)]
        assert client.node().state == "active"
    assert {answer.facts.provider for answer in answers if answer.facts} == {b.peer_id}


def test_a_provider_that_falls_silent_before_its_first_token(
    fleet: Fleet, tmp_path: Path, scripted: Path, c: Daemon, b: Daemon
) -> None:
    """SIGSTOP: its connection stands and nothing comes. Silence moves the question on."""
    flags = ("--bootstrap", b.address, "--public", "--trust-all", "--model", f"{b.peer_id}/words")
    d = fleet.start(tmp_path / "d", *flags, extra=SLOW)
    root = fleet.event(d, "model", state="serving")["root"]
    fleet.met(c, b, d)
    model = f"cid:{root}"
    with Client.from_home(c.home) as client:
        fleet.until(lambda: {b.peer_id, d.peer_id} <= set(client.model(model).servers))
        ranked = [each.peer for each in client.explain(model)]
    first, second = (b, d) if ranked.index(b.peer_id) < ranked.index(d.peer_id) else (d, b)
    first.send_signal(signal.SIGSTOP)
    try:
        answer = Asking(c, model, "silence", max_tokens=8).whole()
    finally:
        first.send_signal(signal.SIGCONT)
    assert answer.facts is not None
    assert answer.facts.provider == second.peer_id
    assert answer.facts.attempts == 2
    assert fleet.stop(d) == 0


def test_run_without_a_daemon(tmp_path: Path, scripted: Path) -> None:
    """A node is there for the one question, and gone after it; what it loaded is found again by the next one."""
    home = tmp_path / "home"
    first = works(home, "run", str(scripted), "hello", "--temperature", "0")
    assert first["octonode"]["local"] is True
    assert not (home / "daemon.json").exists()
    fails(home, "status", code="NOT_RUNNING", exit_code=5)
    name = octonode(home, "id").out.strip() + "/words"
    assert json.loads((home / "serving.json").read_text()) == {}  # the next start loads nothing that nobody asked for
    again = octonode(home, "run", name, "hello", "--temperature", "0")
    assert again.out == first["answer"] + "\n"
    bad = fails(home, "run", "nobody/nothing", "hello", code="NOT_FOUND", exit_code=4)
    assert "'nobody'" in bad
    config = home / "config.toml"
    config.write_text("[tasks]\nqueue_mx = 3\n")
    message = fails(home, "run", name, "hello", code="CONFIG", exit_code=2)  # why no node could be started
    assert "did you mean queue_max?" in message
