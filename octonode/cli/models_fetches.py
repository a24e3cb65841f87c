"""`octonode models fetches|pause|resume|cancel|prioritize`: what is being fetched here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from octonode.cli.models import Reference, app, open_client
from octonode.cli.output import JsonFlag, emit, size, table

if TYPE_CHECKING:
    from octonode.api.schema.fetches import FetchFacts


def register() -> None:
    """Adds the verbs to `octonode models`."""
    app.command("fetches")(fetches)
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("cancel")(cancel)
    app.command("prioritize")(prioritize)


def fetches(as_json: JsonFlag = False) -> None:
    """Models that are being fetched, wait for it, or are paused."""
    from octonode.api.schema import to_json
    from octonode.api.schema.fetches import fetches as call

    with open_client() as client:
        found = client.do(call)
    rows = [(each.reference, each.state, each.priority, *_numbers(each)) for each in found]
    headings = ("MODEL", "STATE", "PRIORITY", "DONE", "SPEED", "LEFT")
    emit({"fetches": to_json(found)}, as_json=as_json, text=table(headings, rows))


def _numbers(each: FetchFacts) -> tuple[str, str, str]:
    done = f"{size(each.done_bytes)} of {size(each.total_bytes)}" if each.total_bytes else "-"
    left = f"{each.seconds_left:.0f} s" if each.seconds_left is not None else "-"
    return done, f"{size(each.bytes_per_second)}/s", left


def pause(reference: Reference, as_json: JsonFlag = False) -> None:
    """Stop fetching a model for now; what came is kept. Go on with: octonode models resume."""
    _change(reference, "pause", as_json, "paused; go on with: octonode models resume")


def resume(reference: Reference, as_json: JsonFlag = False) -> None:
    """Go on with a paused fetch, or try a failed one again at once."""
    _change(reference, "resume", as_json, "resumed")


def cancel(reference: Reference, as_json: JsonFlag = False) -> None:
    """End a fetch. What came is kept: octonode models fetch goes on from there, octonode models rm deletes it."""
    _change(reference, "cancel", as_json, "cancelled; what came is kept")


def prioritize(
    reference: Reference,
    priority: Annotated[int, typer.Argument(help="From -100 to 100; the highest is fetched first.")],
    as_json: JsonFlag = False,
) -> None:
    """Fetch a model before others, or after them."""
    _change(reference, "prioritize", as_json, f"priority {priority}", priority)


def _change(
    reference: str,
    action: Literal["pause", "resume", "cancel", "prioritize"],
    as_json: bool,
    said: str,
    priority: int = 0,
) -> None:
    from octonode.api.schema import to_json
    from octonode.api.schema.fetches import ChangeFetch, change_fetch

    with open_client() as client:
        found = client.do(change_fetch(ChangeFetch(reference, action, priority)))
    emit(to_json(found), as_json=as_json, text=f"{found.reference}: {said}")
