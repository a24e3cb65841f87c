"""What a server that has become ready says of itself, and what can be seen of its processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psutil
import trio

from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.engines.servers.dialects import BY_OWNER, LLAMA, PLAIN, Dialect
from octonode.engines.servers.kinds import Launch, ServerKind
from octonode.engines.servers.openai_http import OpenAiServer
from octonode.engines.servers.process import LOOPBACK, backend_of, listening
from octonode.errors import OctonodeError

ASK_SECONDS: Final = 10.0
"""For all questions to a server that has just become ready."""
NAME_CHARACTERS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Seen:
    facts: EngineFacts
    dialect: Dialect
    model: str
    """As the server calls it."""
    sandbox: tuple[str, ...]


async def look_at(
    server: OpenAiServer,
    kind: ServerKind,
    launch: Launch,
    request: LoadRequest,
    processes: Sequence[psutil.Process],
) -> Seen:
    """Asks a ready server, and looks at its processes; none: it is not ours.

    Raises OctonodeError ENGINE_FAILED when it does not answer as such a server does.
    """
    with trio.move_on_after(ASK_SECONDS) as scope:
        model = _model(await server.get("/v1/models"))
        owner = str(model.get("owned_by", ""))
        dialect = kind.dialect or BY_OWNER.get(owner, PLAIN)
        version = await _version(server, dialect)
    if scope.cancelled_caught:
        raise OctonodeError("the server does not say which model it has", code="ENGINE_FAILED")
    meta = model.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    told = model.get("max_model_len") or meta.get("n_ctx")
    context = told if isinstance(told, int) and told > 0 else request.context_tokens
    name = kind.name if kind.dialect is not None else dialect.name
    facts = EngineFacts(
        engine=kind.name,
        build=f"{name} {version}".strip()[:NAME_CHARACTERS_MAX],
        backend=await trio.to_thread.run_sync(backend_of, processes) if processes else "server",
        instruction_set="",
        context_tokens=context,
        parallel=launch.parallel or await _slots(server, dialect) or request.parallel,
        quantization=launch.quantization or str(meta.get("ftype", ""))[:NAME_CHARACTERS_MAX],
        flags=dict(launch.flags),
        category=request.category,
    )
    return Seen(facts, dialect, str(model["id"]), await _sandbox(processes))


def _model(listing: Any) -> dict[str, Any]:
    models = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(models, list) or not models or not isinstance(models[0], dict) or "id" not in models[0]:
        text = "the server lists no model under /v1/models; is it one of OpenAI's API?"
        raise OctonodeError(text, code="ENGINE_FAILED")
    return models[0]


async def _version(server: OpenAiServer, dialect: Dialect) -> str:
    path, key = ("/props", "build_info") if dialect is LLAMA else ("/version", "version")
    try:
        document = await server.get(path)
    except OctonodeError:
        return ""
    return str(document.get(key, "")) if isinstance(document, dict) else ""


async def _slots(server: OpenAiServer, dialect: Dialect) -> int:
    """How many requests a llama-server decodes together; 0: it does not say."""
    if dialect is not LLAMA:
        return 0
    try:
        document = await server.get("/props")
    except OctonodeError:
        return 0
    slots = document.get("total_slots", 0) if isinstance(document, dict) else 0
    return slots if isinstance(slots, int) else 0


async def _sandbox(processes: Sequence[psutil.Process]) -> tuple[str, ...]:
    """The layers around a server, as those of workers are told; see `sandbox.level`."""
    if not processes:
        return ("sandbox: off (a server that is not ours)",)
    beyond = sorted(
        f"{address}:{port}"
        for address, port in await trio.to_thread.run_sync(listening, processes)
        if not address.startswith(LOOPBACK)
    )
    network = f"loopback: off (it listens on {', '.join(beyond[:4])})" if beyond else "loopback only"
    reason = "a server of its own, with files and sockets we do not choose"
    return ("own process group", "no new privileges", network, f"landlock: off ({reason})", f"seccomp: off ({reason})")
