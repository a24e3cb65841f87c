"""Versions of a model between real daemons: published, followed, updated, gone back from, deprecated, orphaned."""

from __future__ import annotations

from pathlib import Path

import pytest

from octonode.client import Client
from octonode.testing.daemon import Daemon
from octonode.testing.testnet import write_scripted_model
from tests.process.fleet import Fleet, fails, octonode, works

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def a(fleet: Fleet, place: Path) -> Daemon:
    """The publisher."""
    return fleet.start(place / "a", "--public")


@pytest.fixture(scope="module")
def b(fleet: Fleet, place: Path, a: Daemon) -> Daemon:
    """Follows a model."""
    node = fleet.start(place / "b", "--bootstrap", a.address, "--public")
    fleet.met(node, a)
    return node


@pytest.fixture(scope="module")
def c(fleet: Fleet, place: Path, a: Daemon, b: Daemon) -> Daemon:
    """Comes late."""
    node = fleet.start(place / "c", "--bootstrap", a.address, "--bootstrap", b.address)
    fleet.met(node, a, b)
    return node


def publish(a: Daemon, place: Path, version: str, seed: int) -> str:
    """The root."""
    file = write_scripted_model(place / f"words-{version}.model", seed=seed)
    added = works(a.home, "models", "add", str(file), "--name", "words", "--version", version, "--publish")
    return str(added["model"]["root"])


def answered_by(node: Daemon, model: str) -> str:
    """The root that answers under a name."""
    told = works(node.home, "run", model, "hello", "--max-tokens", "4")["octonode"]
    assert told["verified"] is True, told
    return str(told["model_root"])


@pytest.fixture(scope="module")
def first(a: Daemon, b: Daemon, place: Path) -> str:
    """The root of words 1.0.0, published by a."""
    return publish(a, place, "1.0.0", 1)


@pytest.fixture(scope="module")
def second(a: Daemon, b: Daemon, first: str, place: Path) -> str:
    """The root of words 1.1.0."""
    return publish(a, place, "1.1.0", 2)


def test_a_range_is_followed_and_nothing_moves_by_itself(fleet: Fleet, a: Daemon, b: Daemon, first: str) -> None:
    name = f"{a.peer_id}/words"
    assert "not trusted yet" in fails(b.home, "models", "fetch", f"{name}@^1.0", code="NOT_TRUSTED", exit_code=3)
    works(b.home, "models", "trust", a.peer_id, "--alias", "alice")
    served = works(b.home, "models", "serve", f"{name}@^1.0")["model"]
    assert (served["root"], served["version"], served["unsigned"]) == (first, "1.0.0", False)
    assert works(b.home, "models", "outdated")["models"] == []
    assert answered_by(b, "alice/words") == first


def test_outdated_and_update(fleet: Fleet, a: Daemon, b: Daemon, first: str, second: str) -> None:
    name = f"{a.peer_id}/words"
    row = fleet.until(lambda: works(b.home, "models", "outdated")["models"])[0]
    assert (row["current"], row["wanted"], row["latest"], row["serving"]) == ("1.0.0", "1.1.0", "1.1.0", True)
    assert answered_by(b, "alice/words") == first
    assert "1.1.0" in octonode(b.home, "models", "outdated").out
    updated = works(b.home, "models", "update", "words")
    assert (updated["model"]["root"], updated["model"]["state"]) == (second, "serving")
    assert "rollback" in updated["note"]
    assert works(b.home, "status")["serving"] == [name]
    assert answered_by(b, "alice/words") == second
    old = works(b.home, "models", "show", f"{name}@1.0.0")
    assert (old["complete"], old["kept_as_previous"], old["state"]) == (True, True, "held")
    assert "newest in ^1.0" in works(b.home, "models", "update", "words")["note"]
    assert works(b.home, "models", "outdated")["models"] == []


def test_rollback_by_the_users_word_stays_over_a_restart(
    fleet: Fleet, a: Daemon, b: Daemon, first: str, second: str
) -> None:
    assert works(b.home, "models", "rollback", "words")["model"]["version"] == "1.0.0"
    assert answered_by(b, "alice/words") == first
    (row,) = works(b.home, "models", "outdated")["models"]
    assert (row["current"], row["wanted"], row["rolled_back"]) == ("1.0.0", "1.1.0", True)
    assert works(b.home, "models", "update", "--all")["updated"] == []  # nobody is put forward behind his back
    fleet.stop(b)
    fleet.again(b)
    fleet.event(b, "model", state="serving", root=first)
    assert answered_by(b, "alice/words") == first
    assert works(b.home, "models", "update", "words@^1")["model"]["root"] == second
    assert answered_by(b, "alice/words@^1.1") == second


def test_a_publisher_takes_a_version_back(fleet: Fleet, a: Daemon, b: Daemon, first: str, second: str) -> None:
    name = f"{a.peer_id}/words"
    told = works(a.home, "models", "deprecate", "words@1.1.0", "--reason", "spells badly", "--replaced-by", "1.0.0")
    assert (told["latest"], told["note"]) == ("1.0.0", "")
    by_version = {each["version"]: each for each in told["versions"]}
    assert (by_version["1.1.0"]["deprecated"], by_version["1.1.0"]["replaced_by"]) == (True, "1.0.0")
    assert a.peer_id in fails(b.home, "models", "deprecate", f"{name}@1.0.0", code="FORBIDDEN", exit_code=3)
    (row,) = fleet.until(lambda: works(b.home, "models", "outdated")["models"])
    assert "spells badly" in row["deprecated"]
    assert "take 1.0.0" in row["deprecated"]
    assert "DEPRECATED" in octonode(b.home, "models", "show", f"{name}@1.1.0").out
    assert "DEPRECATED" in octonode(b.home, "models", "ls").out
    assert works(b.home, "models", "show", f"{name}@1.0.0")["kept_as_previous"] is True
    works(b.home, "models", "unpin", f"{name}@1.0.0")
    assert works(b.home, "models", "show", f"{name}@1.0.0")["kept_as_previous"] is False


def test_a_publisher_is_lost_and_its_record_is_found_through_others(
    fleet: Fleet, a: Daemon, b: Daemon, c: Daemon, first: str, second: str
) -> None:
    name = f"{a.peer_id}/words"
    works(c.home, "models", "trust", a.peer_id)
    fleet.kill(a)
    told = works(c.home, "models", "versions", name)
    assert [(each["version"], each["deprecated"]) for each in told["versions"]] == [("1.1.0", True), ("1.0.0", False)]
    assert (told["latest"], told["seq"] >= 3) == ("1.0.0", True)
    assert works(c.home, "models", "fetch", "words@^1.0")["model"]["root"] == first  # not the deprecated one
    exact = works(c.home, "models", "fetch", f"{name}@1.1.0")
    assert exact["model"]["root"] == second
    assert "spells badly" in exact["note"]
    assert "spells badly" in octonode(c.home, "models", "versions", "words").out


def test_a_bare_root_needs_a_signature_or_the_users_word(fleet: Fleet, tmp_path: Path, b: Daemon, c: Daemon) -> None:
    """The holders of a root say by which manifest they have it; where nobody does, the user must."""
    d = fleet.start(tmp_path / "d", "--bootstrap", b.address)
    fleet.met(d, b)
    root = works(b.home, "models", "show", "words")["root"]
    publisher = works(b.home, "models", "show", "words")["publisher"]
    assert publisher in fails(d.home, "models", "fetch", f"cid:{root}", code="NOT_TRUSTED", exit_code=3)
    unsigned = works(d.home, "models", "fetch", f"cid:{root}", "--allow-unsigned")["model"]
    assert (unsigned["unsigned"], unsigned["trusted"], unsigned["reference"]) == (True, False, f"cid:{root}")
    assert "UNSIGNED" in octonode(d.home, "models", "ls").out
    assert "UNSIGNED" in octonode(d.home, "models", "show", f"cid:{root}").out
    works(d.home, "models", "serve", f"cid:{root}")  # allowed once
    assert works(d.home, "status")["unsigned"] == [f"cid:{root}"]
    assert f"cid:{root} (UNSIGNED)" in octonode(d.home, "status").out
    told = works(d.home, "run", f"cid:{root}", "hello", "--max-tokens", "4", "--peer", d.peer_id)["octonode"]
    assert told["manifest"] == ""
    with Client.from_home(b.home) as client:
        fleet.until(lambda: d.peer_id in client.model(f"cid:{root}").holders)


def test_lists_of_trust_are_handed_on(tmp_path: Path, b: Daemon, c: Daemon) -> None:
    (row,) = works(b.home, "models", "trust")["publishers"]
    assert row["fingerprint"].startswith("SHA256:")
    assert len(row["public_key"]) == 64
    assert row["fingerprint"] in octonode(b.home, "models", "trust").out
    file = tmp_path / "friends.json"
    assert works(b.home, "models", "trust", "--export", str(file))["exported"] == 1
    done = works(c.home, "models", "trust", "--import", str(file))
    assert (done["added"], done["known"], done["publishers"][0]["note"]) == (0, 1, "alice")
    file.write_text('{"octonode_trust": 1, "publishers": [{"peer_id": "nobody"}]}')
    fails(c.home, "models", "trust", "--import", str(file), code="BAD_REQUEST", exit_code=2)
    file.write_text("[]")
    fails(c.home, "models", "trust", "--import", str(file), code="CONFIG", exit_code=2)
