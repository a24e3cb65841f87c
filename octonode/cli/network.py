"""`octonode join`, `peers`, `doctor`: who is there, and why nobody is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from octonode import config as settings
from octonode.cli.output import JsonFlag, emit, size, table
from octonode.errors import ExitCode, OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema import PeerFacts


def register(app: typer.Typer) -> None:
    app.command("join")(join)
    app.command("peers")(peers)
    app.command("doctor")(doctor)


def join(
    line: Annotated[
        str, typer.Argument(help="The join line that another node printed, or a multiaddr ending in /p2p/<id>.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Join the network of another node, now and at every start."""
    from octonode.api.schema import to_json
    from octonode.client import Client

    with Client.from_home(settings.home_from(os.environ)) as client:
        joined = client.join(line)
    emit(to_json(joined), as_json=as_json, text=f"joined by {joined.peer_id}; who else is there: octonode peers")


def peers(as_json: JsonFlag = False) -> None:
    """Nodes known here: connected or announced."""
    from octonode.api.schema import to_json
    from octonode.client import Client

    with Client.from_home(settings.home_from(os.environ)) as client:
        found = client.peers()
    rows = [
        (
            each.peer_id,
            "yes" if each.connected else "no",
            each.tier or "?",
            each.state or "?",
            ", ".join(each.serving) or (f"storage: {size(each.storage_free_bytes)} free" if keeps(each) else "-"),
        )
        for each in found
    ]
    emit({"peers": to_json(found)}, as_json=as_json, text=table(("PEER", "CONNECTED", "TIER", "STATE", "SERVES"), rows))


def keeps(peer: PeerFacts) -> bool:
    """Whether it keeps models for those it lists."""
    return peer.role == "storage" or peer.storage_free_bytes > 0


def doctor(as_json: JsonFlag = False) -> None:
    """Say what is wrong with this node, and the fix of it.

    Clock, ports, disk, memory, driver and engines; with a running node also whether peers can dial it back.
    """
    from octonode.api.schema import to_json
    from octonode.client import Client
    from octonode.node.doctor import examine_machine

    try:
        with Client.from_home(settings.home_from(os.environ)) as client:
            findings = list(client.doctor())
    except OctonodeError as error:
        if error.code != "NOT_RUNNING":
            raise
        findings = examine_machine(settings.load())
    marks = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}
    lines = []
    for each in findings:
        lines.append(f"{marks[each.status]}  {each.check}: {each.summary}")
        if each.fix:
            lines.append(f"         {'type' if each.status == 'ok' else 'fix'}: {each.fix}")
    emit({"findings": to_json(findings)}, as_json=as_json, text="\n".join(lines))
    if any(each.status == "failed" for each in findings):
        raise typer.Exit(int(ExitCode.FAILED))
