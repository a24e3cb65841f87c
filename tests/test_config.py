"""Settings: where they come from, which wins, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from octonode import config
from octonode.errors import ConfigError


def load(
    home: Path, toml: str = "", environ: dict[str, str] | None = None, **flags: dict[str, object]
) -> config.Config:
    if toml:
        (home / "config.toml").write_text(toml, encoding="utf-8")
    return config.load(home=home, environ=environ or {}, flags=flags)


def test_defaults_need_no_file(home: Path) -> None:
    found = load(home)
    assert found.api.listen == "127.0.0.1:8808"
    assert found.network.access == "token"
    assert found.home == home


def test_flags_win_over_variables_over_the_file(home: Path) -> None:
    toml = '[network]\nlisten = "file:1"\nregion = "file"\naccess = "open"\n'
    environ = {"OCTONODE_NETWORK_LISTEN": "variable:2", "OCTONODE_NETWORK_REGION": "variable"}
    network = load(home, toml, environ, network={"listen": "flag:3", "region": None}).network
    assert (network.listen, network.region, network.access) == ("flag:3", "variable", "open")


def test_lists_are_arrays_in_files_and_commas_in_variables(home: Path) -> None:
    assert load(home, '[models]\nserve = ["a/b", "c/d"]\n').models.serve == ("a/b", "c/d")
    assert load(home, environ={"OCTONODE_MODELS_SERVE": "a/b, c/d,"}).models.serve == ("a/b", "c/d")


def test_values_of_variables_become_what_the_field_is(home: Path) -> None:
    environ = {
        "OCTONODE_ENGINES_SANDBOX": "false",
        "OCTONODE_ENGINES_PARALLEL": "7",
        "OCTONODE_TASKS_SILENCE_TIMEOUT_SECONDS": "2.5",
    }
    found = load(home, environ=environ)
    assert found.engines.sandbox is False
    assert found.engines.parallel == 7
    assert found.tasks.silence_timeout_seconds == 2.5


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[netwrok]\n", r"config\.toml: there is no section \[netwrok\]; did you mean network\?"),
        ("[network]\nlisen = 1\n", r"\[network\] has no field lisen; did you mean listen\?"),
        ("[network]\nzzz = 1\n", r"has no field zzz; known are listen, "),
        ("network = 1\n", r"network is a section, write \[network\]"),
        ('[network]\naccess = "everybody"\n', r"network\.access = 'everybody': use one of token, peers, open"),
        ("[network]\nlisten = 4808\n", r"network\.listen = 4808: a text is needed"),
        ("[engines]\nparallel = -1\n", r"engines\.parallel = -1: it cannot be negative"),
        ('[engines]\nparallel = "many"\n', r"engines\.parallel = 'many': a whole number is needed"),
        ("[engines]\nparallel = true\n", r"engines\.parallel = True: a whole number is needed"),
        ("[engines]\nparallel = 2.5\n", r"engines\.parallel = 2\.5: a whole number is needed"),
        ("[engines]\nsandbox = 2\n", r"engines\.sandbox = 2: true or false is needed"),
        ("[tasks]\nsilence_timeout_seconds = nan\n", r"silence_timeout_seconds = nan: a number is needed"),
        ("[tasks]\nsilence_timeout_seconds = inf\n", r"silence_timeout_seconds = inf: a number is needed"),
        ("[models]\nserve = [1]\n", r"models\.serve = \[1\]: a list of texts is needed"),
        ("[network\n", r"config\.toml is not TOML: .*line 1"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place_and_a_way_out(home: Path, toml: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(home, toml)


@pytest.mark.parametrize("name", ["OCTONODE_NETWORK_LISEN", "OCTONODE_NETWROK_LISTEN", "OCTONODE_HOEM"])
def test_a_mistyped_variable_does_not_pass_unseen(home: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="environment"):
        load(home, environ={name: "1"})


def test_variables_of_others_and_those_that_are_no_settings_are_left_alone(home: Path) -> None:
    environ = dict.fromkeys(config.ENVIRONMENT_NAMES, "x") | {"PATH": "/bin", "OCTO": "1"}
    assert load(home, environ=environ) == load(home)


def test_a_file_that_is_named_must_exist(home: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        config.load(home=home, environ={}, file=home / "other.toml")


def test_home_is_absolute_and_by_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.home_from({"OCTONODE_HOME": "here"}) == tmp_path / "here"
    assert config.home_from({}) == Path.home() / ".octonode"


@pytest.mark.parametrize(
    ("text", "parts"),
    [("127.0.0.1:8808", ("127.0.0.1", 8808)), ("[::1]:0", ("::1", 0)), ("localhost:65535", ("localhost", 65535))],
)
def test_host_and_port(text: str, parts: tuple[str, int]) -> None:
    assert config.split_host_port(text, "api.listen") == parts


@pytest.mark.parametrize("text", ["", "8808", ":8808", "host:", "host:port", "host:65536", "host:-1"])
def test_what_is_no_host_and_port_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        config.split_host_port(text, "api.listen")


def test_settings_are_shown_without_the_keys(home: Path) -> None:
    shown = config.as_dict(
        load(home, '[api]\nkeys = ["secret-of-the-api", "admin:another"]\n[models]\nhub_token = "secret"\n')
    )
    assert shown["api"]["keys"] == ["***", "***"]
    assert shown["models"]["hub_token"] == "***"
    assert "secret" not in str(shown)
    assert shown["home"] == str(home)


def test_every_setting_is_plain_and_frozen(home: Path) -> None:
    found = load(home)
    for name in config.SECTIONS:
        section = getattr(found, name)
        with pytest.raises(AttributeError):
            setattr(section, next(iter(section.__dataclass_fields__)), None)
