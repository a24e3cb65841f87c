"""`octonode config`, and what a typo in settings meets anywhere: the place, the nearest name, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process.fleet import fails, octonode, works


def test_get_shows_what_is_in_force(tmp_path: Path) -> None:
    told = works(tmp_path / "home", "config", "get")
    assert told["home"] == str(tmp_path / "home")
    assert told["network"]["access"] == "token"
    assert works(tmp_path / "home", "config", "get", "network")["access"] == "token"
    assert octonode(tmp_path / "home", "config", "get", "network.access").out == "token\n"
    told = works(tmp_path / "home", "config", "get", "network.access", extra={"OCTONODE_NETWORK_ACCESS": "open"})
    assert told == "open"


def test_what_get_prints_is_what_check_accepts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    text = octonode(home, "config", "get").out.partition("\n\n")[2]
    (home / "config.toml").write_text(text)
    assert octonode(home, "config", "check").out.startswith("ok: ")
    assert octonode(home, "config", "get").out.partition("\n\n")[2] == text


def test_set_changes_one_line_and_keeps_the_rest(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    file = home / "config.toml"
    file.write_text("# mine\n[network]\nregion = 'eu'  # where I am\n\n[tasks]\nqueue_max = 5\n")
    assert works(home, "config", "set", "network.access", "open") == {
        "name": "network.access", "value": "open", "file": str(file)
    }  # fmt: skip
    assert octonode(home, "config", "set", "tasks.queue_max", "9").out == f"tasks.queue_max = 9 in {file}\n"
    (home / "daemon.json").write_text("{}")  # as while a node runs
    told = octonode(home, "config", "set", "tasks.queue_max", "9").out.splitlines()
    assert "takes it at its next start" in told[1]
    works(home, "config", "set", "api.cors_origins", "https://a.example,https://b.example")
    text = file.read_text()
    assert "# mine\n" in text
    assert "region = 'eu'  # where I am\n" in text
    told = works(home, "config", "get")
    assert (told["network"]["access"], told["network"]["region"], told["tasks"]["queue_max"]) == ("open", "eu", 9)
    assert told["api"]["cors_origins"] == ["https://a.example", "https://b.example"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("network.acess", "open", "did you mean access?"),
        ("netwrk.access", "open", "did you mean network?"),
        ("network", "open", "section.field"),
        ("network.access", "opne", "use one of token, peers, open"),
        ("tasks.queue_max", "many", "a whole number is needed"),
        ("tasks.queue_max", "-1", "cannot be negative"),
        ("gateway.enabled", "maybe", "gateway.enabled"),
        ("api.listen", "8808", "HOST:PORT"),
    ],
)
def test_set_refuses_what_could_not_start(tmp_path: Path, name: str, value: str, says: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text("[network]\nregion = 'eu'\n")
    arguments = ("config", "set", "--", name, value)
    done = octonode(home, *arguments)
    assert done.code == 2
    assert says in done.err
    assert (home / "config.toml").read_text() == "[network]\nregion = 'eu'\n"
    assert sorted(path.name for path in home.iterdir()) == ["config.toml"]  # no half-written file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[network]\nlistn = '0.0.0.0:1'\n", ["[network] has no field listn", "did you mean listen?"]),
        ("[netwrok]\n", ["there is no section [netwrok]", "did you mean network?"]),
        ("[network]\naccess = 'opne'\n", ["network.access = 'opne'", "use one of token, peers, open"]),
        ("[network\n", ["is not TOML", "line 1"]),
        ("network = 3\n", ["network is a section"]),
    ],
)
@pytest.mark.parametrize("verb", [("config", "check"), ("start",), ("run", "m", "hello")])
def test_a_typo_is_told_with_its_place(tmp_path: Path, text: str, says: list[str], verb: tuple[str, ...]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(text)
    message = fails(home, *verb, code="CONFIG", exit_code=2)
    for part in says:
        assert part in message
    assert str(home / "config.toml") in message
    assert not (home / "daemon.json").exists()


@pytest.mark.parametrize("verb", [("config", "check"), ("start",)])
def test_an_address_that_is_none(tmp_path: Path, verb: tuple[str, ...]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text("[api]\nlisten = 'here'\n")
    message = fails(home, *verb, code="CONFIG", exit_code=2)
    assert "api.listen = 'here'" in message
    assert "127.0.0.1:8808" in message


def test_check_takes_any_file(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text("[tasks]\nqueue_max = 3\n")
    assert works(tmp_path / "home", "config", "check", str(file))["ok"] is True
    assert "does not exist" in fails(tmp_path / "home", "config", "check", "none.toml", code="CONFIG", exit_code=2)


def test_a_variable_that_is_no_setting(tmp_path: Path) -> None:
    extra = {"OCTONODE_NETWORK_LISTN": "0.0.0.0:1"}
    message = fails(tmp_path / "home", "config", "get", code="CONFIG", exit_code=2, extra=extra)
    assert "environment" in message
    assert "did you mean listen?" in message


def test_keys_are_not_shown(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text("[api]\nkeys = ['admin:very-secret']\n")
    for arguments in (("config", "get"), ("config", "get", "api.keys"), ("config", "get", "--json")):
        assert "very-secret" not in octonode(home, *arguments).out
