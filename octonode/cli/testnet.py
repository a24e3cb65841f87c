"""`octonode testnet N`: N real daemons on this machine, one merged event log, one command to stop them all."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octonode import config as settings
from octonode.cli.ask import check_file
from octonode.cli.output import JsonFlag, emit, table
from octonode.errors import OctonodeError

if TYPE_CHECKING:
    from octonode.testing.testnet import Testnet


def __getattr__(name: str) -> Any:
    """`Daemon`, for the demo: this file is the one door to `octonode.testing`, which is costly to import."""
    if name == "Daemon":
        from octonode.testing.daemon import Daemon

        return Daemon
    raise AttributeError(name)


def register(app: typer.Typer) -> None:
    app.command("testnet")(testnet)


def testnet(
    count: Annotated[
        int, typer.Argument(help="How many nodes; node 0 is the bootstrap of the others.", min=1, max=64)
    ] = 4,
    engine: Annotated[
        str, typer.Option(help="`scripted` needs no weights; `llama` runs real GGUF files.")
    ] = "scripted",
    model: Annotated[
        str, typer.Option(help="File or reference that nodes serve; a scripted model when left out.")
    ] = "",
    kill: Annotated[
        float, typer.Option("--kill", help="Chance of a kill -9 for each node every 10 s.", min=0, max=1)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of everything random here.")] = 0,
    directory: Annotated[
        Path | None, typer.Option(help="Where the nodes live; OCTONODE_HOME/testnet when left out.")
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the running test network and all its nodes.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a network of real nodes on this machine.

    It ends with Ctrl-C, or with `octonode testnet --stop` from another shell.
    """
    place = (directory or settings.home_from(os.environ) / "testnet").absolute()
    if stop:
        _stop(place, as_json=as_json)
        return
    _run(place, count=count, engine=engine, model=model, kill=kill, seed=seed, as_json=as_json)


def _run(place: Path, *, count: int, engine: str, model: str, kill: float, seed: int, as_json: bool) -> None:
    from octonode.testing.testnet import EventLog, Testnet, write_scripted_model

    check_file(model)
    place.mkdir(parents=True, exist_ok=True)
    if _pid(place) is not None:
        raise OctonodeError(
            f"a test network runs in {place}; stop it with: octonode testnet --stop", code="ALREADY_RUNNING"
        )
    if not model and engine == "scripted" and count > 1:
        model = f"file:{write_scripted_model(place / 'scripted.model', seed=seed)}"
    elif model and Path(model).is_file():
        model = f"file:{Path(model).absolute()}"
    log = EventLog(place / "events.ndjson", show=_show if as_json else None)
    net = Testnet(place, count, ("--engine", engine, "--trust-all", "--public"), model, kill, seed, on_event=log.take)
    (place / "launcher.pid").write_text(str(os.getpid()))
    if not as_json:
        print(f"starting {count} nodes, a second or two each ...", flush=True)
    import trio

    try:
        trio.run(_until_signal, net, place, as_json)
    finally:
        log.close()
        (place / "launcher.pid").unlink(missing_ok=True)


def _show(line: str) -> None:
    print(line, flush=True)


async def _until_signal(net: Testnet, place: Path, as_json: bool) -> None:
    import trio

    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            nursery.start_soon(_start_and_show, net, place, as_json)
            async for _ in signals:
                break
        nursery.cancel_scope.cancel()


async def _start_and_show(net: Testnet, place: Path, as_json: bool) -> None:
    import trio

    async with trio.open_nursery() as nursery:
        nodes = await nursery.start(net.run)
        facts: list[dict[str, Any]] = [
            {"name": node.name, "api": node.api, "peer_id": node.peer_id, "pid": node.pid, "home": str(node.home)}
            for node in nodes
        ]
        (place / "nodes.json").write_text(json.dumps(facts))
        if as_json:
            emit({"event": "testnet", "nodes": facts, "log": str(place / "events.ndjson")}, as_json=True, text="")
            return
        print(table(("NODE", "API", "PID", "PEER"), [(f["name"], f["api"], f["pid"], f["peer_id"]) for f in facts]))
        print(f"\nevents of all nodes: {place / 'events.ndjson'}")
        print(f"ask one:             OCTONODE_HOME={facts[-1]['home']} octonode models ls")
        print("stop all:            Ctrl-C here, or: octonode testnet --stop", flush=True)


def _pid(place: Path) -> int | None:
    """The launcher's pid while it runs."""
    try:
        pid = int((place / "launcher.pid").read_text())
        os.kill(pid, 0)
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and b"testnet" not in command.read_bytes():
            return None  # the number was given to another program
    except (OSError, ValueError):
        return None
    return pid


def _orphans(place: Path) -> list[int]:
    """Pids of nodes that run, by the locks of their homes. A launcher that was killed leaves them behind."""
    found = []
    for path in place.glob("node*/lock"):
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                found.append(int(file.read() or 0))
    return [pid for pid in found if pid]


def _stop(place: Path, *, as_json: bool) -> None:
    pid = _pid(place)
    left = [] if pid is not None else _orphans(place)
    if pid is None and not left:
        raise OctonodeError(f"no test network runs in {place}", code="NOT_RUNNING")
    for each in left if pid is None else [pid]:
        os.kill(each, signal.SIGTERM)
    for _ in range(300):
        if _pid(place) is None and not _orphans(place):
            emit({"stopped": pid}, as_json=as_json, text="stopped")
            return
        time.sleep(0.1)
    raise OctonodeError(f"the nodes have not stopped in 30 s; look at {place}/node*/stderr.log")
