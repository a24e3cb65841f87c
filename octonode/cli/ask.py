"""`octonode run` and `octonode task send`: a question from the shell, answered by whoever is best."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octonode import config as settings
from octonode.cli.models import perform
from octonode.cli.output import JsonFlag, emit, table
from octonode.errors import OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema import Answer
    from octonode.client import Client

task_app = typer.Typer(help="Signed tasks, one by one.", no_args_is_help=True, rich_markup_mode=None)

Peer = Annotated[str, typer.Option(help="Ask this peer alone (peer id).")]
MaxTokens = Annotated[int | None, typer.Option(help="At most so many tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0: always the likeliest token.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable at the same provider.")]


def register(app: typer.Typer) -> None:
    app.command("run")(run)


def run(
    model: Annotated[
        str, typer.Argument(help="publisher/name, cid:..., a name of a trusted publisher, or a model file.")
    ],
    prompt: Annotated[str, typer.Argument(help="What to ask; from standard input when left out.")] = "",
    peer: Peer = "",
    explain: Annotated[
        bool, typer.Option("--explain", help="Show who might answer and why or why not; ask nobody.")
    ] = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    trust: Annotated[bool, typer.Option("--trust", help="Trust the publisher without asking.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask a model and stream the answer. Served by a peer if one serves it, else fetched and loaded here.

    Without a running daemon a node is started for this one question.
    """
    with a_node() as client:
        reference = _reference(client, model, trust=trust, quiet=as_json)
        if explain:
            _explain(client, reference, peer, as_json=as_json)
            return
        question = prompt or sys.stdin.read()
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "peer": peer}
        answer = ask(client, reference, question, options, echo=not as_json)
        if as_json:
            emit(answer_json(answer), as_json=True, text="")
        else:
            _show_facts(answer)


def ask(client: Client, model: str, question: str, options: dict[str, Any], *, echo: bool) -> Answer:
    """The whole answer; printed piece by piece as it comes when `echo`."""
    with client.chat(model, [{"role": "user", "content": question}], **options) as stream:
        for text in stream:
            if echo:
                print(text, end="", flush=True)
    if echo:
        print(flush=True)
    return stream.result


def answer_json(answer: Answer) -> dict[str, Any]:
    from octonode.api.schema import to_json

    return {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        **({"octonode": to_json(answer.facts)} if answer.facts else {}),
    }


def _show_facts(answer: Answer) -> None:
    facts = answer.facts
    if facts is None or not sys.stderr.isatty():
        return
    who = "this node" if facts.local else facts.provider
    proof = "receipt verified" if facts.verified else f"receipt NOT verified: {facts.reason}"
    print(f"-- {who}, {answer.tokens_out} tokens in {facts.seconds:.1f} s, {proof}", file=sys.stderr)


def _explain(client: Client, model: str, peer: str, *, as_json: bool) -> None:
    from octonode.api.schema import to_json

    found = client.explain(model, peer=peer)
    rows = [
        (each.rank if each.accepted else "-", "this node" if each.local else each.peer, each.reason) for each in found
    ]
    emit({"candidates": to_json(found)}, as_json=as_json, text=table(("RANK", "PEER", "WHY"), rows))


def _reference(client: Client, model: str, *, trust: bool, quiet: bool) -> str:
    """What to ask for. A file, or a model that nobody serves, is loaded here first."""
    from octonode.api.schema import ServeModel

    if Path(model).is_file():
        model = f"file:{Path(model).absolute()}"
    elif client.model(model).servers:
        return model
    outcome = perform(client, ServeModel(reference=model, trust=trust), f"load {model.rpartition('/')[2]}", quiet=quiet)
    return outcome.model.reference


@task_app.command("send")
def send(
    model: Annotated[str, typer.Argument(help="publisher/name or cid:...")],
    prompt: Annotated[str, typer.Argument(help="What to ask; from standard input when left out.")] = "",
    peer: Peer = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for request.bin and receipt.bin, the bytes as signed.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Send one signed TASK_REQUEST and show its task id, its answer and its receipt."""
    with a_node() as client:
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "peer": peer, "request": True}
        answer = ask(client, model, prompt or sys.stdin.read(), options, echo=False)
        facts = answer.facts
        assert facts is not None
        receipt = client.receipt(facts.task)
    if out is not None:
        save_receipt(out, request=facts.request, receipt=receipt.receipt)
    proof = "verified" if facts.verified else f"NOT verified: {facts.reason}"
    lines = [
        f"task      {facts.task}",
        f"provider  {facts.provider}{' (this node)' if facts.local else ''}",
        f"tokens    {answer.tokens_in} in, {answer.tokens_out} out",
        f"receipt   {proof}{f', saved in {out}' if out else ''}",
        "",
        answer.text,
    ]
    emit({**answer_json(answer), "receipt": receipt.facts}, as_json=as_json, text="\n".join(lines))


def save_receipt(folder: Path, *, request: bytes, receipt: bytes) -> None:
    """request.bin and receipt.bin, as protocols/receipt.md checks them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.bin").write_bytes(request)
    (folder / "receipt.bin").write_bytes(receipt)


@contextmanager
def a_node() -> Iterator[Client]:
    """A client of the running daemon, or of one started on this home for as long as the block lasts."""
    from octonode.client import Client

    home = settings.home_from(os.environ)
    try:
        client = Client.from_home(home)
        client.node()
    except OctonodeError as error:
        if error.code != "NOT_RUNNING":
            raise
    else:
        with client:
            yield client
        return
    with _own_daemon(home) as client:
        yield client


@contextmanager
def _own_daemon(home: Path) -> Iterator[Client]:
    from octonode.client import Client

    ports = ["--api", "127.0.0.1:0", "--p2p", "127.0.0.1:0", "--gateway", "127.0.0.1:0"]
    command = [sys.executable, "-m", "octonode.cli.main", "start", "--json", *ports]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise OctonodeError(
                f"no node could be started: {process.stderr.read().decode(errors='replace').strip()[-500:]}"
            )
        json.loads(line)
        threading.Thread(target=process.stdout.read, daemon=True).start()  # an unread pipe would stop the node
        with Client.from_home(home) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
