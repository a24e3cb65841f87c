"""`octonode models gc|verify`: room on the disk, and whether what lies there is still right."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octonode.cli.models import app, open_client, perform
from octonode.cli.output import JsonFlag, emit, size, table
from octonode.errors import ConfigError, OctonodeError, VerificationFailed

if TYPE_CHECKING:
    from octonode.api.schema import ModelFacts
    from octonode.client import Client

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def register() -> None:
    """Adds the verbs to `octonode models`."""
    app.command("gc")(collect)
    app.command("verify")(verify)


def parse_size(text: str) -> int:
    """Bytes from `5GB` (decimal), `500 MiB` (binary) or `1000`. Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size; write for example 5GB, 500MiB or a number of bytes")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])


def ago(at_ms: int) -> str:
    """`3 d ago`; `-` for what never was."""
    if not at_ms:
        return "-"
    seconds = max(0.0, time.time() - at_ms / 1000)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def kept_lines(model: ModelFacts) -> list[str]:
    """How a model that is held here is kept, for a person; nothing of one that is not."""
    if not model.last_used_at_ms:
        return []
    lines = [f"  used       {ago(model.last_used_at_ms)}{', pinned' if model.pinned else ''}"]
    checked = f"  checked    {ago(model.checked_at_ms) if model.checked_at_ms else 'when it came'}"
    if model.damaged_blocks:
        checked += f"; {model.damaged_blocks} blocks damaged: octonode models verify {model.reference} --repair"
    return [*lines, checked]


def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; show what would go, and why.")] = False,
    free: Annotated[
        str,
        typer.Option("--free", metavar="SIZE", help="Make so much room: 5GB, 500MiB; the longest unused first."),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Last known copies too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Clear the disk of what nobody needs.

    Leftovers of crashes and old unfinished fetches go; models go too, where room is asked for.

    What is pinned, served, in use or being fetched stays; so does the last known copy, unless --force.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.cache import CollectGarbage, collect_garbage

    asked = CollectGarbage(dry_run=dry_run, free_bytes=parse_size(free) if free else 0, force=force)
    with open_client() as client:
        found = client.do(collect_garbage(asked))
    verb = "would go" if dry_run else "removed"
    rows = [
        (each.name, size(each.size_bytes), ago(each.last_used_at_ms), verb if each.goes else "stays", each.reason)
        for each in sorted(found.items, key=lambda each: not each.goes)
    ]
    said = f"{size(found.freed_bytes)} {'would be freed' if dry_run else 'freed'}"
    if found.short_bytes:
        said += f"; {size(found.short_bytes)} short of what was asked: what is left may not go, see above"
    emit(to_json(found), as_json=as_json, text=f"{table(('WHAT', 'SIZE', 'USED', 'DOES', 'WHY'), rows)}\n{said}")


def verify(
    reference: Annotated[
        str, typer.Argument(help="publisher/name[@range], cid:..., a CID, or a name of a trusted publisher.")
    ] = "",
    all_models: Annotated[bool, typer.Option("--all", help="Everything held here.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch damaged and missing blocks from peers.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Hash everything held of a model again, and repair it. Exits with 6 when damage is left."""
    if bool(reference) == all_models:
        raise ConfigError("name a model, or give --all: octonode models verify REFERENCE [--repair]")
    with open_client() as client:
        if reference:
            said = _verify_one(client, reference, repair=repair, quiet=as_json)
            emit(said, as_json=as_json, text=f"verified\n  {said['reference']}{_note(said)}")
            return
        held = [each for each in client.models() if each.state != "network"]
        found = [_tried(client, f"cid:{each.root}", repair=repair, quiet=as_json) for each in held]
    damaged = [each for each in found if each["error"]]
    rows = [(each["reference"], each["error"] or each["note"] or "right") for each in found]
    emit({"models": found, "damaged": len(damaged)}, as_json=as_json, text=table(("MODEL", "FOUND"), rows))
    if damaged:
        advice = "" if repair else "; repair what peers have: octonode models verify --all --repair"
        raise VerificationFailed(f"{len(damaged)} of {len(found)} models are damaged or not whole{advice}")


def _verify_one(client: Client, reference: str, *, repair: bool, quiet: bool) -> dict[str, Any]:
    from octonode.api.schema import VerifyModel, to_json

    outcome = perform(client, VerifyModel(reference, repair=repair), f"verify {reference[:40]}", quiet=quiet)
    return {"reference": outcome.model.reference, "error": "", **to_json(outcome)}


def _tried(client: Client, reference: str, *, repair: bool, quiet: bool) -> dict[str, Any]:
    try:
        return _verify_one(client, reference, repair=repair, quiet=quiet)
    except OctonodeError as error:
        if error.code == "NOT_RUNNING":
            raise
        return {"reference": reference, "error": error.message, "code": error.code, "note": ""}


def _note(said: dict[str, Any]) -> str:
    return f"\n  note       {said['note']}" if said["note"] else ""
