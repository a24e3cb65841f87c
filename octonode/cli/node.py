"""`octonode start`, `stop`, `status`, `id`, `logs`: the daemon of this machine."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octonode import config as settings
from octonode.cli.output import JsonFlag, emit, shown, size
from octonode.errors import OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema.facts import GpuFacts, NodeFacts, StorageFacts, WorkerFacts

STOP_TIMEOUT_SECONDS = 30.0


def register(app: typer.Typer) -> None:
    for verb in (start, stop, status, logs):
        app.command(verb.__name__)(verb)
    app.command("id")(identity)


def start(
    api: Annotated[str | None, typer.Option(help="HOST:PORT of the HTTP API; port 0: the kernel chooses.")] = None,
    p2p: Annotated[str | None, typer.Option(help="HOST:PORT for peers.")] = None,
    gateway: Annotated[str | None, typer.Option(help="HOST:PORT of the block gateway.")] = None,
    bootstrap: Annotated[
        list[str] | None, typer.Option(help="Multiaddr or join line of a node to join by. Repeatable.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Serve this: publisher/name, cid:..., file:/path. Repeatable.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Engine adapter; by the format of the model when left out.")
    ] = None,
    role: Annotated[
        str | None, typer.Option(help="full, or storage: keep models and serve their blocks, run no engine.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Take tasks from anybody.")] = False,
    trust: Annotated[list[str] | None, typer.Option(help="Trust this publisher (peer id). Repeatable.")] = None,
    trust_all: Annotated[bool, typer.Option("--trust-all", help="Trust every publisher; for test networks.")] = False,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Take models by a bare root that no publisher signed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line when ready, then events as NDJSON.")] = False,
) -> None:
    """Start the node and stay until Ctrl-C. No config is needed."""
    config = settings.load(
        flags={
            "node": {"role": role},
            "api": {"listen": api},
            "network": {"listen": p2p, "bootstrap": bootstrap or None, "access": "open" if public else None},
            "gateway": {"listen": gateway},
            "models": {
                "serve": model or None,
                "trust": trust or None,
                "trust_all": trust_all or None,
                "allow_unsigned": allow_unsigned or None,
            },
            "engines": {"default": engine},
        }
    )
    from octonode.node.main import run_daemon

    run_daemon(
        config, on_ready=_show_ready_json if as_json else _show_ready, on_event=_show_json if as_json else _show_event
    )


def _say(text: str, end: str = "\n") -> None:
    """Straight to the descriptor: what is left in a buffer would make a daemon whose reader has gone end badly."""
    data = (text + end).encode()
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def _show_json(event: Mapping[str, Any]) -> None:
    _say(json.dumps(event, ensure_ascii=False, default=str))


def _show_ready_json(facts: Mapping[str, Any]) -> None:
    _show_json({name: facts[name] for name in ("peer_id", "addresses", "api", "gateway", "join", "pid")})


def _show_ready(facts: Mapping[str, Any]) -> None:
    keeps = facts["role"] == "storage"
    ask = (
        f"ask it:    curl {facts['api']}/v1/chat/completions -H 'content-type: application/json' "
        '-d \'{"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}\''
    )
    lines = [
        f"octonode {facts['version']}  {facts['tier'] or 'new'} node{', keeps models and runs none' if keeps else ''}",
        f"  peer     {facts['peer_id']}",
        f"  API      {facts['api']}/v1",
        f"  gateway  {facts['gateway'] or 'off'}",
        f"  join     octonode join {facts['join']}",
        "",
        f"pin here:  octonode models pin MODEL --on {facts['peer_id']}" if keeps else ask,
        "models:    octonode models ls        why is nobody there: octonode doctor        stop: Ctrl-C",
    ]
    _say("\n".join(lines))


def _show_event(event: Mapping[str, Any]) -> None:
    """One short line for what a person at the terminal wants to see; progress overwrites itself."""
    name = event["event"]
    if name == "model" and event["state"] == "fetching" and sys.stdout.isatty():
        total = event["total_bytes"] or 1
        share = event["done_bytes"] / total
        bar = "#" * int(30 * share)
        _say(f"\r  {event['reference']}  [{bar:<30}] {size(event['done_bytes'])} of {size(total)} ", end="")
    elif name == "model":
        _say(f"  model {event['reference']}: {event['state']}{' - ' + event['reason'] if event['reason'] else ''}")
    elif name in ("peer_connected", "peer_lost"):
        _say(f"  {name.replace('_', ' ')} {event['peer_id']}")
    elif name == "degraded":
        _say(f"  degraded: {event['part']}: {event['reason']}")
    elif name in ("leaving", "stopped"):
        _say(f"  {name}")


def stop(as_json: JsonFlag = False) -> None:
    """Ask the daemon to drain and end; wait until it has."""
    from octonode.client import Client

    home = settings.home_from(os.environ)
    with Client.from_home(home) as client:
        pid = client.node().pid
        client.stop()
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while (home / "daemon.json").exists() and _alive(pid):
        if time.monotonic() > deadline:
            raise OctonodeError(f"the daemon (pid {pid}) is still draining after {STOP_TIMEOUT_SECONDS:.0f} s")
        time.sleep(0.05)
    emit({"stopped": pid}, as_json=as_json, text="stopped")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def status(as_json: JsonFlag = False) -> None:
    """What the running node is and does."""
    from octonode.api.schema.shape import to_json
    from octonode.client import Client

    with Client.from_home(settings.home_from(os.environ)) as client:
        facts = client.node()
    lines = [
        f"{facts.state}  {facts.tier} {'storage ' if facts.role == 'storage' else ''}node  {facts.peer_id}",
        f"API {facts.api}  gateway {facts.gateway or 'off'}  pid {facts.pid}  up {_age(facts.started_at_ms)}",
        f"peers {facts.peers_connected} connected, {facts.peers_known} known  access {facts.access}  "
        f"muxer {facts.muxer}",
        f"engines {', '.join(facts.engines) or ('none: it keeps models' if facts.role == 'storage' else 'none')}",
        *([f"storage {_room(facts.storage)}"] if facts.storage else []),
        *(_gpu(each) for each in facts.gpus),
        *(_worker(each) for each in facts.workers),
        *(_serving(facts) or ["serving nothing"]),
        f"tasks {facts.tasks.running} running, {facts.tasks.queued} queued, "
        f"{facts.tasks.completed} completed, {facts.tasks.failed} failed",
        *(f"degraded: {each.part}: {each.reason}" for each in facts.degraded),
    ]
    emit(to_json(facts), as_json=as_json, text="\n".join(lines))


def _gpu(gpu: GpuFacts) -> str:
    """`GPU 0 NVIDIA L40S  87 %  5.0 GB of 48.3 GB  63 °C  250 W`, without what the driver does not say."""
    used = size(gpu.memory_used_bytes) if gpu.memory_used_bytes is not None else "?"
    parts = [
        f"GPU {gpu.gpu} {shown(gpu.name or gpu.vendor)}",
        f"{gpu.utilization_percent} %" if gpu.utilization_percent is not None else "",
        f"{used} of {size(gpu.memory_bytes)}" if gpu.memory_bytes is not None else "",
        f"{gpu.temperature_celsius} °C" if gpu.temperature_celsius is not None else "",
        f"{gpu.power_watts:.0f} W" if gpu.power_watts is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def _worker(worker: WorkerFacts) -> str:
    """`worker 4711 llama on cuda:0  my-model  ready  512.0 MB, GPU 5.0 GB  isolation full`."""
    where = f" on {', '.join(worker.devices)}" if worker.devices else ""
    memory = size(worker.memory_bytes) + (f", GPU {size(worker.gpu_memory_bytes)}" if worker.gpu_memory_bytes else "")
    name = f"  {shown(worker.model.rpartition('/')[2])}" if worker.model else ""
    line = f"worker {worker.pid or '-'} {worker.engine}{where}{name}  {worker.state}  {memory}"
    return f"{line}  isolation {worker.isolation}" if worker.isolation else line


def _serving(facts: NodeFacts) -> list[str]:
    """One line for each model."""
    return [f"serving {_marked(each, facts.unsigned)}" for each in facts.serving]


def _marked(reference: str, unsigned: Collection[str]) -> str:
    return f"{reference} (UNSIGNED)" if reference in unsigned else reference


def _room(room: StorageFacts) -> str:
    used = f"{size(room.used_bytes)} of {size(room.total_bytes)} used, {size(room.free_bytes)} free"
    return f"{room.pins} pins, {used}; see octonode models pins"


def _age(since_ms: int) -> str:
    seconds = max(0, int(time.time() - since_ms / 1000))
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def identity(as_json: JsonFlag = False) -> None:
    """This node's peer id; makes the key at the first call."""
    from octonode import identity as keys

    home = settings.home_from(os.environ)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    peer_id = keys.load_or_create(home).peer_id
    emit({"peer_id": peer_id, "home": str(home)}, as_json=as_json, text=peer_id)


def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing what is added.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """The daemon's log. Prompts and answers are never in it."""
    from octonode import log

    home = settings.home_from(os.environ)
    if not log.files(home):
        raise OctonodeError(f"there is no log in {home} yet; it begins with: octonode start", code="NOT_FOUND")
    show = _as_record if as_json else str
    try:
        for line in log.tail(home, lines):
            print(show(line), flush=True)
        for line in log.follow(home) if follow else ():
            print(show(line), flush=True)
    except BrokenPipeError:  # `octonode logs | head` has what it wanted
        sys.stdout = None  # or the interpreter complains when it flushes it


def _as_record(line: str) -> str:
    """One JSON object for a line of the log, in whatever format it is kept; a traceback's have only a message."""
    if line.startswith("{"):
        return line
    found = re.match(r"(?P<at>\S+Z) (?P<level>[A-Z]+) (?P<logger>[\w.]+): (?P<message>.*)", line)
    return json.dumps(found.groupdict() if found else {"message": line.strip("\t")}, ensure_ascii=False)
