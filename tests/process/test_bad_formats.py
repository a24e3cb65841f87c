"""A publisher may sign anything: what is hostile in a model's files reaches no engine of those who fetch it."""

from __future__ import annotations

from pathlib import Path

import pytest

from octonode.identity import load_or_create
from octonode.models import adding
from octonode.models.formats import FormatInfo
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.testing.daemon import Daemon
from tests.models import samples
from tests.process.fleet import Fleet, fails, works

pytestmark = pytest.mark.process

HOSTILE = {
    "overlap": {"m.gguf": samples.gguf({}, [samples.tensor("a", [64], 0), samples.tensor("b", [64], 0)], 512)},
    "template": {"m.gguf": samples.gguf({"tokenizer.chat_template": "{{ ''.__class__.__mro__ }}"})},
    "pickle": {"m.gguf": samples.gguf(), "vocab.txt": b"cos\nsystem\n(S'id'\ntR."},
    "engine": samples.tensorrt(),
}
"""Name of a model -> its files, and what is wrong with them."""
REASONS = {"overlap": "overlap", "template": "chat template", "pickle": "Python pickle", "engine": "TensorRT engine"}


def sign_hostile(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put them into the store of a node that checks nothing, under its own signature."""

    def take(items: list[tuple[str, Path]], **_: object) -> FormatInfo:
        return FormatInfo("gguf", files={name: "gguf" if name.endswith(".gguf") else "other" for name, _ in items})

    monkeypatch.setattr(adding, "inspect_paths", take)
    home.mkdir(parents=True)
    library = Library(ModelStore(home), TrustTable(home), load_or_create(home))
    for name, contents in HOSTILE.items():
        given = samples.write(folder / name, contents)
        library.add(given if len(contents) > 1 else given / "m.gguf", name=name)
    library.store.close()


def test_a_hostile_model_of_a_trusted_publisher_reaches_no_engine(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_hostile(tmp_path / "a", tmp_path / "given", monkeypatch)
    a = fleet.start(tmp_path / "a", "--public")
    b = fleet.start(tmp_path / "b", "--bootstrap", a.address, "--trust-all")
    fleet.met(b, a)
    for name, reason in REASONS.items():
        reference = f"{a.peer_id}/{name}"
        assert works(b.home, "models", "fetch", reference)["model"]["complete"]
        message = fails(b.home, "models", "serve", reference, code="FORMAT_REFUSED", exit_code=6)
        assert reason in message
        shown = works(b.home, "models", "show", reference)
        assert reason in shown["inspection"]["refused"]
    fitting = works(b.home, "models", "fit")
    assert [each["reference"] for each in fitting["models"] if not each["refused"]] == []
    assert started(b) == []


def started(node: Daemon) -> list[Path]:
    """Directories of workers: there is one for each that was ever started."""
    return list((node.home / "workers").glob("*"))


def test_what_was_found_is_shown(fleet: Fleet, tmp_path: Path, smollm2: Path) -> None:
    a = fleet.start(tmp_path / "a")
    added = works(a.home, "models", "add", str(smollm2), "--name", "small")
    shown = works(a.home, "models", "show", "small")["inspection"]
    assert (shown["layers"], shown["kv_heads"], shown["parameters"]) == (30, 3, 134_515_008)
    fit = works(a.home, "models", "fit", "small", "--context", "2048")
    rows = {row["machine"]: row for row in fit["models"][0]["rows"]}
    assert rows["edge"]["need_bytes"] == 220_493_056
    assert rows["consumer"]["fits"]
    assert added["model"]["reference"] in fit["fitting"]
