"""`models quantize` at a real daemon: MiniLM in INT8 beside itself, and that Ctrl-C and kill -9 leave nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from octonode.api.schema.embeddings import vectors_of
from octonode.client import Client
from octonode.protocol.receipt import verify_receipt
from octonode.testing.daemon import Daemon
from tests.process.fleet import COMMAND, HEEDING_CTRL_C, Fleet, environment, fails, octonode, works

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.slow]

SENTENCES = ["A cat sat on the mat.", "The kitten lay on the rug.", "Interest rates rose in May."]


@pytest.fixture(scope="module")
def node(fleet: Fleet, place: Path) -> Daemon:
    return fleet.start(place / "a")


@pytest.fixture(scope="module")
def parent(node: Daemon, built_model: Callable[[str], Path]) -> dict[str, Any]:
    added = works(node.home, "models", "add", str(built_model("minilm")), "--name", "minilm", "--version", "1.4.0")
    return dict(added["model"])


@pytest.fixture(scope="module")
def made(node: Daemon, parent: dict[str, Any]) -> dict[str, Any]:
    return dict(works(node.home, "models", "quantize", "minilm", "--to", "INT8"))


def children_in(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(home / "quantizing"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def begin(fleet: Fleet, node: Daemon) -> subprocess.Popen[str]:
    """A verb in the middle of its work."""
    verb = subprocess.Popen(
        [*HEEDING_CTRL_C, *COMMAND, "models", "quantize", "minilm", "--to", "INT4"],
        env=environment(node.home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    fleet.until(lambda: children_in(node.home))
    return verb


def test_what_can_be_made_here_is_listed(node: Daemon, parent: dict[str, Any]) -> None:
    listed = works(node.home, "models", "quantize", "minilm", "--list")
    assert {each["kind"]: each["problem"] for each in listed["choices"]} == {"INT8": "", "INT4": ""}
    message = fails(node.home, "models", "quantize", "minilm", "--to", "FP8", code="UNSUPPORTED", exit_code=3)
    assert "INT8, INT4" in message


def test_it_is_a_new_model_that_names_its_parent(node: Daemon, parent: dict[str, Any], made: dict[str, Any]) -> None:
    model, said = made["model"], made["made"]
    assert (model["name"], model["version"], model["quantization"]) == ("minilm-int8", "1.4.0", "INT8")
    assert model["derived_from"] == [parent["manifest"]]
    assert (model["category"], model["state"]) == ("embeddings", "held"), "nothing serves it before it is asked to"
    assert said == model["quantized"]
    assert 0.25 < said["ratio_fp32"] < 0.27
    assert said["measure"] == "cosine"
    assert 0.9 < said["quality"] <= said["quality_mean"] < 1
    shown = octonode(node.home, "models", "show", "minilm-int8").out
    assert f"made of    {parent['reference']}@1.4.0, to INT8" in shown
    assert f"derived    {parent['manifest']}" in shown
    assert "quality    cosine with the parent's embeddings 0.9" in shown
    assert not any((node.home / "quantizing").glob("*"))
    again = works(node.home, "models", "quantize", "minilm", "--to", "INT8")
    assert again["model"]["root"] == model["root"]
    assert "made before" in again["note"]


def test_both_are_served_and_say_nearly_the_same(node: Daemon, parent: dict[str, Any], made: dict[str, Any]) -> None:
    found = []
    for model in (parent, made["model"]):
        works(node.home, "models", "serve", model["reference"])
        with Client.from_home(node.home) as client:
            answer = client.embed(model["reference"], SENTENCES)
            receipt = verify_receipt(client.receipt(answer.facts.task).receipt)
        assert (receipt.model_root, answer.facts.model_root) == (model["root"], model["root"])
        found.append(vectors_of(answer.result))
    for one, other in zip(*found, strict=True):
        assert 0.9 < sum(x * y for x, y in zip(one, other, strict=True)) < 0.9999, "another model, and a near one"


def test_ctrl_c_leaves_nothing(fleet: Fleet, node: Daemon, parent: dict[str, Any]) -> None:
    verb = begin(fleet, node)
    verb.send_signal(signal.SIGINT)
    assert "Traceback" not in verb.communicate(timeout=60)[1]
    assert verb.returncode == 130
    fleet.until(lambda: not children_in(node.home) and not any((node.home / "quantizing").glob("*")))
    assert "minilm-int4" not in json.dumps(works(node.home, "models", "ls"))


def test_a_killed_daemon_takes_the_child_along(fleet: Fleet, node: Daemon, parent: dict[str, Any]) -> None:
    verb = begin(fleet, node)
    fleet.kill(node)
    assert verb.wait(60) == 5, "UNREACHABLE"
    assert "the connection to the node broke" in verb.communicate()[1]
    fleet.until(lambda: not children_in(node.home))
    assert any((node.home / "quantizing").glob("*"))
    fleet.again(node)
    fleet.until(lambda: not (node.home / "quantizing").exists())
