"""What a user reads first: help, version, and errors of the command line itself. All of it without a daemon."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.fleet import fails, octonode

VERBS = (
    *("start", "stop", "status", "logs", "id", "join", "peers", "doctor", "run", "testnet", "demo"),
    *("models", "models add", "models publish", "models fetch", "models serve", "models cid", "models ls"),
    *("models show", "models rm", "models verify", "models trust", "task", "task send"),
    *("task submit", "task list", "task get", "task wait", "task cancel"),
    *("engines", "bench", "bench local"),
    *("models upload", "models uploads", "models export", "models fit", "models gc"),
    *("models fetches", "models pause", "models resume", "models cancel", "models prioritize"),
    *("models pin", "models unpin", "models pins", "models quantize"),
    *("models versions", "models outdated", "models update", "models rollback", "models deprecate"),
    *("config", "config get", "config set", "config check"),
)
README = Path(__file__).resolve().parents[2] / "README.md"
ALLOWED = {"octonode", "typer", "annotated_doc", "shellingham"}  # typer and what it brings


def test_help_loads_nothing_but_typer_and_the_standard_library() -> None:
    """What keeps `octonode --help` below 0.3 s, without measuring time."""
    code = "import sys; before = set(sys.modules); import octonode.cli.main; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    others = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert others <= ALLOWED
    ours = {name for name in loaded if name.startswith("octonode.") and not name.startswith("octonode.cli")}
    assert ours == {"octonode.config", "octonode.config_engines", "octonode.errors"}


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_verb_explains_itself(tmp_path: Path, verb: str) -> None:
    done = octonode(tmp_path / "home", *verb.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: octonode")
    described = re.split(r"\n\n", done.out)[1]
    assert described.strip(), verb
    listed = done.out.partition("Commands:")[2]
    assert [line for line in listed.splitlines() if line.endswith("...")] == []
    assert not (tmp_path / "home").exists()


def test_help_lists_every_verb_and_so_does_the_readme(tmp_path: Path) -> None:
    listed: set[str] = set()
    for group in ("", "models", "task", "config", "bench"):
        text = octonode(tmp_path, *group.split(), "--help").out.partition("Commands:\n")[2]
        listed |= {f"{group} {line.split()[0]}".strip() for line in text.splitlines() if line.startswith("  ")}
    assert listed == set(VERBS)
    table = re.findall(r"^\| `octonode ([a-z]+(?: [a-z]+)?)", README.read_text(encoding="utf-8"), re.M)
    assert {*table, "models", "task", "config", "bench"} == set(VERBS)


def test_every_read_verb_takes_json(tmp_path: Path) -> None:
    reads = ("status", "id", "peers", "doctor", "logs", "models ls", "models show", "models cid", "models trust",
             "models verify", "config get", "config check")  # fmt: skip
    for verb in reads:
        assert "--json" in octonode(tmp_path, *verb.split(), "--help").out, verb


def test_version(tmp_path: Path) -> None:
    done = octonode(tmp_path, "--version")
    assert done.code == 0
    assert re.fullmatch(r"octonode \d+\.\d+\.\d+\n", done.out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["statsu"], "Did you mean 'status'"),
        (["run"], "Missing argument"),
        (["start", "--apii", "x"], "--api"),
        (["run", "m", "q", "--max-tokens", "many"], "--max-tokens"),
        (["models", "lss"], "ls"),
    ],
)
def test_a_wrong_command_line_is_told_with_2(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = octonode(tmp_path / "home", *arguments)
    assert done.code == 2
    assert says in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    "verb",
    ["stop", "status", "peers", "join octonode:x", "models ls", "models show m", "models fetch m", "models rm m",
     "models verify m", "models trust", "models publish m", "models serve m"],
)  # fmt: skip
def test_what_needs_a_daemon_says_how_to_start_one(tmp_path: Path, verb: str) -> None:
    home = tmp_path / "home"
    message = fails(home, *verb.split(), code="NOT_RUNNING", exit_code=5)
    assert message == f"no node runs in {home}; start one: octonode start"
    done = octonode(home, *verb.split())
    assert (done.code, done.out, done.err) == (5, "", f"octonode: {message}\n")
    assert not home.exists()


def test_id_makes_a_key_once_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = octonode(home, "id")
    assert first.out.startswith("12D3KooW")
    assert (home.stat().st_mode & 0o777, (home / "node.key").stat().st_mode & 0o777) == (0o700, 0o600)
    assert octonode(home, "id", "--json").json == {"peer_id": first.out.strip(), "home": str(home)}


def test_doctor_without_a_daemon_looks_at_the_machine(tmp_path: Path) -> None:
    ports = {f"OCTONODE_{section}_LISTEN": "127.0.0.1:0" for section in ("API", "NETWORK", "GATEWAY")}
    done = octonode(tmp_path / "home", "doctor", "--json", extra=ports)
    checks = {each["check"] for each in done.json["findings"]}
    assert {"key", "disk", "memory", "engines", "driver", "port api", "port network", "port gateway"} <= checks
    assert done.code == 0, done.out
    key = tmp_path / "home" / "node.key"
    octonode(tmp_path / "home", "id")
    key.chmod(0o644)
    seen = octonode(tmp_path / "home", "doctor", extra=ports)
    assert seen.code == 1
    assert f"fix: chmod 600 {key}" in seen.out


def test_there_are_no_logs_before_the_first_start(tmp_path: Path) -> None:
    assert "octonode start" in fails(tmp_path / "home", "logs", code="NOT_FOUND", exit_code=4)


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    """`octonode logs | head -1`: nothing is said on stderr, and the exit code is 0."""
    logs = tmp_path / "home" / "logs"
    logs.mkdir(parents=True)
    (logs / "octonode.log").write_text("2026-11-22T20:43:01.123Z INFO node: a line\n" * 50_000)
    command = f"{sys.executable} -m octonode.cli.main logs -n 50000; echo $? >&2"
    environment = {"OCTONODE_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", f"({command}) | head -1"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "2026-11-22T20:43:01.123Z INFO node: a line\n"
    assert done.stderr == "0\n"
    record = json.loads(octonode(tmp_path / "home", "logs", "-n", "1", "--json").out)
    assert record == {"at": "2026-11-22T20:43:01.123Z", "level": "INFO", "logger": "node", "message": "a line"}
