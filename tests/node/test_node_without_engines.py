"""Engines are extras: a node is built, asks and routes on a machine that has none of their libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = """
import sys
from pathlib import Path

ENGINES = {
    "xllamacpp", "llama_cpp", "torch", "vllm", "onnxruntime", "onnxruntime_genai", "transformers", "diffusers",
    "rapidocr", "faster_whisper", "sentence_transformers",
}


class Missing:
    \"\"\"As where the library is not installed.\"\"\"

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ENGINES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


import importlib.util

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ENGINES else real(name, package)
sys.meta_path.insert(0, Missing())

import trio
from octonode import client, config, identity
from octonode.cli import main
from octonode.engines.select import available_engines
from octonode.node.composition import build
from octonode.node.events import Events


async def make():
    home = Path(sys.argv[1])
    node = build(config.load(home=home), identity.load_or_create(home), events=Events(), stopping=trio.Event())
    return node.view.announced().engines


assert trio.run(make) == (), "it announces no engine"
assert available_engines() == ("scripted",)
print("built")
"""

LIGHT = """
import sys
import octonode.node.composition, octonode.cli.main, octonode.client

heavy = {"xllamacpp", "llama_cpp", "torch", "vllm", "onnxruntime", "numpy", "octonode.engines.adapters"}
print(sorted(heavy & set(sys.modules)))
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.process
def test_a_node_is_built_without_any_engine_library(home: Path) -> None:
    assert python(BUILD, str(home)) == "built"


@pytest.mark.process
def test_the_daemon_imports_no_engine_where_they_are_installed() -> None:
    assert python("import xllamacpp; print('there')") == "there", "else the next line says nothing"
    assert python(LIGHT) == "[]"
