"""`octonode models`: what is held here, what peers offer, and everything done with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octonode import config as settings
from octonode.cli.output import JsonFlag, emit, progress, size, table
from octonode.errors import ConfigError, NotFound, OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema import ModelFacts, ModelOutcome, ModelVerb
    from octonode.client import Client

app = typer.Typer(help="Models held here, and those of peers.", no_args_is_help=True, rich_markup_mode=None)

Reference = Annotated[
    str, typer.Argument(help="publisher/name[@range], cid:..., a CID, or a name of a trusted publisher.")
]
TrustFlag = Annotated[bool, typer.Option("--trust", help="Trust the publisher without asking.")]


def _client() -> Client:
    from octonode.client import Client

    return Client.from_home(settings.home_from(os.environ))


def perform(client: Client, verb: ModelVerb, title: str, *, quiet: bool) -> ModelOutcome:
    """Run a long verb with a progress bar and return what it ended with."""
    with progress(title, quiet=quiet) as bar, client.job(verb) as stream:
        for each in stream:
            bar(each.done, each.total, each.stage)
    assert stream.result.outcome is not None
    return stream.result.outcome


def _show(outcome: ModelOutcome, as_json: bool, said: str) -> None:
    from octonode.api.schema import to_json

    text = [said, *describe(outcome.model)]
    text += [f"  from       {source}: {size(count)}" for source, count in outcome.bytes_by_source.items()]
    if outcome.note:
        text.append(f"  note       {outcome.note}")
    emit(to_json(outcome), as_json=as_json, text="\n".join(text))


def describe(model: ModelFacts) -> list[str]:
    """Lines of one model for a person."""
    lines = [
        f"  reference  {model.reference}",
        f"  root       {model.root}",
        f"  manifest   {model.manifest or '-'}",
        f"  size       {size(model.size_bytes)} ({'complete' if model.complete else size(model.have_bytes) + ' here'})",
        f"  format     {model.format or '?'} {model.architecture} {model.quantization}".rstrip(),
        f"  state      {model.state}{' - ' + model.detail if model.detail else ''}",
    ]
    if model.publisher:
        lines.append(f"  publisher  {model.publisher}{' (trusted)' if model.trusted else ' (not trusted)'}")
    return lines


@app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="A GGUF, SafeTensors or ONNX file on this machine.")],
    name: Annotated[str, typer.Option(help="Name under your peer id; from the file when left out.")] = "",
    version: Annotated[str, typer.Option(help="Semantic version.")] = "",
    licence: Annotated[
        str, typer.Option("--licence", "--license", help="SPDX name; from the file when left out.")
    ] = "",
    publish: Annotated[bool, typer.Option("--publish", help="Provide it to the network at once.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Import a file as a model, signed with this node's key."""
    from octonode.api.schema import AddModel

    if not file.is_file():
        raise NotFound(f"{file} is not a file")
    request = AddModel(path=str(file.absolute()), name=name, version=version, license=licence, publish=publish)
    with _client() as client:
        outcome = perform(client, request, f"import {file.name}", quiet=as_json)
    _show(
        outcome,
        as_json,
        "added and published" if publish else "added; hand it to the network: octonode models publish NAME",
    )


@app.command("publish")
def publish(reference: Reference, as_json: JsonFlag = False) -> None:
    """Provide a model held here to the network.

    Its blocks are given to whoever asks, and the DHT learns where they and its name are.
    """
    from octonode.api.schema import PublishModel

    with _client() as client:
        outcome = perform(client, PublishModel(reference), "publish", quiet=as_json)
    _show(outcome, as_json, f"published; {outcome.records} peers hold records of it")


@app.command("fetch")
def fetch(
    reference: Reference,
    trust: TrustFlag = False,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict it.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a model from peers; run again, it resumes.

    Every block is verified before it is written.
    """
    from octonode.api.schema import FetchModel

    with _client() as client:

        def act(trusted: bool) -> ModelOutcome:
            request = FetchModel(reference=reference, trust=trusted, pin=pin)
            return perform(client, request, f"fetch {reference}", quiet=as_json)

        outcome = trusting(act, trust=trust, quiet=as_json)
    _show(outcome, as_json, f"fetched in {outcome.seconds:.1f} s")


def trusting(act: Callable[[bool], ModelOutcome], *, trust: bool, quiet: bool) -> ModelOutcome:
    """`act` without trust in an unknown publisher, and again with it when a person at the terminal says yes."""
    try:
        return act(trust)
    except OctonodeError as error:
        if error.code != "NOT_TRUSTED" or quiet or not _asked(error):
            raise
    return act(True)


def _asked(error: OctonodeError) -> bool:
    """Show an unknown publisher once and ask; False where nobody can answer."""
    if not sys.stdin.isatty():
        return False
    print(error.message, file=sys.stderr)
    return typer.confirm("Trust this publisher from now on?", default=False)


@app.command("serve")
def serve(
    reference: Reference,
    trust: TrustFlag = False,
    engine: Annotated[str, typer.Option(help="Engine adapter; by the format when left out.")] = "",
    stop: Annotated[bool, typer.Option("--stop", help="Unload it and announce it no more.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fetch if need be, load, and serve a model to the network."""
    from octonode.api.schema import ServeModel

    with _client() as client:

        def act(trusted: bool) -> ModelOutcome:
            request = ServeModel(reference=reference, trust=trusted, engine=engine, stop=stop)
            return perform(client, request, f"serve {reference}", quiet=as_json)

        outcome = trusting(act, trust=trust, quiet=as_json)
    _show(outcome, as_json, "stopped serving" if stop else "serving")


@app.command("cid")
def cid(
    file: Annotated[Path, typer.Argument(help="Any file.")],
    as_json: JsonFlag = False,
) -> None:
    """The root CID a file has (profile unixfs-v1-2025). Imports nothing and needs no daemon."""
    from octonode.ipfs.unixfs import import_file

    if not file.is_file():
        raise NotFound(f"{file} is not a file")
    with progress(file.name, quiet=as_json) as bar:
        result = import_file(file, bar)
    emit({"root": str(result.root), "size_bytes": result.size_bytes}, as_json=as_json, text=str(result.root))


@app.command("ls")
def ls(as_json: JsonFlag = False) -> None:
    """Models held here, and those that fresh peers announce."""
    from octonode.api.schema import to_json

    with _client() as client:
        found = client.models()
    rows = [
        (
            each.reference,
            each.state,
            size(each.size_bytes) if each.size_bytes else "?",
            each.quantization or "-",
            len(each.servers),
        )
        for each in found
    ]
    emit(
        {"models": to_json(found)},
        as_json=as_json,
        text=table(("MODEL", "STATE", "SIZE", "QUANTIZATION", "SERVERS"), rows),
    )


@app.command("show")
def show(reference: Reference, as_json: JsonFlag = False) -> None:
    """Everything known of one model."""
    from octonode.api.schema import to_json

    with _client() as client:
        model = client.model(reference)
    extra = [f"  context    {model.context_tokens} tokens", f"  licence    {model.license or '?'}"]
    extra += [f"  served by  {peer}" for peer in model.servers] + [f"  held by    {peer}" for peer in model.holders]
    emit(to_json(model), as_json=as_json, text="\n".join([*describe(model), *extra]))


@app.command("rm")
def rm(
    reference: Reference,
    force: Annotated[bool, typer.Option("--force", help="Even when it is pinned, or the last copy known.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete a model held here."""
    from octonode.api.schema import to_json

    with _client() as client:
        removed = client.remove_model(reference, force=force)
    emit(to_json(removed), as_json=as_json, text=f"removed {removed.reference}, {size(removed.have_bytes)} freed")


@app.command("verify")
def verify(reference: Reference, as_json: JsonFlag = False) -> None:
    """Hash everything held of a model again."""
    from octonode.api.schema import VerifyModel

    with _client() as client:
        outcome = perform(client, VerifyModel(reference), "verify", quiet=as_json)
    _show(outcome, as_json, "verified")


@app.command("trust")
def trust(
    publisher: Annotated[str, typer.Argument(help="Peer id of a publisher; the list when left out.")] = "",
    alias: Annotated[
        str, typer.Option("--alias", "--note", help="Your own name for it; `ALIAS/model` works as a reference.")
    ] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Trust it no more.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Publishers whose models are taken without asking."""
    from octonode.api.schema import to_json

    if remove and not publisher:
        raise ConfigError("name the publisher to remove: octonode models trust PEER_ID --remove")
    with _client() as client:
        found = client.trust(publisher, trusted=not remove, note=alias) if publisher else client.publishers()
    rows = [(each.peer_id, each.note or "-") for each in found]
    emit({"publishers": to_json(found)}, as_json=as_json, text=table(("PUBLISHER", "ALIAS"), rows))
