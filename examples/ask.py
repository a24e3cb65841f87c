"""Ask a model of the network from Python: the text as it comes, then who gave it and what proves it.

    octonode start                          # in another terminal
    python examples/ask.py PUBLISHER/NAME "Why is the sky blue?"

Without arguments: the first model that chats and that somebody serves, and a question of our own.
"""

from __future__ import annotations

import sys

from octonode.client import Client
from octonode.errors import OctonodeError


def main() -> int:
    try:
        with Client.from_home() as client:
            return ask(client, *sys.argv[1:3])
    except OctonodeError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return int(error.row.exit_code)


def ask(client: Client, model: str = "", question: str = "What is an octopus? Answer in one sentence.") -> int:
    if not model:
        served = [each for each in client.models() if each.servers and "chat" in each.skills]
        if not served:
            raise OctonodeError("nobody serves a model that chats; try: octonode models ls", code="MODEL_UNAVAILABLE")
        model = served[0].reference
    with client.chat(model, [{"role": "user", "content": question}], max_tokens=64, temperature=0) as stream:
        for text in stream:
            print(text, end="", flush=True)
    answer = stream.result
    print(f"\n\n{answer.tokens_in} tokens in, {answer.tokens_out} out, ended by {answer.finish_reason}")
    if answer.facts is not None:
        print(f"answered by {answer.facts.provider}{' (this node)' if answer.facts.local else ''}")
        print(
            f"receipt of {len(answer.facts.receipt)} bytes, {'verified' if answer.facts.verified else 'NOT verified'}"
        )
        print(f"kept here: octonode's GET /api/v1/receipts/{answer.facts.task}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
