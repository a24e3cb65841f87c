"""Role `storage` among real daemons: it keeps what a listed peer asks for, and serves it when that one is gone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from octonode.client import Client
from octonode.testing.daemon import Daemon
from octonode.testing.testnet import write_scripted_model
from tests.process.fleet import Fleet, fails, octonode, works

pytestmark = pytest.mark.process

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def publisher(fleet: Fleet, place: Path) -> Daemon:
    return fleet.start(place / "publisher", "--public")


@pytest.fixture(scope="module")
def model(publisher: Daemon, scripted: Path) -> str:
    added = works(publisher.home, "models", "add", str(scripted), "--name", "words", "--publish")
    return str(added["model"]["reference"])


@pytest.fixture(scope="module")
def keeper(fleet: Fleet, place: Path, publisher: Daemon) -> Daemon:
    """With two shares that the model fits, and a second one does not."""
    settings = {
        "OCTONODE_STORAGE_ALLOWED_PEERS": publisher.peer_id,
        "OCTONODE_STORAGE_BYTES_PER_PEER_MAX": "5000000",
        "OCTONODE_STORAGE_DAYS_MAX": "60",
    }
    node = fleet.start(place / "keeper", "--role", "storage", "--bootstrap", publisher.address, extra=settings)
    fleet.met(node, publisher)
    return node


@pytest.fixture(scope="module")
def stranger(fleet: Fleet, place: Path, publisher: Daemon, keeper: Daemon) -> Daemon:
    node = fleet.start(place / "stranger", "--bootstrap", publisher.address, "--bootstrap", keeper.address)
    fleet.met(node, publisher, keeper)
    return node


def test_it_is_ready_without_engines_and_shows_what_it_is(keeper: Daemon, publisher: Daemon, fleet: Fleet) -> None:
    told = works(keeper.home, "status")
    assert (told["role"], told["engines"], told["degraded"]) == ("storage", [], [])
    assert told["storage"]["pins"] == 0
    assert told["storage"]["free_bytes"] > 0
    text = octonode(keeper.home, "status").out
    assert f"storage node  {keeper.peer_id}" in text.splitlines()[0]
    assert "storage 0 pins, " in text
    findings = {each["check"]: each for each in works(keeper.home, "doctor")["findings"]}
    assert findings["engines"]["status"] == "ok"
    assert findings["storage"]["status"] == "ok"
    assert not [each for each in findings.values() if each["status"] == "failed"]
    (seen,) = fleet.until(
        lambda: [each for each in works(publisher.home, "peers")["peers"] if each["storage_free_bytes"]]
    )
    assert (seen["peer_id"], seen["role"], seen["engines"]) == (keeper.peer_id, "storage", [])
    assert "storage" in octonode(publisher.home, "peers").out


def test_it_runs_no_model(keeper: Daemon, model: str, tmp_path: Path) -> None:
    message = fails(keeper.home, "models", "serve", model, "--trust", code="UNSUPPORTED", exit_code=3)
    assert "--role full" in message
    assert works(keeper.home, "models", "pins")["pins"] == []
    message = fails(tmp_path / "new", "start", "--role", "storage", "--model", model, code="CONFIG", exit_code=2)
    assert "models pin" in message


def test_a_stranger_is_refused(stranger: Daemon, keeper: Daemon, model: str) -> None:
    for verb in (["pin", model], ["unpin", model], ["pins"]):
        message = fails(stranger.home, "models", *verb, "--on", keeper.peer_id, code="FORBIDDEN", exit_code=3)
        assert "storage.allowed_peers" in message
    fails(stranger.home, "models", "pins", "--on", "nobody", code="BAD_REQUEST", exit_code=2)
    assert works(keeper.home, "models", "pins")["pins"] == []


def test_a_listed_peer_pins_a_model(publisher: Daemon, keeper: Daemon, model: str, fleet: Fleet) -> None:
    before_ms = time.time() * 1000
    told = works(publisher.home, "models", "pin", "words", "--on", keeper.peer_id, "--days", "30")
    (pin,) = told["pins"]
    assert (told["node"], pin["state"], pin["asker"]) == (keeper.peer_id, "kept", publisher.peer_id)
    assert pin["reference"] == model
    assert abs(pin["until_ms"] - before_ms - 30 * DAY_MS) < DAY_MS
    assert pin["size_bytes"] == pin["have_bytes"] == told["room"]["peer_bytes"] > 0
    again = works(publisher.home, "models", "pin", "words", "--on", keeper.peer_id)
    assert abs(again["pins"][0]["until_ms"] - before_ms - 60 * DAY_MS) < DAY_MS  # no longer than it grants
    assert again["pins"][0]["since_ms"] == pin["since_ms"]
    assert works(publisher.home, "models", "pins", "--on", keeper.peer_id)["pins"] == again["pins"]
    text = octonode(publisher.home, "models", "pins", "--on", keeper.peer_id).out
    assert model in text
    assert "kept" in text
    with Client.from_home(publisher.home) as client:
        receipt = client.receipt(told["receipt"])
        (task,) = [each for each in client.tasks() if each.task == told["receipt"]]
    assert (task.role, task.peer, task.state, task.receipt) == ("asker", keeper.peer_id, "completed", True)
    assert (receipt.verified, receipt.provider, receipt.asker) == (True, keeper.peer_id, publisher.peer_id)
    assert receipt.facts["parameters"]["until_ms"] == pin["until_ms"]
    (held,) = works(keeper.home, "models", "ls")["models"]
    assert (held["reference"], held["state"], held["pinned"], held["complete"]) == (model, "held", True, True)
    (kept,) = works(keeper.home, "models", "pins")["pins"]
    assert (kept["asker"], kept["reference"], kept["state"]) == (publisher.peer_id, model, "kept")
    assert works(keeper.home, "status")["storage"]["used_bytes"] == pin["size_bytes"]
    assert "pinned" in fails(keeper.home, "models", "rm", model, code="FORBIDDEN", exit_code=3)


def test_shares_are_kept(publisher: Daemon, keeper: Daemon, tmp_path: Path) -> None:
    other = write_scripted_model(tmp_path / "other.model", seed=5)
    works(publisher.home, "models", "add", str(other), "--name", "other", "--publish")
    message = fails(publisher.home, "models", "pin", "other", "--on", keeper.peer_id, code="DISK_FULL", exit_code=1)
    assert "5000000" in message
    assert len(works(keeper.home, "models", "pins")["pins"]) == 1


def test_it_serves_what_its_publisher_no_longer_can(
    publisher: Daemon, keeper: Daemon, stranger: Daemon, model: str, scripted: Path, fleet: Fleet
) -> None:
    fleet.kill(publisher)
    told = works(stranger.home, "models", "fetch", model, "--trust")
    assert told["bytes_by_source"] == {f"gateway:{keeper.peer_id}": scripted.stat().st_size}
    assert told["model"]["complete"] is True
    assert told["model"]["publisher"] == publisher.peer_id  # its manifest came with the pin, and is shown on


def test_pins_outlive_a_restart_and_kill_9(publisher: Daemon, keeper: Daemon, model: str, fleet: Fleet) -> None:
    before = works(keeper.home, "models", "pins")["pins"]
    fleet.kill(keeper)
    fleet.again(keeper)
    assert fleet.until(lambda: works(keeper.home, "models", "pins")["pins"]) == before
    assert works(keeper.home, "models", "ls")["models"][0]["pinned"] is True
    fleet.again(publisher)
    works(publisher.home, "join", keeper.address)  # both listen on other ports than before
    fleet.met(publisher, keeper)
    assert works(publisher.home, "models", "pins", "--on", keeper.peer_id)["pins"] == before


def test_unpinning_frees_the_share_and_the_disk(publisher: Daemon, keeper: Daemon, model: str, fleet: Fleet) -> None:
    told = works(publisher.home, "models", "unpin", "words", "--on", keeper.peer_id)
    assert (told["pins"], told["room"]["peer_bytes"]) == ([], 0)
    assert works(publisher.home, "models", "unpin", "words", "--on", keeper.peer_id)["pins"] == []
    assert works(keeper.home, "models", "pins")["pins"] == []
    fleet.until(lambda: [each["state"] for each in works(keeper.home, "models", "ls")["models"]] != ["held"])
    assert not list((keeper.home / "models").glob("baf*/data"))


def test_the_owner_pins_and_unpins_at_home(publisher: Daemon, model: str, keeper: Daemon) -> None:
    assert works(publisher.home, "models", "pin", "words")["pins"][0]["state"] == "kept"
    (row,) = works(publisher.home, "models", "pins")["pins"]
    assert (row["reference"], row["asker"], row["until_ms"]) == (model, publisher.peer_id, 0)
    assert works(publisher.home, "models", "show", "words")["pinned"] is True
    assert "unpinned" in octonode(publisher.home, "models", "pins").out
    assert works(publisher.home, "models", "unpin", "words")["pins"] == []
    assert works(publisher.home, "models", "show", "words")["pinned"] is False
    works(publisher.home, "models", "fetch", "words", "--pin")
    (row,) = works(publisher.home, "models", "pins")["pins"]
    assert row["asker"] == publisher.peer_id
    works(publisher.home, "models", "unpin", "words")
    assert works(publisher.home, "models", "show", "words")["pinned"] is False
    fails(keeper.home, "models", "pin", model, code="MODEL_NOT_FOUND", exit_code=4)
