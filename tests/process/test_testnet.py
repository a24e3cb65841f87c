"""`octonode testnet`: real nodes that serve each other, killed at random and started again, stopped by one command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.process.fleet import COMMAND, environment, fails, octonode, works

pytestmark = pytest.mark.process


@contextmanager
def network(home: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[dict[str, Any]]]]:
    """A running test network and the facts of its nodes."""
    process = subprocess.Popen(
        [*COMMAND, "testnet", *arguments, "--json"], env=environment(home), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event.get("event") == "testnet":
                yield process, event["nodes"]
                break
        else:
            raise AssertionError(f"the network ended with status {process.wait()}")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def test_a_network_serves_itself_and_is_stopped_by_one_command(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with network(home, "3") as (process, nodes):
        assert [node["name"] for node in nodes] == ["node0", "node1", "node2"]
        message = fails(home, "testnet", "2", code="ALREADY_RUNNING", exit_code=1)
        assert "octonode testnet --stop" in message
        asker = Path(nodes[0]["home"])  # the bootstrap serves nothing itself
        (model,) = works(asker, "models", "ls")["models"]
        told = works(asker, "run", model["reference"], "hello")
        assert told["octonode"]["provider"] in {node["peer_id"] for node in nodes[1:]}
        assert works(home, "testnet", "--stop")["stopped"] == process.pid
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert not any(alive(node["pid"]) for node in nodes)
    assert "no test network runs" in fails(home, "testnet", "--stop", code="NOT_RUNNING", exit_code=5)
    events = [json.loads(line) for line in (home / "testnet" / "events.ndjson").read_text().splitlines()]
    assert {event["node"] for event in events} == {"node0", "node1", "node2"}
    assert [event["seen_ms"] for event in events] == sorted(event["seen_ms"] for event in events)
    assert sum(event.get("event") == "stopped" for event in events) == 3


def test_nodes_are_killed_and_come_back(tmp_path: Path) -> None:
    """Every node but the first with --kill 1; the first period is 10 s."""
    with network(tmp_path / "home", "2", "--kill", "1", "--seed", "3") as (process, nodes):
        assert process.stdout is not None
        seen: list[str] = []
        for line in process.stdout:
            event = json.loads(line)
            if event["node"] == "node1":
                seen.append(event.get("state") or event.get("event") or "ready")
            if "restarted" in seen and "serving" in seen[seen.index("killed") :]:
                break
        assert seen.index("killed") < seen.index("restarted")
        assert works(Path(nodes[1]["home"]), "status")["peer_id"] == nodes[1]["peer_id"]


def test_a_launcher_that_is_killed_leaves_nodes_that_stop_ends(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with network(home, "2") as (process, nodes):
        process.kill()
        process.communicate(timeout=60)
        assert all(alive(node["pid"]) for node in nodes)
        works(home, "testnet", "--stop")
        assert not any(running(Path(node["home"])) for node in nodes)


def running(home: Path) -> bool:
    return octonode(home, "status").code == 0


def test_ctrl_c_stops_all(tmp_path: Path) -> None:
    with network(tmp_path / "home", "2") as (process, nodes):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert not any(alive(node["pid"]) for node in nodes)


@pytest.mark.parametrize(
    ("arguments", "says"), [(("0",), "greater than or equal to 1"), (("2", "--kill", "2"), "less than or equal to 1")]
)
def test_what_cannot_be(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = octonode(tmp_path / "home", "testnet", *arguments)
    assert (done.code, says in done.err) == (2, True)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    message = fails(tmp_path / "home", "testnet", "2", "--model", "none.gguf", code="NOT_FOUND", exit_code=4)
    assert "none.gguf" in message
