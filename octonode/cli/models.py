"""`octonode models`: what is held here, what peers offer, and everything done with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octonode import config as settings
from octonode.cli.output import JsonFlag, emit, progress, shown, size, table
from octonode.errors import NotFound, OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema import ModelFacts, ModelOutcome, ModelVerb
    from octonode.client import Client

app = typer.Typer(help="Models held here, and those of peers.", no_args_is_help=True, rich_markup_mode=None)

Reference = Annotated[
    str, typer.Argument(help="publisher/name[@range], cid:..., a CID, hf:org/repo, or a trusted publisher's name.")
]
TrustFlag = Annotated[bool, typer.Option("--trust", help="Trust the publisher without asking.")]
ProfileOption = Annotated[
    str, typer.Option("--profile", help="UnixFS profile; unixfs-v0-2015 gives the Qm... that `ipfs add` gave.")
]
UnsignedFlag = Annotated[
    bool, typer.Option("--allow-unsigned", help="Take a bare root CID that no publisher signed for.")
]
FromOption = Annotated[
    list[str] | None,
    typer.Option(
        "--from", help="Multiaddr of a node said to have it (octonode, Kubo, Helia), or file:/path; may be repeated."
    ),
]


def open_client() -> Client:
    from octonode.client import Client

    return Client.from_home(settings.home_from(os.environ))


def perform(client: Client, verb: ModelVerb, title: str, *, quiet: bool) -> ModelOutcome:
    """Run a long verb with a progress bar and return what it ended with."""
    with progress(title, quiet=quiet) as bar, client.job(verb) as stream:
        for each in stream:
            bar(each.done, each.total, each.stage)
    assert stream.result.outcome is not None
    return stream.result.outcome


def show_outcome(outcome: ModelOutcome, as_json: bool, said: str) -> None:
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
        f"  manifest   {model.manifest or '- (UNSIGNED: nobody answers for what it is)'}",
        f"  size       {size(model.size_bytes)} ({'complete' if model.complete else size(model.have_bytes) + ' here'})",
        f"  format     {model.format or '?'} {model.architecture} {model.quantization}".rstrip(),
        f"  state      {model.state}{' - ' + model.detail if model.detail else ''}",
    ]
    if model.version:
        lines.append(f"  version    {model.version}")
    if model.deprecated:
        lines.append(f"  DEPRECATED {model.deprecated}")
    if model.publisher:
        lines.append(f"  publisher  {model.publisher}{' (trusted)' if model.trusted else ' (not trusted)'}")
    return lines


def note(model: ModelFacts) -> str:
    """What a person should know of a model before it is used."""
    notes = ["UNSIGNED"] if model.unsigned else []
    notes += ["DEPRECATED"] if model.deprecated else []
    notes += ["kept as a previous version"] if model.kept_as_previous else []
    notes += ["pinned"] if model.pinned else []
    notes += [f"{model.damaged_blocks} blocks DAMAGED"] if model.damaged_blocks else []
    return ", ".join(notes)


@app.command("add")
def add(
    file: Annotated[
        Path,
        typer.Argument(help="A GGUF, SafeTensors or ONNX file on this machine, or a directory of any model."),
    ],
    name: Annotated[str, typer.Option(help="Name under your peer id; from the file when left out.")] = "",
    version: Annotated[str, typer.Option(help="Semantic version.")] = "",
    licence: Annotated[
        str, typer.Option("--licence", "--license", help="SPDX name; from the file when left out.")
    ] = "",
    publish: Annotated[bool, typer.Option("--publish", help="Provide it to the network at once.")] = False,
    profile: ProfileOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Import a file or directory as a signed model.

    It is inspected first, and signed with this node's key.
    """
    from octonode.api.schema import AddModel

    if not file.exists():
        raise NotFound(f"{file} is not a file or directory")
    path = str(file.absolute())
    request = AddModel(path=path, name=name, version=version, license=licence, publish=publish, profile=profile)
    with open_client() as client:
        outcome = perform(client, request, f"import {file.name}", quiet=as_json)
    show_outcome(
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

    with open_client() as client:
        outcome = perform(client, PublishModel(reference), "publish", quiet=as_json)
    show_outcome(outcome, as_json, f"published; {outcome.records} peers hold records of it")


@app.command("fetch")
def fetch(
    reference: Reference,
    trust: TrustFlag = False,
    allow_unsigned: UnsignedFlag = False,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict it.")] = False,
    peers: FromOption = None,
    background: Annotated[
        bool, typer.Option("--background", help="Answer at once; see octonode models fetches.")
    ] = False,
    priority: Annotated[int, typer.Option(help="From -100 to 100; the highest is fetched first.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a model from peers; run again, it resumes.

    Every block is verified before it is written.
    """
    from octonode.api.schema import FetchModel

    with open_client() as client:

        def act(trusted: bool) -> ModelOutcome:
            request = FetchModel(
                reference=reference, trust=trusted, pin=pin, allow_unsigned=allow_unsigned, background=background,
                priority=priority, peers=tuple(peers or ()),
            )  # fmt: skip
            return perform(client, request, f"fetch {reference}", quiet=as_json)

        outcome = trusting(act, trust=trust, quiet=as_json)
    show_outcome(outcome, as_json, "started" if background else f"fetched in {outcome.seconds:.1f} s")


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
    allow_unsigned: UnsignedFlag = False,
    peers: FromOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Fetch if need be, load, and serve a model to the network."""
    from octonode.api.schema import ServeModel

    with open_client() as client:

        def act(trusted: bool) -> ModelOutcome:
            request = ServeModel(
                reference=reference,
                trust=trusted,
                engine=engine,
                stop=stop,
                allow_unsigned=allow_unsigned,
                peers=tuple(peers or ()),
            )
            return perform(client, request, f"serve {reference}", quiet=as_json)

        outcome = trusting(act, trust=trust, quiet=as_json)
    show_outcome(outcome, as_json, "stopped serving" if stop else "serving")


@app.command("cid")
def cid(
    file: Annotated[Path, typer.Argument(help="Any file.")],
    profile: ProfileOption = "",
    as_json: JsonFlag = False,
) -> None:
    """The root CID a file has. Imports nothing and needs no daemon."""
    from octonode.ipfs.unixfs import import_file, profile_named

    if not file.is_file():
        raise NotFound(f"{file} is not a file")
    with progress(file.name, quiet=as_json) as bar:
        result = import_file(file, bar, profile_named(profile))
    found = {"root": str(result.root), "size_bytes": result.size_bytes, "profile": result.profile.name}
    emit(found, as_json=as_json, text=str(result.root))


@app.command("ls")
def ls(as_json: JsonFlag = False) -> None:
    """Models held here, and those that fresh peers announce."""
    from octonode.api.schema import to_json

    with open_client() as client:
        found = client.models()
    rows = [
        (
            each.reference,
            each.state,
            size(each.size_bytes) if each.size_bytes else "?",
            each.quantization or "-",
            shown(", ".join(each.skills) or each.category or "-"),
            len(each.servers),
            note(each),
        )
        for each in found
    ]
    emit(
        {"models": to_json(found)},
        as_json=as_json,
        text=table(("MODEL", "STATE", "SIZE", "QUANTIZATION", "DOES", "SERVERS", "NOTE"), rows),
    )


@app.command("show")
def show(reference: Reference, as_json: JsonFlag = False) -> None:
    """Everything known of one model.

    Of one that is wholly here, what its headers say as well.
    """
    from octonode.api.schema import to_json
    from octonode.cli.models_cache import kept_lines
    from octonode.cli.models_fit import inspected
    from octonode.cli.models_quantize import quantized_lines

    with open_client() as client:
        model = client.model(reference)
        found, lines = inspected(client, model)
    does = ", ".join(model.skills)
    extra = [f"  does       {shown(does)}"] if does else []
    extra += [f"  context    {model.context_tokens} tokens"] if model.context_tokens else []
    extra.append(f"  licence    {shown(model.license or 'not said')}")
    extra += quantized_lines(model.quantized) + [f"  derived    {cid}" for cid in model.derived_from]
    extra += kept_lines(model)
    extra += [f"  served by  {peer}" for peer in model.servers] + [f"  held by    {peer}" for peer in model.holders]
    value = {**to_json(model), "inspection": found}
    emit(value, as_json=as_json, text="\n".join([*describe(model), *lines, *extra]))


@app.command("rm")
def rm(
    reference: Reference,
    force: Annotated[
        bool, typer.Option("--force", help="Even when it is served (it is unloaded then), pinned, or the last copy.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete a model held here."""
    from octonode.api.schema import to_json

    with open_client() as client:
        removed = client.remove_model(reference, force=force)
    emit(to_json(removed), as_json=as_json, text=f"removed {removed.reference}, {size(removed.have_bytes)} freed")
