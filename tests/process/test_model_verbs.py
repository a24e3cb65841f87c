"""Every verb of `octonode models` at real daemons, for people and for scripts; status, peers, doctor and logs too."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from octonode.client import Client
from octonode.ipfs.cid import Cid
from octonode.testing.daemon import Daemon
from octonode.testing.testnet import write_scripted_model
from tests.process.fleet import COMMAND, Fleet, environment, fails, octonode, works

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def a(fleet: Fleet, place: Path) -> Daemon:
    return fleet.start(place / "a", "--public")


@pytest.fixture(scope="module")
def b(fleet: Fleet, place: Path, a: Daemon) -> Daemon:
    node = fleet.start(place / "b", "--bootstrap", a.address)
    fleet.met(node, a)
    return node


@pytest.fixture(scope="module")
def model(a: Daemon, scripted: Path) -> str:
    """Added and published by a."""
    added = works(a.home, "models", "add", str(scripted), "--name", "words", "--version", "1.2.3", "--license", "MIT")
    assert added["model"]["state"] == "held"
    return str(added["model"]["reference"])


def said(done_out: str, label: str) -> str:
    """The value of `label` in a text for people."""
    (line,) = [each for each in done_out.splitlines() if each.split()[:1] == [label]]
    return line.split(maxsplit=1)[1]


def test_cid_needs_no_daemon_and_imports_nothing(tmp_path: Path, scripted: Path, a: Daemon, model: str) -> None:
    home = tmp_path / "home"
    told = works(home, "models", "cid", str(scripted))
    assert told["size_bytes"] == scripted.stat().st_size
    assert octonode(home, "models", "cid", str(scripted)).out == told["root"] + "\n"
    assert works(a.home, "models", "show", model)["root"] == told["root"]
    assert not home.exists()


def test_a_profile_of_older_ipfs_nodes(tmp_path: Path, a: Daemon) -> None:
    old = write_scripted_model(tmp_path / "old.model", seed=3)
    profile = ("--profile", "unixfs-v0-2015")
    told = works(a.home, "models", "cid", str(old), *profile)
    assert told["root"].startswith("Qm")
    added = works(a.home, "models", "add", str(old), "--name", "old", *profile)
    assert added["model"]["root"] == Cid.parse(told["root"]).v1.text
    assert works(a.home, "models", "show", f"cid:{told['root']}")["reference"] == added["model"]["reference"]
    assert works(a.home, "models", "verify", "old")["model"]["complete"]
    for verb in ("cid", "add"):
        message = fails(a.home, "models", verb, str(old), "--profile", "nope", code="BAD_REQUEST", exit_code=2)
        assert "unixfs-v1-2025" in message


def test_add_and_show(a: Daemon, model: str, tmp_path: Path, scripted: Path) -> None:
    assert model == f"{a.peer_id}/words"
    told = works(a.home, "models", "show", "words")
    assert (told["version"], told["license"], told["format"], told["complete"]) == ("1.2.3", "MIT", "scripted", True)
    text = octonode(a.home, "models", "show", model).out
    assert said(text, "reference") == model
    assert said(text, "root") == told["root"]
    assert said(text, "licence") == "MIT"
    assert "(complete)" in said(text, "size")
    other = write_scripted_model(tmp_path / "words.model", seed=9)
    message = fails(a.home, "models", "add", str(other), "--name", "words", "--version", "1.2.3", code="FORBIDDEN",
                    exit_code=3)  # fmt: skip
    assert "--version 1.2.4" in message
    again = works(a.home, "models", "add", str(scripted), "--name", "words", "--version", "1.2.3")
    assert again["model"]["manifest"] == told["manifest"]  # the same content changes nothing


def test_what_is_not_published_is_not_found(a: Daemon, b: Daemon, model: str) -> None:
    fails(b.home, "models", "show", model, code="MODEL_NOT_FOUND", exit_code=4)
    text = octonode(a.home, "models", "publish", "words").out
    assert text.startswith("published; ")
    assert works(a.home, "models", "publish", "words")["records"] > 0
    assert works(b.home, "models", "show", model)["publisher"] == a.peer_id


def test_ls(a: Daemon, b: Daemon, model: str, fleet: Fleet) -> None:
    def listed(node: Daemon) -> list[dict[str, Any]]:
        return [each for each in works(node.home, "models", "ls")["models"] if each["reference"] == model]

    (held,) = listed(a)
    assert (held["state"], held["holders"]) == ("held", [a.peer_id])
    (seen,) = fleet.until(lambda: [each for each in listed(b) if each["holders"]])
    assert (seen["state"], seen["holders"]) == ("network", [a.peer_id])
    head, *rows = octonode(a.home, "models", "ls").out.splitlines()
    (row,) = [each for each in rows if each.startswith(f"{model} ")]
    assert head.split() == ["MODEL", "STATE", "SIZE", "QUANTIZATION", "DOES", "SERVERS", "NOTE"]
    assert row.split()[:2] == [model, "held"]


def test_trust_and_its_alias(a: Daemon, b: Daemon, model: str) -> None:
    assert works(b.home, "models", "trust")["publishers"] == []
    (row,) = works(b.home, "models", "trust", a.peer_id, "--alias", "friend")["publishers"]
    assert (row["peer_id"], row["note"]) == (a.peer_id, "friend")
    assert octonode(b.home, "models", "trust").out.splitlines()[1].split() == [a.peer_id, "friend", row["fingerprint"]]
    assert works(b.home, "models", "show", "friend/words")["reference"] == model
    assert works(b.home, "models", "trust", a.peer_id, "--remove")["publishers"] == []
    fails(b.home, "models", "trust", a.peer_id, "--remove", code="NOT_FOUND", exit_code=4)
    fails(b.home, "models", "trust", "nobody", code="BAD_REQUEST", exit_code=2)
    fails(b.home, "models", "trust", "--remove", code="CONFIG", exit_code=2)


def test_fetch_verify_and_rm(a: Daemon, b: Daemon, model: str, scripted: Path, fleet: Fleet) -> None:
    told = works(b.home, "models", "fetch", model, "--trust")
    assert told["bytes_by_source"] == {f"gateway:{a.peer_id}": scripted.stat().st_size}
    assert told["model"]["complete"] is True
    assert octonode(b.home, "models", "fetch", model).out.startswith("fetched in ")  # again: nothing to do
    assert works(b.home, "models", "verify", model)["note"] == ""
    assert octonode(b.home, "models", "verify", model).out.startswith("verified\n")
    assert works(b.home, "models", "rm", model)["reference"] == model
    fails(b.home, "models", "verify", model, code="MODEL_NOT_FOUND", exit_code=4)
    assert list((b.home / "models").iterdir()) == []
    with Client.from_home(a.home) as client:  # until b has said that it has it no longer
        fleet.until(lambda: client.model(model).holders == (a.peer_id,))
    message = fails(a.home, "models", "rm", model, code="FORBIDDEN", exit_code=3)
    assert "last copy" in message
    assert "--force" in message


def test_a_pinned_model_stays(b: Daemon, model: str) -> None:
    assert works(b.home, "models", "fetch", model, "--pin")["model"]["pinned"] is True
    assert "pinned" in fails(b.home, "models", "rm", model, code="FORBIDDEN", exit_code=3)
    assert octonode(b.home, "models", "rm", model, "--force").out.startswith(f"removed {model}")


def test_serve_and_stop(a: Daemon, b: Daemon, model: str, fleet: Fleet) -> None:
    assert works(a.home, "models", "serve", "words")["model"]["state"] == "serving"
    assert works(a.home, "status")["serving"] == [model]
    assert works(a.home, "models", "serve", f"cid:{works(a.home, 'models', 'show', model)['root']}")  # the same one
    assert works(a.home, "status")["degraded"] == []
    fleet.until(lambda: works(b.home, "peers")["peers"][0]["serving"] == [model])
    message = fails(a.home, "models", "rm", model, code="IN_USE", exit_code=3)
    assert f"octonode models serve {model} --stop" in message
    assert octonode(a.home, "models", "serve", model, "--stop").out.startswith("stopped serving")
    fails(a.home, "models", "serve", model, "--stop", code="MODEL_NOT_FOUND", exit_code=4)
    fleet.until(lambda: works(b.home, "peers")["peers"][0]["serving"] == [])
    assert json.loads((a.home / "serving.json").read_text()) == {}


def test_a_model_that_cannot_be_loaded_is_not_wished_for(a: Daemon, model: str) -> None:
    message = fails(a.home, "models", "serve", "words", "--engine", "llama", code="CONFIG", exit_code=2)
    assert "does not run scripted" in message
    assert json.loads((a.home / "serving.json").read_text()) == {}
    assert works(a.home, "status")["degraded"] == []
    assert works(a.home, "models", "serve", "words", "--engine", "scripted")["model"]["state"] == "serving"
    works(a.home, "models", "serve", "words", "--stop")


def test_status_and_peers(a: Daemon, b: Daemon) -> None:
    told = works(b.home, "status")
    assert (told["peer_id"], told["api"], told["pid"], told["state"]) == (b.peer_id, b.api, b.pid, "active")
    assert told["tier"] in ("edge", "consumer", "prosumer", "enterprise")
    assert (told["peers_connected"], told["peers_known"], told["access"]) == (1, 1, "token")
    text = octonode(b.home, "status").out
    assert text.startswith(f"active  {told['tier']} node  {b.peer_id}\n")
    assert "peers 1 connected, 1 known" in text
    (peer,) = works(b.home, "peers")["peers"]
    assert (peer["peer_id"], peer["connected"], peer["tier"]) == (a.peer_id, True, works(a.home, "status")["tier"])
    assert octonode(b.home, "peers").out.splitlines()[1].split()[:3] == [a.peer_id, "yes", peer["tier"]]


def test_doctor_asks_a_peer_to_dial_back(a: Daemon, b: Daemon) -> None:
    done = octonode(b.home, "doctor", "--json")
    assert done.code == 0, done.out
    findings = {each["check"]: each for each in done.json["findings"]}
    assert findings["reachable"]["status"] == "ok"
    assert "127.0.0.1" in findings["reachable"]["summary"]
    assert findings["clock"]["status"] == findings["key"]["status"] == "ok"
    assert findings["peers"]["status"] == "warning"  # a network of two: said, and no failure
    assert "knows of nobody else" in findings["peers"]["fix"]
    text = octonode(b.home, "doctor").out
    assert "ok       reachable: " in text
    assert all(line.startswith(("ok ", "warning", "FAILED", "   ")) for line in text.splitlines())


def test_logs(a: Daemon, model: str) -> None:
    lines = octonode(a.home, "logs", "-n", "1000").out.splitlines()
    assert lines
    records = [json.loads(line) for line in octonode(a.home, "logs", "-n", "1000", "--json").out.splitlines()]
    assert len(records) >= len(lines)
    assert any("is loaded in process" in each["message"] and each["level"] == "INFO" for each in records)
    assert len(octonode(a.home, "logs", "-n", "1").out.splitlines()) == 1
    with subprocess.Popen([*COMMAND, "logs", "-f"], env=environment(a.home), stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        first = [following.stdout.readline() for _ in range(min(100, len(lines)))]
        works(a.home, "models", "serve", "words")
        more = any(b"is loaded in process" in line for line in following.stdout)  # other lines may come before it
        following.terminate()
    assert first
    assert more


def test_a_prompt_is_in_no_log(a: Daemon, b: Daemon, model: str) -> None:
    secret = "xylophone-and-quicksilver"
    answer = works(b.home, "run", model, f"{secret} {secret}")["answer"]
    assert answer
    for node in (a, b):
        kept = b"".join(path.read_bytes() for path in node.home.rglob("*") if path.is_file() and "logs" in path.parts)
        assert secret.encode() not in kept
        assert answer[:40].encode() not in kept
        assert secret.encode() not in b"".join(path.read_bytes() for path in node.home.glob("state.sqlite*"))
