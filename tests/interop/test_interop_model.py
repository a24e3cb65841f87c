"""A real model on a Helia node, answered from by a daemon that knows nothing but that node's address, and handed on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from octonode.ipfs.cid import Cid
from octonode.ipfs.unixfs import UNIXFS_V1_2025
from octonode.models.store import ModelStore
from octonode.testing.daemon import Daemon
from tests.interop.ipfs_peers import HeliaPeer, KuboPeer, Shape
from tests.interop.ipfs_side import sha256_of

PATIENCE_SECONDS = 120
"""From the CID to the answer."""
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


def octonode(home: Path, *arguments: str) -> Any:
    """The real command line, with --json."""
    done = subprocess.run(
        [sys.executable, "-m", "octonode.cli.main", *arguments, "--json"],
        env={"OCTONODE_HOME": str(home), "PATH": os.environ["PATH"], "HOME": str(home)},
        capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answer(api: str, model: str) -> str:
    client = openai.OpenAI(base_url=f"{api}/v1", api_key="none", max_retries=0, timeout=PATIENCE_SECONDS)
    given = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=24)  # type: ignore[arg-type]
    return given.choices[0].message.content or ""


@pytest.mark.model
@pytest.mark.process
@pytest.mark.timeout(300)
async def test_a_model_on_a_helia_node_is_answered_from_and_handed_on(
    helia: HeliaPeer, kubo: KuboPeer, home: Path, tmp_path: Path, smollm2: Path
) -> None:
    shape = Shape(UNIXFS_V1_2025.leaf_bytes, UNIXFS_V1_2025.links_per_node)
    (home / "config.toml").write_text(f'[models]\nipfs_peers = ["{helia.address}"]\n')
    with trio.fail_after(PATIENCE_SECONDS):
        root = await helia.add(smollm2, shape)
    async with Daemon(home) as node:
        with trio.fail_after(PATIENCE_SECONDS):
            reference = f"cid:{root}"
            served = await trio.to_thread.run_sync(
                lambda: octonode(home, "models", "serve", reference, "--allow-unsigned")
            )
            text = await trio.to_thread.run_sync(lambda: answer(node.api, reference))
        with trio.fail_after(PATIENCE_SECONDS):
            await kubo.dial(node.address)
            handed = await kubo.fetch(root, tmp_path / "handed")
    assert served["bytes_by_source"] == {f"bitswap:{helia.peer_id}": smollm2.stat().st_size}
    assert "Paris" in text
    store = ModelStore(home)
    (path,) = store.require(Cid.parse(root)).paths
    store.close()
    assert sha256_of(path) == sha256_of(smollm2) == handed.sha256
