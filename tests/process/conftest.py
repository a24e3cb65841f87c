"""Daemons shared by the tests of a module; a small model that the scripted engine runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from octonode.testing.testnet import write_scripted_model
from tests.process.fleet import Fleet, running_fleet


@pytest.fixture(scope="module")
def fleet(lasting_children: set[int]) -> Iterator[Fleet]:
    with running_fleet(lasting_children) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the homes of a module's daemons."""
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of the scripted format, 3 MiB."""
    return write_scripted_model(tmp_path_factory.mktemp("models") / "words.model", seed=1)
