"""`/api/v1/models/quantize` and the verb on top of it, over a stand-in behind the faces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from typer.testing import CliRunner

from octonode.api.schema import ModelFacts, ModelProgress
from octonode.api.schema.quantizing import (
    QuantizeChoice,
    QuantizeChoices,
    QuantizeModel,
    QuantizeOutcome,
    choices,
    quantize,
)
from octonode.cli.main import app
from octonode.cli.models_quantize import quantized_lines
from octonode.client import Client
from octonode.errors import OctonodeError
from octonode.models.quantized import Quantized
from octonode.testing.faces import Stage, home_of

MADE = Quantized("Q4_0", "p/m@1.0.0", 400_000_000, 100_000_000, 0.125, 0.25, "perplexity", 20.0, 22.0)
FACTS = ModelFacts("p/m-q4_0", "bafy", version="1.0.0", derived_from=("bafyparent",), quantized=MADE)
KNOWN = QuantizeChoices(
    "p/m@1.0.0", "bafy", "gguf", "F16", 10**9,
    (QuantizeChoice("Q4_0", "4 bits", "", 10**8), QuantizeChoice("Q8_0", "8 bits", "llama_cpp is not installed")),
)  # fmt: skip
ASKED = QuantizeModel("p/m", "Q4_0", name="small", measure=False)


async def test_progress_and_then_the_model_with_its_figures(tmp_path: Path) -> None:
    stage = Stage()
    stage.quantizing.outcome = QuantizeOutcome(FACTS, MADE, 1.5, 0, "note")
    stage.quantizing.known = KNOWN
    async with stage.run():
        home = home_of(stage, tmp_path)

        def ask() -> None:
            with Client.from_home(home) as client:
                assert client.do(choices("p/m")) == KNOWN
                with client.stream(quantize(ASKED)) as stream:
                    told = list(stream)
                assert told in ([], [ModelProgress("weights", 1, 2)]), "the latest is told, where there is time"
                assert stream.result.done() == stage.quantizing.outcome

        await trio.to_thread.run_sync(ask)
    assert stage.quantizing.asked == [ASKED]


async def test_refusals_keep_their_code_and_leaving_cancels(tmp_path: Path) -> None:
    stage = Stage()
    stage.quantizing.fault = OctonodeError("no GPU", code="UNSUPPORTED")
    async with stage.run():
        home = home_of(stage, tmp_path)

        def refused() -> None:
            with Client.from_home(home) as client:
                with pytest.raises(OctonodeError) as caught, client.stream(quantize(ASKED)) as stream:
                    list(stream)
                assert caught.value.code == "UNSUPPORTED"
                with pytest.raises(OctonodeError) as caught:
                    client.do(choices("p/m"))
                assert caught.value.code == "MODEL_NOT_FOUND"
                with pytest.raises(OctonodeError) as caught:
                    client.do(choices(""))
                assert caught.value.code == "BAD_REQUEST"

        def leave() -> None:
            with Client.from_home(home) as client, client.stream(quantize(ASKED)) as stream:
                next(iter(stream))

        await trio.to_thread.run_sync(refused)
        stage.quantizing.fault = None
        await trio.to_thread.run_sync(leave)
        with trio.fail_after(30):
            await stage.quantizing.cancelled.wait()


async def test_the_command_line_lists_makes_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    stage.quantizing.outcome = QuantizeOutcome(FACTS, MADE, 1.5, 3, "")
    stage.quantizing.known = KNOWN
    async with stage.run():
        monkeypatch.setenv("OCTONODE_HOME", str(home_of(stage, tmp_path)))

        def run(*arguments: str) -> str:
            done = CliRunner().invoke(app, ["models", "quantize", "p/m", *arguments])
            assert done.exit_code == 0, done.output
            return done.stdout

        listed = await trio.to_thread.run_sync(run, "--list")
        made = await trio.to_thread.run_sync(run, "--to", "Q4_0", "--no-measure", "--publish", "--name", "small")
        value = json.loads(await trio.to_thread.run_sync(run, "--to", "Q4_0", "--json"))
        neither = await trio.to_thread.run_sync(lambda: CliRunner().invoke(app, ["models", "quantize", "p/m"]))
    assert "llama_cpp is not installed" in listed
    assert "Q4_0  yes   4 bits" in listed
    assert "100.0 MB of 400.0 MB, 12.5% of FP32, 25.0% of FP16" in made
    assert "perplexity 20.00 -> 22.00 (+10.0%; lower is better)" in made
    assert "serve it: octonode models serve p/m-q4_0@1.0.0" in made
    assert value["made"]["quality"] == 22.0
    assert value["model"]["derived_from"] == ["bafyparent"]
    assert stage.quantizing.asked[0] == replace(ASKED, publish=True)
    assert isinstance(neither.exception, OctonodeError)
    assert "--list" in neither.exception.message


def test_what_was_not_measured_is_said() -> None:
    assert quantized_lines(None) == []
    plain = Quantized("FP16", "p/m@1.0.0", 10, 10, reason="not asked for")
    assert quantized_lines(plain)[-1] == "  quality    not measured: not asked for"
    near = replace(plain, measure="cosine", quality=0.91, quality_mean=0.95)
    assert quantized_lines(near)[-1] == "  quality    cosine with the parent's embeddings 0.9500, at least 0.9100"
