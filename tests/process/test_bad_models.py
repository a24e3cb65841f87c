"""What other nodes may hand us that cannot be: false manifests, old ones, altered blocks. Nothing false is kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import pytest

from octonode.client import Client
from octonode.testing.daemon import Daemon
from octonode.testing.testnet import write_scripted_model
from tests.process.fleet import Fleet, fails, works

pytestmark = pytest.mark.process

LIAR = (sys.executable, str(Path(__file__).with_name("lying_daemon.py")))


def publish(node: Daemon, file: Path, name: str = "words", version: str = "1.0.0") -> str:
    """The model's root CID."""
    added = works(node.home, "models", "add", str(file), "--name", name, "--version", version, "--publish")
    return str(added["model"]["root"])


def answers(node: Daemon) -> bool:
    return httpx.get(f"{node.api}/readyz").status_code == 200


def nothing_of(node: Daemon, root: str) -> bool:
    """No model, no part of one, no manifest."""
    return not [path for folder in ("models", "manifests") for path in (node.home / folder).glob("*")] and (
        httpx.get(f"http://{node.ready.gateway}/ipfs/{root}?format=raw").status_code == 404
    )


def test_a_manifest_with_a_false_signature(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    a = fleet.start(tmp_path / "a", "--public", command=LIAR, extra={"LIE": "forged"})
    root = publish(a, scripted)
    works(a.home, "models", "serve", "words")
    b = fleet.start(tmp_path / "b", "--bootstrap", a.address, "--trust", a.peer_id)
    fleet.met(b, a)
    model = f"{a.peer_id}/words"
    for verb in (("models", "fetch", model), ("models", "show", model), ("run", model, "hello")):
        message = fails(b.home, *verb, code="VERIFICATION_FAILED", exit_code=6)
        assert f"no true manifest of {model}" in message
        assert f"the signature of {a.peer_id} on the manifest is wrong" in message
        assert "Nothing was taken" in message
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    response = httpx.post(f"{b.api}/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "VERIFICATION_FAILED")
    assert nothing_of(b, root)
    assert answers(b)
    # The bytes are what their CID says, whoever signs what: by CID it works.
    assert works(b.home, "run", f"cid:{root}", "hello")["octonode"]["provider"] == a.peer_id


def test_a_manifest_that_was_rolled_back(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    a = fleet.start(tmp_path / "a", command=LIAR, extra={"LIE": "oldest"})
    old = publish(a, scripted)
    fleet.stop(a)
    a = fleet.start(tmp_path / "a", command=LIAR, extra={"LIE": "recordless"})
    new = publish(a, write_scripted_model(tmp_path / "new.model", seed=2), version="1.1.0")
    b = fleet.start(tmp_path / "b", "--bootstrap", a.address, "--trust", a.peer_id)
    fleet.met(b, a)
    model = f"{a.peer_id}/words"
    assert works(b.home, "models", "fetch", model)["model"]["root"] == new
    works(b.home, "models", "rm", model, "--force")
    fleet.stop(a)
    a = fleet.start(tmp_path / "a", command=LIAR, extra={"LIE": "oldest"})
    assert works(b.home, "join", a.address)["peer_id"] == a.peer_id
    fleet.met(b, a)
    for verb in (("models", "fetch", model), ("models", "show", model)):
        message = fails(b.home, *verb, code="ROLLBACK", exit_code=6)
        assert "seq 1" in message
        assert "seq 2 of this name was seen before" in message
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    assert httpx.post(f"{b.api}/v1/chat/completions", json=body).status_code == 409
    assert not list((b.home / "models").glob("*"))
    assert answers(b)
    # Who asks for the old one gets it.
    assert works(b.home, "models", "fetch", f"{model}@1.0.0")["model"]["root"] == old


def alter(node: Daemon) -> None:
    """Turn a byte in the middle of the node's only model, as a failing disk does: neither size nor time tell."""
    file = next((node.home / "models").glob("*/data/*"))
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    with file.open("r+b") as opened:  # in place: the same inode
        opened.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def copy_of(file: Path, target: Path) -> Path:
    """Bytes of its own: the store links what is added, and an altered link would alter the original."""
    target.write_bytes(file.read_bytes())
    return target


def test_an_altered_block_is_found_and_comes_from_another_holder(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    a = fleet.start(tmp_path / "a")
    root = publish(a, copy_of(scripted, tmp_path / "a.model"))
    b = fleet.start(tmp_path / "b", "--bootstrap", a.address, "--trust-all")
    fleet.met(b, a)
    works(b.home, "models", "fetch", f"cid:{root}")
    alter(a)
    c = fleet.start(tmp_path / "c", "--bootstrap", a.address, "--bootstrap", b.address)
    fleet.met(c, a, b)
    with Client.from_home(c.home) as client:
        fleet.until(lambda: set(client.model(f"cid:{root}").holders) == {a.peer_id, b.peer_id})
    assert a.peer_id in fails(c.home, "models", "fetch", f"cid:{root}", code="NOT_TRUSTED", exit_code=3)  # a signed it
    fetched = works(c.home, "models", "fetch", f"cid:{root}", "--allow-unsigned")
    assert fetched["model"]["complete"] is True
    assert sum(fetched["bytes_by_source"].values()) == scripted.stat().st_size
    assert fetched["bytes_by_source"][f"gateway:{b.peer_id}"] >= 1024 * 1024
    assert works(c.home, "models", "verify", f"cid:{root}")["note"] == ""
    assert next((c.home / "models").glob("*/data/*")).read_bytes() == scripted.read_bytes()
    # The holder of the altered file is told by its own verify, and mends it by a fetch.
    message = fails(a.home, "models", "verify", "words", code="VERIFICATION_FAILED", exit_code=6)
    assert "1 blocks" in message
    assert f"octonode models verify cid:{root} --repair" in message
    works(a.home, "models", "fetch", f"cid:{root}")
    assert works(a.home, "models", "verify", "words")["note"] == ""


def test_an_altered_block_of_the_only_holder(fleet: Fleet, tmp_path: Path, scripted: Path) -> None:
    a = fleet.start(tmp_path / "a")
    root = publish(a, copy_of(scripted, tmp_path / "a.model"))
    alter(a)
    b = fleet.start(tmp_path / "b", "--bootstrap", a.address)
    fleet.met(b, a)
    fetch = ("models", "fetch", f"cid:{root}", "--allow-unsigned")
    message = fails(b.home, *fetch, code="VERIFICATION_FAILED", exit_code=6)
    assert f"of 3 blocks of {root} are missing" in message
    assert "wrong bytes" in message or a.peer_id in message  # over bitswap it is named by its peer id
    assert "Nothing false was written" in message
    shown = works(b.home, "models", "show", f"cid:{root}")
    assert shown["complete"] is False
    assert shown["have_bytes"] in (0, 1024 * 1024, 2 * 1024 * 1024)
    assert "not here yet" in works(b.home, "models", "verify", f"cid:{root}")["note"]  # and what is here is true
    have = httpx.get(f"http://{b.ready.gateway}/ipfs/{root}", timeout=30)
    assert have.status_code != 200  # what is not whole is handed on to nobody as if it were
    assert answers(b)
