"""Models that come to a real daemon other than by peers: uploads that are interrupted, a hub, a Kubo node.

The hub and Kubo are stand-ins of ours.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from octonode.api.schema.uploads import uploads as uploads_call
from octonode.client import Client
from octonode.testing.daemon import Daemon
from octonode.testing.hub import HubStandIn
from octonode.testing.kubo_rpc import KuboStandIn
from octonode.testing.testnet import write_scripted_model
from tests.process.fleet import COMMAND, HEEDING_CTRL_C, Asking, Fleet, environment, fails, octonode, works
from tests.process.standins import running, slow_line

pytestmark = pytest.mark.process
MB = 1_000_000


def uploads(node: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = works(node.home, "models", "uploads")["uploads"]
    return found


def test_upload_outlives_ctrl_c_and_a_kill_of_the_node_and_is_then_served(
    fleet: Fleet, place: Path, tmp_path: Path
) -> None:
    """From a shell elsewhere (a URL and a key) over a slow line; what was durable is not sent again."""
    node = fleet.start(place / "uploaded", "--public")
    model = write_scripted_model(tmp_path / "sent.model", seed=4, size_bytes=24 * MB)
    token = (node.home / "api.token").read_text()
    with slow_line(node.api, 2 * MB) as line:
        command = [*COMMAND, "models", "upload", str(model), "--name", "sent", "--api", line]
        elsewhere = environment(tmp_path / "elsewhere", {"OCTONODE_TOKEN": token})
        process = subprocess.Popen(
            [*HEEDING_CTRL_C, *command], env=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with Client.from_home(node.home) as client:
            fleet.until(lambda: any(each.files[0].offset_bytes > MB for each in client.do(uploads_call)))
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=30)
        assert process.returncode == 130, words
        assert b"Traceback" not in words
    fleet.kill(node)
    fleet.again(node)
    (kept,) = uploads(node)
    offset = kept["files"][0]["offset_bytes"]
    assert MB < offset < 24 * MB
    done = works(tmp_path / "elsewhere", "models", "upload", str(model), "--name", "sent", "--api", node.api,
                 extra={"OCTONODE_TOKEN": token})  # fmt: skip
    assert done["model"]["reference"] == f"{node.peer_id}/sent"
    assert done["model"]["size_bytes"] == 24 * MB
    assert uploads(node) == []
    assert not any((node.home / "uploads").iterdir())
    assert done["model"]["root"] == works(node.home, "models", "cid", str(model))["root"]
    served = works(node.home, "models", "serve", "sent")
    assert served["model"]["state"] == "serving"
    assert Asking(node, f"{node.peer_id}/sent", max_tokens=8).whole().text


def test_upload_of_a_folder_and_of_what_is_no_model(fleet: Fleet, place: Path, tmp_path: Path) -> None:
    node = fleet.start(place / "folder")
    folder = tmp_path / "both"
    write_scripted_model(folder / "a.model", seed=1)
    (folder / "notes").mkdir()
    (folder / "notes" / "read.txt").write_text("about it")
    done = works(node.home, "models", "upload", str(folder))
    assert done["model"]["reference"] == f"{node.peer_id}/both"
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"\x80\x04" + bytes(5000))
    fails(node.home, "models", "upload", str(bad), code="FORMAT_REFUSED", exit_code=6)
    fails(node.home, "models", "upload", str(tmp_path / "none"), code="NOT_FOUND", exit_code=4)
    fails(node.home, "models", "upload", str(bad), "--api", node.api, code="CONFIG", exit_code=2)
    assert uploads(node) == []


def test_model_of_a_hub_is_fetched_pinned_to_its_commit_and_served(fleet: Fleet, place: Path, tmp_path: Path) -> None:
    first = write_scripted_model(tmp_path / "1", seed=11).read_bytes()
    second = write_scripted_model(tmp_path / "2", seed=12).read_bytes()
    with running(HubStandIn()) as hub:
        commit = hub.commit("someone/words", {"words.gguf": first, "README.md": b"# words", "old.bin": b"x" * 9})
        node = fleet.start(place / "hub", extra={"HF_ENDPOINT": hub.url})
        fetched = works(node.home, "models", "fetch", "hf:someone/words")
        assert fetched["bytes_by_source"] == {"hf:someone/words": len(first)}
        model = fetched["model"]
        assert (model["reference"], model["license"]) == (f"{node.peer_id}/words", "apache-2.0")
        assert model["version"] == "1.0.0"
        with Client.from_home(node.home) as client:
            assert client.model(f"hf:someone/words@{commit}").root == model["root"]
        again = works(node.home, "models", "fetch", "hf:someone/words")
        assert (again["bytes_by_source"], again["model"]["root"]) == ({}, model["root"])
        hub.commit("someone/words", {"words.gguf": second})
        moved = works(node.home, "models", "fetch", "hf:someone/words")["model"]
        assert (moved["reference"], moved["version"]) == (f"{node.peer_id}/words", "1.0.1")
        assert moved["root"] != model["root"]
        assert works(node.home, "models", "serve", f"hf:someone/words@{commit}")["model"]["state"] == "serving"
        assert not any((node.home / "downloads" / "hub").glob("*/*"))
        message = fails(node.home, "models", "fetch", "hf:no/body", code="NOT_FOUND", exit_code=4)
        assert "no such repository" in message
        hub.commit("someone/many", {"a-Q4.gguf": first, "a-Q8.gguf": second})
        message = fails(node.home, "models", "fetch", "hf:someone/many", code="BAD_REQUEST", exit_code=2)
        assert "hf:someone/many/a-Q8.gguf" in message
        assert works(node.home, "models", "fetch", "hf:someone/many/a-Q8.gguf")["model"]["root"] == moved["root"]
    fleet.stop(node)
    fleet.again(node)  # the hub is gone: what is held is used
    again = works(node.home, "models", "fetch", "hf:someone/words")
    assert again["model"]["root"] == moved["root"]


def test_download_from_a_hub_goes_on_after_a_kill_of_the_node(fleet: Fleet, place: Path, tmp_path: Path) -> None:
    content = write_scripted_model(tmp_path / "big", seed=13, size_bytes=20 * MB).read_bytes()
    with running(HubStandIn()) as hub:
        hub.commit("someone/big", {"big.gguf": content})
        hub.faults.bytes_per_second = 5 * MB
        node = fleet.start(place / "killed", extra={"OCTONODE_MODELS_HUB_ENDPOINT": hub.url})
        thread = threading.Thread(target=octonode, args=(node.home, "models", "fetch", "hf:someone/big", "--json"))
        thread.start()
        parts = node.home / "downloads" / "hub"
        fleet.until(lambda: any(each.stat().st_size > MB for each in parts.glob("*/*/.parts/*")))
        fleet.kill(node)
        thread.join(60)
        assert not thread.is_alive()
        hub.faults.bytes_per_second, hub.sent_bytes = 0, 0
        fleet.again(node)
        done = works(node.home, "models", "fetch", "hf:someone/big")
        assert 0 < done["bytes_by_source"]["hf:someone/big"] < 20 * MB
        assert hub.sent_bytes < 20 * MB
        assert done["model"]["root"] == works(node.home, "models", "cid", str(tmp_path / "big"))["root"]


def test_model_goes_to_kubo_and_another_node_gets_it_there(
    fleet: Fleet, place: Path, tmp_path: Path, scripted: Path
) -> None:
    with running(KuboStandIn()) as kubo:
        giver = fleet.start(place / "giver")
        added = works(giver.home, "models", "add", str(scripted), "--name", "words")
        root = added["model"]["root"]
        fails(giver.home, "models", "export", "kubo", "words", code="CONFIG", exit_code=2)
        message = fails(
            giver.home, "models", "export", "kubo", "words", "--rpc", kubo.url, code="FORBIDDEN", exit_code=3
        )
        assert "--private" in message
        assert kubo.blocks == {}
        works(giver.home, "models", "publish", "words")
        done = works(giver.home, "models", "export", "kubo", "words", "--rpc", kubo.url)
        assert done["records"] == 3
        assert "Kubo 0.43.1 took" in done["note"]
        assert root in kubo.pins
        assert kubo.provided == [root]
        taker = fleet.start(place / "taker", extra={"OCTONODE_MODELS_KUBO_RPC": kubo.url})
        fetched = works(taker.home, "models", "fetch", f"cid:{root}", "--allow-unsigned")
        assert fetched["bytes_by_source"] == {f"kubo:{kubo.url}": scripted.stat().st_size}
        assert fetched["model"]["complete"]
