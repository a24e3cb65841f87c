"""Any OpenAI client works unchanged: point its base URL at your own node.

    pip install openai
    octonode start                          # in another terminal
    python examples/openai_client.py [MODEL]

On this machine no key is needed; the client wants one, so it gets any text.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from openai import OpenAI


def base_url() -> str:
    """Where the node of this machine listens; usually just http://127.0.0.1:8808/v1."""
    home = Path(os.environ.get("OCTONODE_HOME") or Path.home() / ".octonode")
    daemon = home / "daemon.json"
    api = json.loads(daemon.read_text())["api"] if daemon.exists() else "http://127.0.0.1:8808"
    return f"{api}/v1"


def first_that_chats(client: OpenAI) -> str:
    """Of the models known here; others read pictures, embed or speak."""
    for model in client.models.list():
        facts = (model.model_extra or {}).get("octonode", {})
        if facts.get("servers") and "chat" in facts.get("skills", ()):
            return model.id
    sys.exit("nobody serves a model that chats; serve one: octonode models serve PUBLISHER/NAME")


def main() -> None:
    client = OpenAI(base_url=base_url(), api_key="not-needed-here")
    model = sys.argv[1] if len(sys.argv) > 1 else first_that_chats(client)
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is an octopus? Answer in one sentence."}],
        max_tokens=64,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        facts = (chunk.model_extra or {}).get("octonode")
        if facts:
            print(f"\n\nanswered by {facts['provider']}, receipt {'verified' if facts['verified'] else 'NOT verified'}")
        if chunk.usage:
            print(f"{chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out")


if __name__ == "__main__":
    main()
