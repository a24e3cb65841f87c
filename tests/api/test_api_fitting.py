"""What models need, over a real socket, and as the command line shows it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import trio
from typer.testing import CliRunner

from octonode.api.schema.fitting import FitFacts, FitMatrix, FitRow, InspectionFacts, MachineFacts, fit, inspect
from octonode.cli.main import app
from octonode.cli.models_fit import inspection_lines
from octonode.client import Client
from octonode.testing.faces import Stage, home_of
from tests.models import samples


async def test_the_matrix_and_the_inspection_over_http(tmp_path: Path) -> None:
    stage = Stage()
    async with stage.run():
        home = home_of(stage, tmp_path)

        def ask() -> tuple[FitMatrix, InspectionFacts]:
            with Client.from_home(home) as client:
                return client.do(fit("p/m@^1", 4096, 2)), client.do(inspect("cid:x"))

        matrix, found = await trio.to_thread.run_sync(ask)
    assert matrix == stage.fitting.matrix
    assert found == stage.fitting.inspection
    assert stage.fitting.asked == [("p/m@^1", 4096, 2), ("cid:x", 0, 0)]


@pytest.mark.parametrize(
    "query", ["context=0", "context=-1", "context=many", "context=99999999999999999999", "streams=0", "streams=²"]
)
async def test_numbers_that_are_none_are_refused(query: str) -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        answer = await client.get(f"/api/v1/models/fit?{query}")
        without = await client.get("/api/v1/models/inspect")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BAD_REQUEST")
    assert without.status_code == 400


def test_a_file_on_the_command_line_needs_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTONODE_HOME", str(tmp_path / "nowhere"))
    keys = {"llama.block_count": 2, "llama.embedding_length": 64, "llama.attention.head_count": 4}
    path = samples.write(tmp_path, {"m.gguf": samples.gguf(dict(keys), [samples.tensor("a", [32], 0)], 128)}) / "m.gguf"
    done = CliRunner().invoke(app, ["models", "fit", "--file", str(path), "--context", "4096"])
    assert done.exit_code == 0, done.output
    assert "this machine" in done.output
    assert "enterprise    yes   needs 0.5 GB of 80 GB at 4k context" in done.output
    done = CliRunner().invoke(app, ["models", "fit", "--file", str(path), "--json"])
    assert [row["machine"] for row in json.loads(done.output)["models"][0]["rows"]][1:] == [
        "edge",
        "consumer",
        "prosumer",
        "enterprise",
    ]
    both = CliRunner().invoke(app, ["models", "fit", "x", "--file", str(path)])
    assert "not both" in str(both.exception)


def test_all_models_as_a_table() -> None:
    from octonode.cli.models_fit import _of_all, _of_one

    row = FitRow("this machine", False, "needs 14 GB of 8 GB at 64k context", 65536, "vram", 14, 8, smaller=("Q2_K",))
    good = FitFacts("p/good", "r2", rows=(FitRow("this machine", True, "needs 1 GB", 1, "ram", 1, 2),))
    machine = MachineFacts("this machine", "consumer", 8 * 10**9, runs=("gguf",))
    models = (FitFacts("p/m", "r", "gguf", rows=(row,), exact=False), good, FitFacts("p/x", refused="a \x1b pickle"))
    text = _of_all(FitMatrix(machine, models, ("p/good",)))
    assert "8.0 GB VRAM, tier consumer, runs gguf" in text
    assert "1 of 3 run here as it is now" in text
    one = _of_one(FitMatrix(machine, models[:1], ("p/good",)))
    assert "Q2_K of this model would fit" in one
    assert "p/good would run here" in one
    assert "the cache is an estimate" in one


def test_what_an_inspection_looks_like() -> None:
    found = InspectionFacts(
        "p/m", "r", "gguf", "llm", parameters=8_030_261_248, layers=32, kv_heads=8, opens="m.gguf", notes=("a note",),
        weights_bytes=4_920_734_272, made_with="GGUF 3", chat_template=True,
    )  # fmt: skip
    assert inspection_lines(found) == [
        "  category   llm",
        "  parameters 8,030,261,248, 4.9 GB of weights",
        "  network    layers 32, KV heads 8",
        "  made with  GGUF 3",
        "  opens      m.gguf, with a chat template",
        "  note       a note",
    ]
