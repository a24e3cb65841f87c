"""A daemon that measures what it loads: its figures at `octonode engines`, in `bench local`, and at its peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from octonode.client import Client
from tests.process.fleet import Fleet, octonode, works

pytestmark = pytest.mark.process
MEASURED = {"OCTONODE_ENGINES_MEASURE_SECONDS": "20", "OCTONODE_ENGINES_SCRIPTED_TOKENS_PER_SECOND": "50"}


def test_a_loaded_model_is_measured_shown_and_announced(fleet: Fleet, place: Path, scripted: Path) -> None:
    node = fleet.start(place / "measured", "--trust-all", "--model", f"file:{scripted}", extra=MEASURED)
    root = fleet.event(node, "model", state="serving")["root"]

    def measured() -> dict[str, object]:
        (loaded,) = works(node.home, "engines")["loaded"]
        return loaded if loaded["speed"] and loaded["speed"]["streams"] else {}

    loaded = fleet.until(measured)
    assert loaded["root"] == root
    speed = loaded["speed"]
    assert speed["tokens_per_second"] == pytest.approx(50, rel=0.3), "the scripted engine's pace"  # type: ignore[index]
    engines = {each["name"]: each for each in works(node.home, "engines")["engines"]}
    assert {"llama", "vllm", "tensorrt-llm", "onnx-embeddings", "diffusers"} <= set(engines)
    assert engines["llama"]["installed"]
    again = works(node.home, "bench", "local")["loaded"][0]["speed"]
    assert again["measured_at_ms"] > speed["measured_at_ms"]  # type: ignore[index]
    text = octonode(node.home, "engines").out
    assert "tokens/s at" in text
    assert "not yet run on NVIDIA hardware" in text

    asker = fleet.start(place / "asker", "--trust-all", "--bootstrap", node.ready.join)
    fleet.met(asker, node)

    def announced() -> float:
        with Client.from_home(asker.home) as client:
            return max((each.tokens_per_second for each in client.explain(f"cid:{root}")), default=0.0)

    assert fleet.until(announced) == pytest.approx(50, rel=0.3)
