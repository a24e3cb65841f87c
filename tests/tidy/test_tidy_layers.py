"""The layers and contracts of pyproject.toml hold, can fail, and name the modules that they should."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tidy import tree

SANS_IO = {
    "octonode.protocol",
    "octonode.hardware.tiers",
    "octonode.network.addresses",
    "octonode.network.peerbook",
    "octonode.network.fanout_messages",
    "octonode.ipfs.cid",
    "octonode.ipfs.unixfs",
    "octonode.ipfs.car",
    "octonode.ipfs.dagpb",
    "octonode.models.manifest",
    "octonode.models.reference",
    "octonode.models.formats",
    "octonode.models.headers",
    "octonode.models.requirements",
    "octonode.models.claims",
    "octonode.engines.frames",
    "octonode.engines.plan",
    "octonode.tasks.task",
    "octonode.tasks.admission",
    "octonode.tasks.routing",
}
"""The least that stays pure; pyproject.toml may name more."""

CHANCE = re.compile(
    r"\b(os\.urandom|secrets\.|uuid\.uuid[14]|datetime\.now|datetime\.utcnow)\b|^\s*(import|from) secrets\b", re.M
)


def contracts() -> list[dict[str, object]]:
    settings = tomllib.loads(tree.text(tree.ROOT / "pyproject.toml"))
    found = settings["tool"]["importlinter"]["contracts"]
    assert isinstance(found, list)
    return found


def sans_io_modules() -> set[str]:
    (contract,) = [each for each in contracts() if str(each["name"]).startswith("sans-IO")]
    modules = contract["source_modules"]
    assert isinstance(modules, list)
    return set(modules)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    done = lint(tree.ROOT)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its settings, to be broken."""
    folder = tmp_path_factory.mktemp("layers")
    for path in tree.python_files("octonode"):
        target = folder / tree.name(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(tree.ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("octonode/ids.py", "import octonode.config", "layers"),
        ("octonode/engines/plan.py", "import octonode.models.reference", "layers"),
        ("octonode/protocol/codec.py", "import time", "sans-IO"),
        ("octonode/models/manifest.py", "import octonode.network.host", "sans-IO"),
        ("octonode/tasks/routing.py", "def f():\n    import random", "sans-IO"),
        ("octonode/network/hello.py", "import libp2p.host", "libp2p only"),
        ("octonode/cli/network.py", "import multiaddr", "libp2p only"),
        ("octonode/engines/supervisor.py", "import xllamacpp", "engine libraries"),
        ("octonode/tasks/provider.py", "import octonode.engines.adapters.llama", "adapters only"),
        ("octonode/engines/supervisor.py", "import octonode.engines.worker", "nothing imports the worker"),
        ("octonode/cli/models.py", "import octonode.testing.network", "testing is for"),
    ],
)
def test_each_contract_can_fail(copy: Path, module: str, statement: str, contract: str) -> None:
    path = copy / module
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n\n{statement}\n", encoding="utf-8")
    try:
        done = lint(copy)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode != 0
    assert re.search(rf"^{re.escape(contract)}.*(\n.*)?BROKEN", done.stdout, re.M), done.stdout


def test_the_sans_io_modules_are_those_agreed_on() -> None:
    missing = SANS_IO - sans_io_modules()
    assert missing == set()


def test_sans_io_modules_draw_no_chance_and_read_no_clock_by_other_names() -> None:
    """What an import contract cannot see: `os.urandom` needs `os`, which paths need too."""
    found = []
    for path in tree.python_files("octonode"):
        module = tree.name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if not any(module == each or module.startswith(f"{each}.") for each in sans_io_modules()):
            continue
        found += [f"{module}: {match[0].strip()}" for match in CHANCE.finditer(tree.text(path))]
        imports = [node for node in ast.walk(ast.parse(tree.text(path))) if isinstance(node, ast.ImportFrom)]
        found += [
            f"{module}: from os import" for node in imports if node.module == "os" and "urandom" in ast.unparse(node)
        ]
    assert found == []
