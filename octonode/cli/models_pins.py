"""`octonode models pin|unpin|pins`: models that are kept, here and at nodes that keep them for us."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from octonode.cli.models import Reference, app, open_client
from octonode.cli.output import JsonFlag, emit, progress, shown, size, table

if TYPE_CHECKING:
    from octonode.api.schema.facts import StorageFacts
    from octonode.api.schema.pins import PinList, PinRow

OnOption = Annotated[str, typer.Option("--on", metavar="PEER", help="Peer id of the node; this one when left out.")]


def register() -> None:
    """Adds the verbs to `octonode models`."""
    for verb in (pin, unpin, pins):
        app.command(verb.__name__)(verb)


def pin(
    reference: Reference,
    on: OnOption = "",
    days: Annotated[int, typer.Option("--days", min=0, help="For how long; for good when left out.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Keep a model: here, or at another node.

    It is never evicted. With --on the other node fetches it and serves its blocks; it must list our peer id in its
    storage.allowed_peers. A pin that is asked for again is the same pin, with the new end.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.pins import PinCalls, PinModel

    request = PinModel(reference=reference, on=on, days=days)
    with (
        open_client() as client,
        progress(f"pin {reference[:40]}", quiet=as_json) as bar,
        client.stream(PinCalls.pin(request)) as stream,
    ):
        for each in stream:
            bar(each.done, each.total, each.stage)
    found = stream.result.outcome
    assert found is not None
    emit(to_json(found), as_json=as_json, text="\n".join([f"kept by {found.node}", *_lines(found)]))


def unpin(
    reference: Reference,
    on: OnOption = "",
    everybody: Annotated[
        bool, typer.Option("--everybody", help="On this node: end the pins of all peers on it, not only our own.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep a model no more.

    It may then be evicted when room is needed; what another node fetched for us alone it removes.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.pins import PinCalls, UnpinModel

    with open_client() as client:
        found = client.do(PinCalls.unpin(UnpinModel(reference=reference, on=on, everybody=everybody)))
    text = [f"not pinned any more on {found.node}"]
    if found.pins:
        text = [f"our own pin is gone; {len(found.pins)} of peers keep it (--everybody ends them too)", *_lines(found)]
    emit(to_json(found), as_json=as_json, text="\n".join(text))


def pins(on: OnOption = "", as_json: JsonFlag = False) -> None:
    """What is pinned, for whom and until when.

    Here everybody's pins, with --on ours at another node.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.pins import PinCalls

    with open_client() as client:
        found = client.do(PinCalls.pins(on))
    rows = [
        (each.reference, each.state, _have(each), until(each.until_ms), each.asker, shown(each.reason) or "-")
        for each in found.pins
    ]
    text = table(("MODEL", "STATE", "SIZE", "UNTIL", "FOR", "WHY"), rows)
    emit(to_json(found), as_json=as_json, text=f"{text}\n{room(found.room)}")


def until(until_ms: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(until_ms / 1000)) if until_ms else "unpinned"


def room(facts: StorageFacts) -> str:
    """One line for a person."""
    text = f"room {size(facts.used_bytes)} of {size(facts.total_bytes)} used, {size(facts.free_bytes)} free"
    if facts.peer_bytes_max:
        text += f"; ours {size(facts.peer_bytes)} of {size(facts.peer_bytes_max)}"
    return text


def _have(row: PinRow) -> str:
    return size(row.size_bytes) if row.state == "kept" else f"{size(row.have_bytes)} of {size(row.size_bytes)}"


def _lines(found: PinList) -> list[str]:
    lines = []
    for each in found.pins:
        lines += [
            f"  model      {each.reference}",
            f"  root       {each.root}",
            f"  size       {_have(each)}",
            f"  until      {until(each.until_ms)}",
        ]
    return [*lines, f"  {room(found.room)}", *([f"  receipt    task {found.receipt}"] if found.receipt else [])]
