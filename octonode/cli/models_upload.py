"""`octonode models upload|uploads|export`: models over the API, and to a Kubo node beside us."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octonode.cli.models import Reference, app, open_client, show_outcome
from octonode.cli.output import Bar, JsonFlag, emit, progress, size, table
from octonode.errors import ConfigError, NotFound, OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema import Job, ModelOutcome
    from octonode.api.schema.calls import Call
    from octonode.api.schema.uploads import CreateUpload, UploadFacts
    from octonode.client import Client

READ_BYTES = 256 * 1024
TRIES_MAX = 5
"""In a row without a new byte on the node's disk; then it is for the user to run the command again."""

export_app = typer.Typer(help="Hand a model to another program.", no_args_is_help=True, rich_markup_mode=None)

Api = Annotated[
    str, typer.Option("--api", envvar="OCTONODE_URL", help="URL of a node elsewhere, such as http://10.0.0.5:8808.")
]
Key = Annotated[str, typer.Option("--key", envvar="OCTONODE_TOKEN", help="Its admin key, or its token.")]


def register() -> None:
    """Adds the verbs to `octonode models`."""
    app.command("upload")(upload)
    app.command("uploads")(uploads)
    export_app.command("kubo")(export_kubo)
    export_app.callback()(_export)
    app.add_typer(export_app, name="export")


def _export() -> None:
    """Hand a model to another program."""


def _client(api: str, key: str) -> Client:
    from octonode.client import Client

    if not api:
        return open_client()
    if not key:
        raise ConfigError("a node elsewhere wants its admin key: --key KEY, or the variable OCTONODE_TOKEN")
    return Client(api.rstrip("/"), key)


def upload(
    path: Annotated[Path, typer.Argument(help="A model file, or a folder with one, on this machine.")],
    name: Annotated[str, typer.Option(help="Name under the node's peer id; from the file when left out.")] = "",
    version: Annotated[str, typer.Option(help="Semantic version.")] = "",
    licence: Annotated[
        str, typer.Option("--licence", "--license", help="SPDX name; from the file when left out.")
    ] = "",
    publish: Annotated[bool, typer.Option("--publish", help="Provide it to the network at once.")] = False,
    api: Api = "",
    key: Key = "",
    as_json: JsonFlag = False,
) -> None:
    """Send a model to a node over its API.

    The node may be on another machine (--api). Run again after Ctrl-C, it goes on. The bytes are hashed here and
    there: what arrives is what was sent, or it is refused.
    """
    from octonode.api.schema.uploads import CreateUpload, FinishUpload, UploadFile, finish_upload
    from octonode.models.adding import collect, default_name

    if not path.exists():
        raise NotFound(f"{path} does not exist")
    files = dict(collect(path))
    asked = CreateUpload(
        files=tuple(UploadFile(each, place.stat().st_size) for each, place in files.items()),
        name=name or default_name(path),
        version=version,
        license=licence,
        publish=publish,
        fingerprint=_fingerprint(path, files),
    )
    with _client(api, key) as client:
        facts = _begin(client, asked)
        with progress(f"upload {path.name}", quiet=as_json) as bar:
            _send(client, facts, files, bar)
        root = _root(path, quiet=as_json)
        outcome = _work(client, finish_upload(facts.upload, FinishUpload(root=root)), "import", quiet=as_json)
    show_outcome(outcome, as_json, "uploaded and published" if publish else "uploaded")


def _fingerprint(path: Path, files: dict[str, Path]) -> str:
    """Tells the same files from changed ones when an upload is gone on with."""
    seen = [(each, place.stat().st_size, place.stat().st_mtime_ns) for each, place in files.items()]
    return sha256(repr((str(path.absolute()), seen)).encode()).hexdigest()


def _begin(client: Client, asked: CreateUpload) -> UploadFacts:
    """The upload of an earlier run, if its files are still the same; else a new one."""
    from octonode.api.schema.uploads import create_upload
    from octonode.api.schema.uploads import uploads as call

    for each in client.do(call):
        same = each.fingerprint == asked.fingerprint and (each.name, each.version) == (asked.name, asked.version)
        if same and (each.license, each.publish) == (asked.license, asked.publish):
            return each
    return client.do(create_upload(asked))


def _send(client: Client, facts: UploadFacts, files: dict[str, Path], bar: Bar) -> None:
    """All files, from where each stands. A broken connection is tried again while the node's disk gets on."""
    from octonode.api.schema.uploads import upload as look

    total = sum(file.size_bytes for file in facts.files)
    tries, best = 0, -1
    while True:
        there = sum(file.offset_bytes for file in facts.files)
        tries = 0 if there > best else tries + 1
        best = max(best, there)
        try:
            _send_rest(client, facts, files, bar, there, total)
            return
        except OctonodeError as error:
            again = error.code in ("UNREACHABLE", "BAD_SEQUENCE", "CANCELED", "EXPIRED", "OVERLOADED", "NOT_RUNNING")
            if not again or tries >= TRIES_MAX:
                raise
        _pause(min(10.0, 0.2 * 2**tries))
        facts = client.do(look(facts.upload))


def _send_rest(client: Client, facts: UploadFacts, files: dict[str, Path], bar: Bar, there: int, total: int) -> None:
    from octonode.api.schema.uploads import write_upload

    for file in facts.files:
        if file.offset_bytes < file.size_bytes:
            pieces = _pieces(files[file.path], file.offset_bytes, file.size_bytes, bar, there, total)
            client.do(write_upload(facts.upload, file.path, file.offset_bytes, file.size_bytes, pieces))
            there += file.size_bytes - file.offset_bytes


def _pieces(path: Path, start: int, end: int, bar: Bar, there: int, total: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(start)
        position = start
        while position < end:
            piece = file.read(min(READ_BYTES, end - position))
            if not piece:
                raise OctonodeError(f"{path} became shorter while it was sent; wait until nothing writes it")
            position += len(piece)
            yield piece
            bar(there + position - start, total)


def _pause(seconds: float) -> None:
    import time

    time.sleep(seconds)


def _root(path: Path, *, quiet: bool) -> str:
    """What the files are here; the node compares it with what arrived."""
    from octonode.ipfs.unixfs import import_directory, import_file
    from octonode.models.adding import collect

    with progress(f"hash {path.name}", quiet=quiet) as bar:
        found = {name: import_file(place, bar) for name, place in collect(path)}
    if len(found) == 1 and "/" not in next(iter(found)):
        return next(iter(found.values())).root.text
    return import_directory({name: (each.root, each.total_size_bytes) for name, each in found.items()}).root.text


def _work(client: Client, call: Call[Job], title: str, *, quiet: bool) -> ModelOutcome:
    with progress(title, quiet=quiet) as bar, client.stream(call) as stream:
        for each in stream:
            bar(each.done, each.total, each.stage)
    return stream.result.done()


def uploads(
    abort: Annotated[str, typer.Option("--abort", help="Give this upload up; its id.")] = "",
    api: Api = "",
    key: Key = "",
    as_json: JsonFlag = False,
) -> None:
    """Uploads that are not finished, and how far they are."""
    from octonode.api.schema import to_json
    from octonode.api.schema.uploads import abort_upload
    from octonode.api.schema.uploads import uploads as call

    with _client(api, key) as client:
        if abort:
            gone = client.do(abort_upload(abort))
            emit(to_json(gone), as_json=as_json, text=f"aborted {gone.upload}")
            return
        found = client.do(call)
    rows = [
        (
            each.upload,
            each.name,
            size(sum(file.offset_bytes for file in each.files)),
            size(sum(file.size_bytes for file in each.files)),
        )
        for each in found
    ]
    emit({"uploads": to_json(found)}, as_json=as_json, text=table(("UPLOAD", "NAME", "HERE", "OF"), rows))


def export_kubo(
    reference: Reference,
    rpc: Annotated[str, typer.Option(help="URL of Kubo's RPC; the setting models.kubo_rpc when left out.")] = "",
    provide: Annotated[bool, typer.Option(help="Tell the IPFS network that Kubo has it.")] = True,
    private: Annotated[bool, typer.Option("--private", help="Even one that is not public here.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Put a model into a Kubo node, pinned and provided.

    IPFS users everywhere can have it then.
    """
    from octonode.api.schema.uploads import ExportToKubo, export_to_kubo

    with open_client() as client:
        call = export_to_kubo(ExportToKubo(reference, rpc=rpc, provide=provide, private=private))
        outcome = _work(client, call, f"export {reference}", quiet=as_json)
    show_outcome(outcome, as_json, f"exported; {outcome.records} peers of Kubo were told")
