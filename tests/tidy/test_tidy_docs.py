"""What the README and the configs say is so: commands, options, exit codes, settings, prerequisites."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from octonode import config, errors
from octonode.cli.main import app
from octonode.engines.servers.vllm import check_settings
from octonode.metrics import Metrics
from octonode.node.seating import server_devices, server_machines
from tests.tidy import tree

README = tree.text(tree.ROOT / "README.md")
MAKEFILE = tree.text(tree.ROOT / "Makefile")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")
VERBS = (
    *("start", "stop", "status", "join", "id", "doctor", "peers", "run", "demo", "testnet", "logs"),
    *(f"models:{verb}" for verb in ("add", "publish", "fetch", "cid", "ls", "show", "rm", "verify", "trust")),
    *("task:send", "config:get", "config:set", "config:check"),
)
"""The verbs scripts rely on; there may be more."""


def command_lines(text: str) -> list[list[str]]:
    """The octonode commands in fenced blocks and in `code`, as words; comments and pipes cut off."""
    blocks = re.findall(r"^```(?:sh|shell|bash|console)\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    found = []
    for line in lines:
        match = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?octonode( .*|$)", line)
        if match:
            words = shlex.split(match[1], comments=True)
            ends = [i for i, word in enumerate(words) if word in ("|", "&", ">", "&&", ";", "2>")]
            found.append(words[: ends[0]] if ends else words)
    return found


def options_of(command: Any) -> set[str]:
    return {"--help", *(option for each in command.params for option in (*each.opts, *each.secondary_opts))}


def resolve(words: list[str]) -> str | None:
    """What is wrong with a command line, None when nothing is: unknown verb, unknown option."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        verb = rest.pop(0)
        if PLACEHOLDER.fullmatch(verb) or verb == "...":
            return None
        if verb not in command.commands:
            return f"octonode {' '.join(words)}: there is no verb {verb}"
        command = command.commands[verb]
    unknown = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)} - options_of(command)
    return f"octonode {' '.join(words)}: unknown {', '.join(sorted(unknown))}" if unknown else None


def documents() -> list[Path]:
    return [path for path in tree.files() if path.suffix == ".md" or path.parts[-2] == "configs"]


@pytest.mark.parametrize("path", documents(), ids=tree.name)
def test_every_octonode_command_in_the_documents_exists(path: Path) -> None:
    assert [wrong for words in command_lines(tree.text(path)) if (wrong := resolve(words))] == []


def test_the_command_check_can_fail() -> None:
    assert command_lines("```sh\nOCTONODE_HOME=x octonode run M 'a b' --peer P | cat  # why\n```") == [
        ["run", "M", "a b", "--peer", "P"]
    ]
    assert resolve(["models", "lst"]) == "octonode models lst: there is no verb lst"
    assert resolve(["run", "M", "--pier"]) == "octonode run M --pier: unknown --pier"
    assert resolve(["run", "M", "prompt", "--peer", "P"]) is None


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_exists_and_is_in_the_readme(verb: str) -> None:
    words = verb.split(":")
    assert resolve(words) is None
    assert re.search(rf"`octonode {' '.join(words)}\b", README), f"README.md does not show `octonode {' '.join(words)}`"


def test_read_verbs_take_json() -> None:
    for words in (["status"], ["id"], ["peers"], ["doctor"], ["models", "ls"], ["models", "show"], ["models", "cid"]):
        assert resolve([*words, "--json"]) is None


def test_help_works_as_a_process() -> None:
    for words in ([], ["models"], ["start"]):
        command = [sys.executable, "-m", "octonode.cli.main", *words, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Usage:" in done.stdout


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    named = set(
        re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b", "\n".join(re.findall(r"`[^`]+`|^```.*?^```", README, re.M | re.S)))
    )
    assert {"demo", "test", "check", "bench"} <= named
    assert named - targets == set()


def test_the_exit_codes_of_the_readme_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", README, re.M)
    names = {code: name.strip() for code, name in rows}
    assert names == {str(int(code)): code.name.lower().replace("_", " ") for code in errors.ExitCode}


def test_prerequisites_are_the_same_in_readme_makefile_and_check() -> None:
    for package in ("libgmp-dev", "python3-dev", "gmp-devel", "python3-devel"):
        for text in (README, MAKEFILE, tree.text(tree.ROOT / "scripts/prerequisites")):
            assert package in text


CONFIGS = [path for path in tree.files() if path.parent.name == "configs" and path.suffix == ".toml"]


def test_there_is_a_config_for_every_tier_and_for_test_networks() -> None:
    assert {path.stem for path in CONFIGS} >= {"edge", "consumer", "prosumer", "enterprise", "testnet"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_explains_itself(path: Path, home: Path) -> None:
    loaded = config.load(home=home, file=path, environ={})
    for text in (loaded.api.listen, loaded.network.listen, loaded.gateway.listen):
        config.split_host_port(text, "listen")
    settings = [line for line in tree.text(path).splitlines() if "=" in line and not line.startswith("#")]
    comments = [line for line in tree.text(path).splitlines() if "#" in line]
    assert settings
    assert len(comments) >= len(settings) / 2


def test_the_recipe_for_two_machines_is_what_a_node_takes(home: Path) -> None:
    text = tree.text(tree.ROOT / "docs" / "vllm-ray.md")
    settings = "\n".join(re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S))
    (home / "recipe.toml").write_text(settings, encoding="utf-8")
    loaded = config.load(home=home, file=home / "recipe.toml", environ={})
    check_settings(loaded.vllm)
    assert (server_machines(loaded)["vllm"], server_devices(loaded)["vllm"]) == (2, 2)
    assert "--role storage" in text
    assert not re.findall(r"--role storage.*--model", text), "such a node keeps models and serves none: it is refused"


def test_prometheus_rules_name_metrics_that_exist() -> None:
    text = tree.text(tree.ROOT / "configs" / "prometheus-rules.yml")
    known = {family.name for family in Metrics().registry.collect()}
    named = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in re.findall(r"\b(octonode_\w+)", text)}
    assert named
    assert {name for name in named if name not in known} == set()


def test_the_changelog_has_an_unreleased_section_with_prose() -> None:
    text = tree.text(tree.ROOT / "CHANGELOG.md")
    match = re.search(r"^## \[?Unreleased\]?\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert match
    assert len(match[1].strip()) > 200


def test_every_dependency_is_explained() -> None:
    record = tree.text(tree.ROOT / "protocols" / "decisions" / "0002-dependencies.md")
    project = tomllib.loads(tree.text(tree.ROOT / "pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    names = {re.split(r"[\[<>=~! ;]", each)[0].lower() for each in wanted}
    assert {name for name in names if f"| {name} |" not in record.lower()} == set()


def test_the_licence_is_apache_2() -> None:
    text = tree.text(tree.ROOT / "LICENSE")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert tomllib.loads(tree.text(tree.ROOT / "pyproject.toml"))["project"]["license"] == "Apache-2.0"
