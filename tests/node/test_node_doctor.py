"""What `doctor` says of a machine: each check fails for its reason and names the fix."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from octonode.api.schema import Finding
from octonode.config import ApiConfig, Config
from octonode.hardware import probe
from octonode.identity import load_or_create
from octonode.node.doctor import examine_machine

Examine = Callable[..., dict[str, Finding]]


@pytest.fixture
def examine(home: Path) -> Examine:
    """The findings of a machine by the name of the check."""

    def run(*, daemon_runs: bool = True, config: Config | None = None) -> dict[str, Finding]:
        found = examine_machine(config or Config(home), daemon_runs=daemon_runs)
        assert len({each.check for each in found}) == len(found)
        assert all(each.fix for each in found if each.status != "ok"), "a fault without a fix helps nobody"
        return {each.check: each for each in found}

    return run


def test_each_thing_is_looked_at(examine: Examine) -> None:
    assert list(examine()) == ["key", "disk", "memory", "engines", "driver"]
    alone = examine(daemon_runs=False)
    assert list(alone)[5:] == ["port api", "port network", "port gateway", "daemon"]
    assert alone["daemon"].fix == "octonode start"


def test_a_disk_with_little_room(examine: Examine, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert str(home) in examine()["disk"].summary
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1_000_000_000))
    found = examine()["disk"]
    assert (found.status, "1.0 GB free" in found.summary, "OCTONODE_HOME" in found.fix) == ("warning", True, True)


def test_a_home_that_is_not_there_yet(examine: Examine, tmp_path: Path) -> None:
    found = examine(config=Config(tmp_path / "not" / "yet"))
    assert "GB free" in found["disk"].summary
    assert "made at the first start" in found["key"].summary
    assert not (tmp_path / "not").exists(), "looking changes nothing"


@pytest.mark.parametrize(("available_bytes", "status"), [(500_000_000, "warning"), (8_000_000_000, "ok")])
def test_memory(examine: Examine, monkeypatch: pytest.MonkeyPatch, available_bytes: int, status: str) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=available_bytes))
    assert examine()["memory"].status == status


def test_a_machine_without_an_engine(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "llama" in examine()["engines"].summary
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = examine()["engines"]
    assert (found.status, found.fix) == ("warning", "pip install 'octonode[llama]'")


def test_a_driver_that_does_not_answer(examine: Examine, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert examine()["driver"].status == "ok"
    hardware = probe.probe(home)
    told = replace(hardware, gpus=(), problems=("the NVIDIA driver is not loaded",))
    monkeypatch.setattr(probe, "probe", lambda place: told)
    found = examine()["driver"]
    assert (found.status, found.summary) == ("warning", "the NVIDIA driver is not loaded")


def test_a_key_that_others_can_read(examine: Examine, home: Path) -> None:
    load_or_create(home)
    assert examine()["key"].status == "ok"
    (home / "node.key").chmod(0o644)
    found = examine()["key"]
    assert (found.status, found.fix) == ("failed", f"chmod 600 {home / 'node.key'}")


def test_a_port_that_is_taken(examine: Examine, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        found = examine(daemon_runs=False, config=Config(home, api=ApiConfig(listen=place)))["port api"]
        assert (found.status, place in found.summary) == ("failed", True)
        assert "--api 127.0.0.1:0" in found.fix
    freed = examine(daemon_runs=False, config=Config(home, api=ApiConfig(listen=place)))["port api"]
    assert freed.status == "ok"
