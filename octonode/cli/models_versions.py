"""`octonode models versions|outdated|update|rollback|deprecate`: which versions there are, and moving between them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from octonode.cli.models import Reference, TrustFlag, app, describe, open_client, perform, trusting
from octonode.cli.output import JsonFlag, emit, shown, size, table
from octonode.errors import ConfigError, OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema import ModelOutcome
    from octonode.api.schema.versions import NameFacts, OutdatedModel, VersionFacts


def register() -> None:
    """Adds the verbs to `octonode models`."""
    for verb in (versions, outdated, update, rollback, deprecate):
        app.command(verb.__name__)(verb)


def versions(reference: Reference, as_json: JsonFlag = False) -> None:
    """Every version of a model.

    Those that its publisher names, and those that are here.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.versions import versions as call

    with open_client() as client:
        found = client.do(call(reference))
    emit(to_json(found), as_json=as_json, text=_name_text(found))


def _name_text(found: NameFacts) -> str:
    rows = [
        (each.version, "latest" if each.version == found.latest else "-", _here(each), shown(_said(each)))
        for each in found.versions
    ]
    lines = [f"{found.publisher}/{found.name}", table(("VERSION", "", "HERE", "NOTE"), rows)]
    if found.seq:
        days = max(0.0, (found.expires_at_ms / 1000 - time.time()) / 86400)
        lines.append(f"record {found.seq} of its publisher's, good for {days:.1f} days")
    return "\n".join([*lines, *([found.note] if found.note else [])])


def _here(each: VersionFacts) -> str:
    return "serving" if each.serving else "held" if each.held else "-"


def _said(each: VersionFacts) -> str:
    notes = []
    if each.deprecated:
        instead = f" (take {each.replaced_by})" if each.replaced_by else ""
        notes.append(f"DEPRECATED{': ' + each.reason if each.reason else ''}{instead}")
    notes += ["kept as the previous version"] if each.kept_as_previous else []
    notes += ["gone back from"] if each.rolled_back else []
    notes += [] if each.listed else ["not in the publisher's record"]
    return ", ".join(notes)


def outdated(as_json: JsonFlag = False) -> None:
    """Models here that are behind their publisher.

    Deprecated ones too. WANTED is the newest in the range that a model was asked for by: what `octonode models
    update` takes.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.versions import outdated as call

    with open_client() as client:
        found = client.do(call)
    rows = [(each.reference, each.current, each.wanted, each.latest, shown(_why(each)) or "-") for each in found]
    emit(
        {"models": to_json(found)},
        as_json=as_json,
        text=table(("MODEL", "CURRENT", "WANTED", "LATEST", "NOTE"), rows) if rows else "everything is up to date",
    )


def _why(each: OutdatedModel) -> str:
    notes = [each.deprecated] if each.deprecated else []
    notes += [f"{each.wanted} was gone back from"] if each.rolled_back else []
    notes += ["serving"] if each.serving else []
    return ", ".join(notes)


def update(
    reference: Annotated[str, typer.Argument(help="publisher/name, or a bare name; @range changes its range.")] = "",
    every: Annotated[bool, typer.Option("--all", help="All that `octonode models outdated` lists.")] = False,
    trust: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Take the newest version in range.

    What is served is switched to it without a gap, where memory allows. The version before is kept to go back to:
    octonode models rollback. To let it go: octonode models unpin NAME@VERSION.
    """
    from octonode.api.schema import UpdateModel, to_json
    from octonode.api.schema.versions import outdated as call

    if bool(reference) == every:
        raise ConfigError("name one model, or give --all: octonode models update NAME")
    with open_client() as client:
        rows = client.do(call) if every else ()
        wanted = [row.reference for row in rows if row.wanted != row.current and not row.rolled_back] or [reference]
        outcomes: list[ModelOutcome] = []
        for each in filter(None, wanted):

            def act(trusted: bool, each: str = each) -> ModelOutcome:
                return perform(client, UpdateModel(each, trusted), f"update {each}", quiet=as_json)

            outcomes.append(trusting(act, trust=trust, quiet=as_json))
            if not as_json:
                _show(outcomes[-1])
    if as_json:
        emit({"updated": to_json(outcomes)} if every else to_json(outcomes[0]), as_json=True, text="")
    elif not outcomes:
        print("everything is up to date")


def rollback(reference: Reference, as_json: JsonFlag = False) -> None:
    """Go back to the previous version that is held.

    The newer one is passed over until the next update.
    """
    from octonode.api.schema import RollbackModel, to_json

    with open_client() as client:
        outcome = perform(client, RollbackModel(reference), f"rollback {reference}", quiet=as_json)
    if as_json:
        emit(to_json(outcome), as_json=True, text="")
    else:
        _show(outcome)


def _show(outcome: ModelOutcome) -> None:
    lines = [f"{outcome.model.reference} is {outcome.model.version} here", *describe(outcome.model)]
    lines += [f"  from       {source}: {size(count)}" for source, count in outcome.bytes_by_source.items()]
    lines += [f"  note       {shown(outcome.note)}"] if outcome.note else []
    print("\n".join(lines), flush=True)


def deprecate(
    reference: Annotated[str, typer.Argument(help="NAME@VERSION of a model that this node has published.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for those who hold it.")] = "",
    replaced_by: Annotated[str, typer.Option("--replaced-by", help="The version to take instead.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take the deprecation back.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Advise against a version of your own.

    Ranges and `latest` pass it over, and whoever holds it is told.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.versions import DeprecateModel
    from octonode.api.schema.versions import deprecate as call

    if undo and (reason or replaced_by):
        raise OctonodeError("--undo takes the deprecation back; give no reason with it", code="BAD_REQUEST")
    with open_client() as client:
        found = client.do(call(DeprecateModel(reference, reason, replaced_by, undo)))
    emit(to_json(found), as_json=as_json, text=_name_text(found))
