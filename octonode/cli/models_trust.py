"""`octonode models trust`: whose models are taken without asking; lists of them to hand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octonode.cli.models import app, open_client
from octonode.cli.output import JsonFlag, emit, shown, table
from octonode.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from octonode.api.schema import Publisher
    from octonode.api.schema.versions import ImportTrust
    from octonode.client import Client

LIST_BYTES_MAX = 4 * 1024 * 1024
LIST_VERSION = 1


def register() -> None:
    """Adds the verb to `octonode models`."""
    app.command("trust")(trust)


def trust(
    publisher: Annotated[str, typer.Argument(help="Peer id of a publisher; the list when left out.")] = "",
    alias: Annotated[
        str, typer.Option("--alias", "--note", help="Your own name for it; `ALIAS/model` works as a reference.")
    ] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Trust it no more.")] = False,
    export_to: Annotated[
        Path | None, typer.Option("--export", help="Write the list to a file, for others to import.")
    ] = None,
    import_from: Annotated[
        Path | None, typer.Option("--import", help="Trust everybody in a list that somebody you believe has exported.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Publishers whose models are taken without asking.

    Each with the fingerprint of its key, to be compared with what the publisher shows.
    """
    if sum(map(bool, (publisher, export_to, import_from))) > 1:
        raise ConfigError("one at a time: a publisher, --export FILE, or --import FILE")
    if remove and not publisher:
        raise ConfigError("name the publisher to remove: octonode models trust PEER_ID --remove")
    with open_client() as client:
        if import_from is not None:
            _import(client, import_from, as_json)
            return
        found = client.trust(publisher, trusted=not remove, note=alias) if publisher else client.publishers()
    if export_to is not None:
        _export(found, export_to, as_json)
    else:
        _show(found, as_json)


def _show(found: tuple[Publisher, ...], as_json: bool) -> None:
    from octonode.api.schema import to_json

    rows = [(each.peer_id, each.note or "-", each.fingerprint) for each in found]
    emit({"publishers": to_json(found)}, as_json=as_json, text=table(("PUBLISHER", "ALIAS", "FINGERPRINT"), rows))


def _export(found: tuple[Publisher, ...], path: Path, as_json: bool) -> None:
    rows = [{"peer_id": each.peer_id, "alias": each.note, "public_key": each.public_key} for each in found]
    path.write_text(json.dumps({"octonode_trust": LIST_VERSION, "publishers": rows}, indent=1) + "\n", encoding="utf-8")
    told = f"{len(rows)} publishers are in {path}; to take them elsewhere: octonode models trust --import {path.name}"
    emit({"exported": len(rows), "file": str(path)}, as_json=as_json, text=told)


def _import(client: Client, path: Path, as_json: bool) -> None:
    from octonode.api.schema import to_json
    from octonode.api.schema.versions import import_trust

    done = client.do(import_trust(read_list(path)))
    lines = [f"{done.added} publishers are trusted now, {done.known} were before"]
    lines += [f"  without its alias, which is another's here: {shown(peer_id)}" for peer_id in done.without_alias]
    emit(to_json(done), as_json=as_json, text="\n".join(lines))


def read_list(path: Path) -> ImportTrust:
    """An exported list. Raises NotFound, ConfigError that says what is wrong with it."""
    from octonode.api.schema.versions import ImportTrust, TrustedPublisher

    if not path.is_file():
        raise NotFound(f"{path} is not a file")
    if path.stat().st_size > LIST_BYTES_MAX:
        raise ConfigError(f"{path} is larger than any list of publishers ({LIST_BYTES_MAX} bytes)")
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if value["octonode_trust"] != LIST_VERSION:
            raise ConfigError(f"{path} is a list of another version; update octonode")
        rows = [TrustedPublisher(str(row["peer_id"]), str(row.get("alias", ""))) for row in value["publishers"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} is no list that `octonode models trust --export` has written") from None
    return ImportTrust(tuple(rows))
