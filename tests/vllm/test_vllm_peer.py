"""A model in vLLM at A is asked for at C, which holds nothing: the same words, streamed or not, with A's receipt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from octonode.client import AsyncClient
from octonode.testing.daemon import Daemon

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.timeout(900)]
NAME = "smollm2-safetensors"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
LOAD_SECONDS = 500


def publish(home: Path, model: Path) -> None:
    environment = {"OCTONODE_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    for words in (
        ("models", "add", str(model), "--name", NAME, "--version", "1.0.0", "--licence", "Apache-2.0"),
        ("models", "publish", NAME),
        ("models", "serve", NAME),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "octonode.cli.main", *words, "--json"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr


def complete(api: str, model: str) -> Any:
    client = openai.OpenAI(base_url=f"{api}/v1", api_key="none", max_retries=0, timeout=300)
    return client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=16)  # type: ignore[arg-type]


def stream(api: str, model: str) -> str:
    client = openai.OpenAI(base_url=f"{api}/v1", api_key="none", max_retries=0, timeout=300)
    chunks = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        temperature=0,
        max_tokens=16,
        stream=True,  # type: ignore[arg-type]
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def connected(asker: Daemon, provider: Daemon) -> None:
    async with AsyncClient.from_home(asker.home) as client:
        while provider.peer_id not in {peer.peer_id for peer in await client.peers() if peer.connected}:
            await trio.sleep(0.1)


async def test_a_peer_answers_with_vllm(tmp_path: Path, model: Path, python: str) -> None:
    settings = {
        "OCTONODE_ENGINES_PYTHONS": f"vllm={python}",
        "OCTONODE_ENGINES_CONTEXT_TOKENS": "512",
        "OCTONODE_ENGINES_LOAD_TIMEOUT_SECONDS": str(LOAD_SECONDS),
        "OCTONODE_VLLM_DTYPE": "bfloat16",
        "OCTONODE_VLLM_ENFORCE_EAGER": "true",
        "PATH": os.environ["PATH"],
    }
    async with (
        Daemon(tmp_path / "A", "--public", "--engine", "vllm", name="A", environment=settings) as a,
        Daemon(tmp_path / "C", "--bootstrap", a.address, name="C") as c,
    ):
        await trio.to_thread.run_sync(publish, tmp_path / "A", model)
        with trio.fail_after(LOAD_SECONDS):
            await a.wait_for("model", state="serving")
            await connected(c, a)
        reference = f"{a.peer_id}/{NAME}"
        here = await trio.to_thread.run_sync(complete, a.api, reference)
        there = await trio.to_thread.run_sync(complete, c.api, reference)
        streamed = await trio.to_thread.run_sync(stream, c.api, reference)
        assert "Paris" in here.choices[0].message.content
        assert there.choices[0].message.content == here.choices[0].message.content == streamed
        assert there.usage.completion_tokens > 0
        assert there.model_extra["octonode"]["provider"] == a.peer_id
        assert there.model_extra["octonode"]["verified"] is True
