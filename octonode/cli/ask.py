"""A question from the shell: a node to ask, the model brought to it, the answer; and `octonode task send`."""

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
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from octonode import config as settings
from octonode.cli.models import perform, trusting
from octonode.cli.output import JsonFlag, emit, shown, table
from octonode.errors import NotFound, OctonodeError, from_wire

if TYPE_CHECKING:
    from octonode.api.schema import Answer, AnswerFacts, ModelOutcome
    from octonode.client import Client

task_app = typer.Typer(help="Signed tasks, one by one.", no_args_is_help=True, rich_markup_mode=None)

Peer = Annotated[str, typer.Option(help="Ask this peer alone (peer id).")]
MaxTokens = Annotated[int | None, typer.Option(help="At most so many tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0: always the likeliest token.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable at the same provider.")]


def question_of(prompt: str, otherwise: str = "") -> str:
    """What was given, or all of standard input. Raises BAD_REQUEST for nothing; `otherwise` says what else there is."""
    if not prompt and sys.stdin.isatty():
        print("type the question, then Ctrl-D:", file=sys.stderr)
    try:
        question = prompt or sys.stdin.read()
    except UnicodeDecodeError:
        message = "standard input is not UTF-8; convert it first, such as with: iconv -f latin1 -t utf-8"
        raise OctonodeError(message, code="BAD_REQUEST") from None
    if not question.strip():
        raise OctonodeError(
            f"there is no question; give it as the last argument or on standard input{otherwise}", code="BAD_REQUEST"
        )
    return question


def check_file(model: str) -> None:
    """A path that leads nowhere is told as one, before it is looked for as a name."""
    is_path = model.startswith(("/", "./", "../", "~")) or model.endswith((".gguf", ".safetensors", ".onnx"))
    if is_path and not Path(model).exists():
        raise NotFound(f"{model} does not exist; name a model file, or a model as publisher/name")


def ask(client: Client, model: str, question: str, options: dict[str, Any], *, echo: bool) -> Answer:
    """The whole answer; printed piece by piece as it comes when `echo`."""
    with client.chat(model, [{"role": "user", "content": question}], **options) as stream:
        for text in stream:
            if echo:
                print(shown(text), end="", flush=True)
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


def show_facts(facts: AnswerFacts | None, note: str) -> None:
    """Who answered, for a person at a terminal; `note` says what was done."""
    if facts is None or not sys.stderr.isatty():
        return
    who = "this node" if facts.local else facts.provider
    proof = "receipt verified" if facts.verified else f"receipt NOT verified: {facts.reason}"
    unsigned = "" if facts.manifest else ", model UNSIGNED"
    print(f"-- {who}, {note} in {facts.seconds:.1f} s, {proof}{unsigned}", file=sys.stderr)


def explain(client: Client, model: str, peer: str, skill: str, *, as_json: bool) -> None:
    from octonode.api.schema import to_json

    found = client.explain(model, peer=peer, skill=skill)
    rows = [
        (each.rank if each.accepted else "-", "this node" if each.local else each.peer, each.reason) for each in found
    ]
    emit({"candidates": to_json(found)}, as_json=as_json, text=table(("RANK", "PEER", "WHY"), rows))


def served_by(client: Client, model: str) -> str:
    """`model` when somebody serves it; empty for a file, and for a model that has to be loaded here first."""
    return model if not is_path(model) and client.model(model).servers else ""


def is_path(model: str) -> bool:
    """A file, or a folder that is written as a path: `one/two` may be a model's name as well."""
    path = Path(model)
    written_as_path = model.startswith(("/", "./", "../")) or model.endswith("/") or model.count("/") > 1
    return path.is_file() or (written_as_path and path.is_dir())


def load(client: Client, model: str, *, trust: bool, allow_unsigned: bool, quiet: bool) -> str:
    """Serve a file, or a model that nobody serves, from this node; the reference to ask for."""
    from octonode.api.schema import ServeModel

    if is_path(model):
        model = f"file:{Path(model).absolute()}"
    elif not quiet:
        print(f"nobody known here serves {model}; loading it on this node", file=sys.stderr)
    title = f"load {model.rpartition('/')[2]}"

    def act(trusted: bool) -> ModelOutcome:
        request = ServeModel(reference=model, trust=trusted, allow_unsigned=allow_unsigned)
        return perform(client, request, title, quiet=quiet)

    return trusting(act, trust=trust, quiet=quiet).model.reference


def unload(client: Client, reference: str) -> None:
    """A node for one question must not load its model again, and announce it, at each later start."""
    from octonode.api.schema import ServeModel

    perform(client, ServeModel(reference=reference, stop=True), "unload", quiet=True)


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
    """Send one signed TASK_REQUEST and show its receipt.

    Beside the answer, its task id, and with --out the bytes that were signed.
    """
    question = question_of(prompt)
    with a_node() as (client, _):
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "peer": peer, "request": True}
        answer = ask(client, model, question, options, echo=False)
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
        f"model     {facts.manifest or f'cid:{facts.model_root} UNSIGNED'}",
        f"receipt   {proof}{f', saved in {out}' if out else ''}",
        "",
        shown(answer.text),
    ]
    emit({**answer_json(answer), "receipt": receipt.facts}, as_json=as_json, text="\n".join(lines))


def save_receipt(folder: Path, *, request: bytes, receipt: bytes) -> None:
    """request.bin and receipt.bin, as protocols/receipt.md checks them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.bin").write_bytes(request)
    (folder / "receipt.bin").write_bytes(receipt)


@contextmanager
def a_node() -> Iterator[tuple[Client, bool]]:
    """A client of the running daemon, or (True) of one started on this home for as long as the block lasts."""
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
            yield client, False
        return
    with _own_daemon(home) as client:
        yield client, True


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
            raise _why_not_started(process.stderr.read().decode(errors="replace").strip())
        json.loads(line)
        for pipe in (process.stdout, process.stderr):  # an unread pipe would stop the node
            threading.Thread(target=_drain, args=(pipe,), daemon=True).start()
        with Client.from_home(home) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _drain(pipe: IO[bytes]) -> None:
    while pipe.read1(65536):  # type: ignore[attr-defined]  # a BufferedReader, which IO does not say
        pass


def _why_not_started(stderr: str) -> OctonodeError:
    """The error that `start --json` ended with."""
    try:
        said = json.loads(stderr.splitlines()[-1])["error"]
        return from_wire(str(said["code"]), str(said["message"]))
    except (IndexError, ValueError, KeyError, TypeError):
        return OctonodeError(f"no node could be started: {stderr[-500:] or 'it says nothing'}; see: octonode logs")
