"""The main job on the real model: publish on A, fetch and serve on B, ask through C, the bootstrap D gone before."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from octonode.client import AsyncClient
from octonode.protocol.receipt import verify_receipt
from octonode.testing.daemon import Daemon

NAME = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
STEP_SECONDS = 120
FETCH_BYTES_PER_SECOND = 12_000_000
"""A's upload is held back so that a kill at 60 MB comes four seconds into the fetch, after two groups were synced."""


def octonode(home: Path, *arguments: str) -> Any:
    """The real command line, with --json."""
    environment = {"OCTONODE_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "octonode.cli.main", *arguments, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def connected_to(node: Daemon, *others: Daemon) -> None:
    async with AsyncClient.from_home(node.home) as client:
        while not {other.peer_id for other in others} <= {p.peer_id for p in await client.peers() if p.connected}:
            await trio.sleep(0.1)


async def fetch_with_a_kill(home: Path, *flags: str) -> tuple[Daemon, int, dict[str, Any]]:
    """Start B, kill -9 it in the middle of its fetch, start it again. Bytes it had, and its last event."""
    async with Daemon(home, *flags, name="B") as first:
        with trio.fail_after(STEP_SECONDS):
            while True:
                event = await first.wait_for("model", state="fetching")
                latest = [e for e in first.events if e.get("event") == "model" and e["state"] == "fetching"][-1]
                if 60_000_000 < latest["done_bytes"] < latest["total_bytes"]:
                    break
                assert event
                await trio.sleep(0.02)
        first.kill()
        await first.wait()
    return Daemon(home, *flags, name="B"), latest["done_bytes"], latest


@pytest.mark.model
@pytest.mark.process
@pytest.mark.timeout(600)
async def test_a_question_is_answered_by_processes_that_found_each_other(tmp_path: Path, smollm2: Path) -> None:
    slow = {"OCTONODE_GATEWAY_UPLOAD_BYTES_PER_SECOND_MAX": str(FETCH_BYTES_PER_SECOND)}
    async with (
        Daemon(tmp_path / "D", name="D") as d,
        Daemon(tmp_path / "A", "--bootstrap", d.address, name="A", environment=slow) as a,
    ):
        added = await trio.to_thread.run_sync(
            lambda: octonode(
                a.home, "models", "add", str(smollm2), "--name", NAME, "--version", "1.0.0", "--licence", "Apache-2.0"
            )
        )
        published = await trio.to_thread.run_sync(lambda: octonode(a.home, "models", "publish", NAME))
        reference, root = f"{a.peer_id}/{NAME}", added["model"]["root"]
        assert published["model"]["root"] == root == octonode(a.home, "models", "cid", str(smollm2))["root"]
        total = smollm2.stat().st_size
        flags = ("--bootstrap", d.address, "--public", "--trust", a.peer_id, "--model", reference, "--engine", "llama")
        second, had, _ = await fetch_with_a_kill(tmp_path / "B", *flags)
        async with second as b, Daemon(tmp_path / "C", "--bootstrap", d.address, name="C") as c:
            with trio.fail_after(STEP_SECONDS):
                fetched = await b.wait_for("fetched")
                await b.wait_for("model", state="serving")
            assert set(fetched["bytes_by_source"]) == {f"gateway:{a.peer_id}"}
            assert 0 < sum(fetched["bytes_by_source"].values()) <= total - had + 64 * 1024 * 1024 + 4096
            assert sum(fetched["bytes_by_source"].values()) < total
            with trio.fail_after(STEP_SECONDS):
                for node, others in ((a, (b, c)), (b, (a, c)), (c, (a, b))):
                    await connected_to(node, *others)
            assert await d.stop() == 0
            await ask_and_compare(b, c, reference, root)


async def ask_and_compare(b: Daemon, c: Daemon, reference: str, root: str) -> None:
    """An unchanged OpenAI client at C gets what B's idle worker gives, streamed or not, with a receipt of B."""
    expected = await trio.to_thread.run_sync(lambda: complete(b.api, reference))
    whole = await trio.to_thread.run_sync(lambda: complete(c.api, reference))
    streamed, facts = await trio.to_thread.run_sync(lambda: stream(c.api, reference))
    assert expected.choices[0].message.content
    assert whole.choices[0].message.content == expected.choices[0].message.content == streamed
    assert whole.usage is not None
    assert expected.usage is not None
    assert whole.usage.completion_tokens == expected.usage.completion_tokens > 0
    ours = whole.model_extra["octonode"]
    assert ours["provider"] == facts["provider"] == b.peer_id
    assert ours["verified"] is True
    assert facts["verified"] is True
    async with AsyncClient.from_home(c.home) as client:
        stored = await client.receipt(ours["task"])
        tiers = {peer.peer_id: peer.tier for peer in await client.peers()}
    receipt = verify_receipt(stored.receipt)
    assert receipt.provider == b.peer_id
    assert receipt.asker == c.peer_id
    assert receipt.model_root == root
    assert receipt.tokens_out == whole.usage.completion_tokens
    assert receipt.request == hashlib.sha256(stored.request_header).digest()
    assert tiers[b.peer_id] in ("edge", "consumer", "prosumer", "enterprise")


def complete(api: str, model: str) -> Any:
    client = openai.OpenAI(base_url=f"{api}/v1", api_key="none", max_retries=0, timeout=120)
    return client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=24)  # type: ignore[arg-type]


def stream(api: str, model: str) -> tuple[str, dict[str, Any]]:
    client = openai.OpenAI(base_url=f"{api}/v1", api_key="none", max_retries=0, timeout=120)
    text = ""
    facts: dict[str, Any] = {}
    make: Callable[..., Any] = client.chat.completions.create
    for chunk in make(model=model, messages=QUESTION, temperature=0, max_tokens=24, stream=True):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        facts = (chunk.model_extra or {}).get("octonode") or facts
    return text, facts
