"""The golden vectors of protocols/manifest.md and gateway.md: the code still makes them, and takes or refuses them."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octonode.errors import OctonodeError
from octonode.ipfs import car
from octonode.ipfs.cid import Cid, CidError
from octonode.ipfs.unixfs import PROFILES, import_stream
from octonode.models.manifest import decode, encode, verify

ROOT = Path(__file__).parents[2]


def _load(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((ROOT / "protocols" / "vectors" / f"{name}.json").read_text(encoding="utf-8"))
    return value


def test_the_files_are_what_the_code_makes() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "vectors.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_cids_and_files() -> None:
    vectors = _load("cid")
    for row in vectors["cids"]:
        assert Cid.parse(row["text"]).raw.hex() == row["hex"]
    assert Cid.parse(vectors["version_0"]["text"]).v1.text == vectors["version_0"]["version_1"]
    for text in vectors["refused"]:
        with pytest.raises(CidError):
            Cid.parse(text)
    for size, root in vectors["files"]["roots"].items():
        assert import_stream(io.BytesIO(random.Random(1).randbytes(int(size)))).root.text == root
    archive = car.read(io.BytesIO(bytes.fromhex(vectors["car"]["hex"])))
    assert [cid.text for cid, block in archive if cid.matches(block)] == vectors["car"]["blocks"]


def test_the_blocks_of_wrapped_leaves() -> None:
    row = _load("cid")["profiles"]["profiles"]["unixfs-v0-2015"]
    profile = PROFILES["unixfs-v0-2015"]
    assert profile.leaf_form.block(bytes.fromhex(row["leaf"]["content"])).hex() == row["leaf"]["hex"]
    content = random.Random(1).randbytes(row["file_node"]["size"])
    cid, block = import_stream(io.BytesIO(content), profile=profile).nodes[0]
    assert (cid.text, block.hex()) == (row["file_node"]["cid"], row["file_node"]["hex"])
    assert cid.matches(block)


def test_the_roots_are_those_of_an_independent_importer() -> None:
    """tests/ipfs/cids.json was made by Helia's importer."""
    published = json.loads((ROOT / "tests" / "ipfs" / "cids.json").read_text())
    ours = _load("cid")
    assert ours["files"]["roots"] == published["random"]["cids"]
    assert ours["big_files"]["roots"] == published["big"]["cids"]
    for name, row in ours["profiles"]["profiles"].items():
        theirs = published["profiles"]["cids"][name]["random"]
        assert row["roots"] == {size: theirs[size] for size in row["roots"]}


def test_the_manifest_is_taken_and_the_others_refused() -> None:
    vectors = _load("manifest")
    signed = verify(bytes.fromhex(vectors["signed"]["hex"]))
    assert signed.cid.text == vectors["manifest"]["cid"]
    assert signed.manifest_bytes.hex() == vectors["manifest"]["hex"]
    assert encode(decode(signed.manifest_bytes)) == signed.manifest_bytes
    assert signed.manifest.publisher == vectors["keys"][0]["peer_id"]
    for row in vectors["refused"]:
        with pytest.raises(OctonodeError) as caught:
            verify(bytes.fromhex(row["hex"]))
        assert caught.value.code == row["code"], row["why"]
