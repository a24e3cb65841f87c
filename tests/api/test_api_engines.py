"""`/api/v1/engines` and the verbs on top of it: what is shown, and what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from typer.testing import CliRunner

from octonode.api.schema.engines import LoadedModel, SkillSpeed, Speed, list_engines, measure_model
from octonode.cli.engines import _figures, _loaded_table
from octonode.cli.main import app
from octonode.client import Client
from octonode.errors import OctonodeError
from octonode.testing.faces import Stage, home_of


async def test_engines_are_listed_and_loaded_models_measured_anew(tmp_path: Path) -> None:
    stage = Stage()
    async with stage.run():
        home = home_of(stage, tmp_path)

        def ask() -> None:
            with Client.from_home(home) as client:
                assert client.do(list_engines()) == stage.engines.found
                assert client.do(measure_model("p/m")).reference == "p/m"
                with pytest.raises(OctonodeError) as caught:
                    client.do(measure_model("p/other"))
                assert caught.value.code == "MODEL_NOT_FOUND"

        await trio.to_thread.run_sync(ask)
    assert stage.engines.measured == ["p/m", "p/other"]


async def test_the_command_line_shows_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    async with stage.run():
        monkeypatch.setenv("OCTONODE_HOME", str(home_of(stage, tmp_path)))

        def run(*arguments: str) -> str:
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, done.output
            return done.stdout

        text = await trio.to_thread.run_sync(run, "engines")
        found = json.loads(await trio.to_thread.run_sync(run, "bench", "local", "--json"))
    assert "llama" in text
    assert "140.0/s" in text
    assert found["loaded"][0]["reference"] == "p/m"


def test_what_was_not_measured_is_said_and_not_shown_as_nothing() -> None:
    assert _figures(None) == ("-", "not measured", "-")
    assert _figures(Speed(complete=False)) == ("-", "not measured", "-")
    assert _figures(Speed(1, 40.0, 20, 900.0, 400, 75.0, 120.0, 4)) == (
        "40 ms, 900 ms at 400 tokens", "75.0 tokens/s", "120.0 tokens/s at 4",
    )  # fmt: skip
    assert _figures(Speed(skills={"embed": SkillSpeed(10.0, 20.0, 8)})) == ("-", "embed 10.0/s", "20.0/s at 8")
    shown = _loaded_table((LoadedModel("p/m", "r", "llama", "starting", "loading"),))
    assert "starting" in shown
