"""`octonode demo`: four real nodes on this machine, a real model by its content address, an answer, a receipt."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octonode.cli.ask import save_receipt
from octonode.cli.output import shown, size
from octonode.errors import NotFound, OctonodeError

if TYPE_CHECKING:
    import trio

    from octonode.api.schema import Answer
    from octonode.testing.daemon import Daemon

MODEL_FILE = Path("build/models/SmolLM2-135M-Instruct.Q4_1.gguf")
MODEL_NAME = "smollm2-135m-instruct"
QUESTION = "Say in one sentence what a peer-to-peer network is."
PLAY_TIMEOUT_SECONDS = 600.0


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    model: Annotated[Path, typer.Option(help="A GGUF file; `make demo` fetches a small one.")] = MODEL_FILE,
    out: Annotated[Path, typer.Option(help="Where demo.json and demo/*.bin go.")] = Path("build"),
    question: Annotated[str, typer.Option(help="What to ask.")] = QUESTION,
    max_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 64,
) -> None:
    """Four nodes, a real model, an answer with a receipt.

    One node publishes the model, another fetches and serves it, and a third, with neither model nor engine, asks. The
    fourth is the only one that the others were told of, and it is stopped before the question is asked.
    """
    if not model.is_file():
        raise NotFound(
            f"{model} is not there; run `make demo` in a checkout, or name a GGUF file: octonode demo --model FILE"
        )
    import trio

    with tempfile.TemporaryDirectory(prefix="octonode-demo-") as homes:
        facts = trio.run(_play, Path(homes), model.absolute(), out, question, max_tokens)
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _show_facts(facts, out)


async def _play(homes: Path, model: Path, out: Path, question: str, max_tokens: int) -> dict[str, Any]:
    import trio

    from octonode.cli.testnet import Daemon

    say("four nodes on this machine, each its own process and identity; the others know only D")
    nodes = {name: Daemon(homes / name, name=name) for name in "DABC"}
    async with trio.open_nursery() as nursery:
        try:
            with trio.move_on_after(PLAY_TIMEOUT_SECONDS) as patience:
                return await _scenes(nodes, nursery, model, out, question, max_tokens)
        finally:
            for node in nodes.values():
                await node.stop()
            nursery.cancel_scope.cancel()
    assert patience.cancelled_caught
    raise OctonodeError(
        f"the demo was not done in {PLAY_TIMEOUT_SECONDS:.0f} s; is the machine very busy?", code="DEADLINE"
    )


async def _scenes(
    nodes: dict[str, Daemon], nursery: trio.Nursery, model: Path, out: Path, question: str, max_tokens: int
) -> dict[str, Any]:
    a, b, c, d = (nodes[name] for name in "ABCD")

    async def start(node: Daemon, *flags: str) -> None:
        await node.start(nursery, *flags)
        say(f"{node.name}  {node.peer_id}  API {node.api}")

    await start(d)
    await start(a, "--bootstrap", d.address)
    published = await _publish(a, model)
    reference = published["reference"]
    say(f"A published {MODEL_NAME}: {size(published['size_bytes'])}, root {published['root']}")
    await start(b, "--bootstrap", d.address, "--public", "--trust", a.peer_id, "--model", reference)
    fetched = await b.wait_for("fetched")
    sources = ", ".join(_source(source, a) for source in fetched["bytes_by_source"])
    say(f"B fetched it from {sources} in {fetched['seconds']:.1f} s")
    await b.wait_for("model", state="serving")
    say("B loaded it in a worker process and serves it")
    await start(c, "--bootstrap", d.address)
    await _all_joined(a, b, c)
    tiers = await _tiers(a, b, c, d)
    await d.stop()
    say("D is stopped; C finds a server by the DHT and asks")
    answer, ttft_ms, seconds = await _ask(c, reference, question, max_tokens)
    receipt = await _receipt(c, answer, out)
    return _facts(answer, receipt, published, fetched, tiers, nodes, ttft_ms, seconds)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def _source(source: str, a: Daemon) -> str:
    return "A" if a.peer_id in source else source


async def _publish(a: Daemon, model: Path) -> dict[str, Any]:
    """Through the API, as `octonode models add FILE --publish` does."""
    from octonode.api.schema import AddModel, to_json
    from octonode.client import AsyncClient

    async with AsyncClient.from_home(a.home) as client:
        request = AddModel(path=str(model), name=MODEL_NAME, version="1.0.0", license="Apache-2.0", publish=True)
        async with client.job(request) as stream:
            async for _ in stream:
                pass
        assert stream.result.outcome is not None
        return dict(to_json(stream.result.outcome.model))


async def _all_joined(*nodes: Daemon) -> None:
    """Every node has met every other, so the one they came by may go."""
    import trio

    from octonode.client import AsyncClient

    for node in nodes:
        others = {other.peer_id for other in nodes if other is not node}
        async with AsyncClient.from_home(node.home) as client:
            while not others <= {peer.peer_id for peer in await client.peers() if peer.connected}:
                await trio.sleep(0.1)


async def _tiers(*nodes: Daemon) -> dict[str, str]:
    from octonode.client import AsyncClient

    tiers = {}
    for node in nodes:
        async with AsyncClient.from_home(node.home) as client:
            tiers[node.name] = (await client.node()).tier
    return tiers


async def _ask(c: Daemon, model: str, question: str, max_tokens: int) -> tuple[Answer, float, float]:
    """The answer, milliseconds to its first text and seconds in all, as C's client sees them."""
    from octonode.client import AsyncClient

    print(f"\n> {question}\n", flush=True)
    begun = time.perf_counter()
    first = 0.0
    async with AsyncClient.from_home(c.home) as client:
        options = {"max_tokens": max_tokens, "temperature": 0, "request": True}
        async with client.chat(model, [{"role": "user", "content": question}], **options) as stream:
            async for text in stream:
                first = first or time.perf_counter() - begun
                print(shown(text), end="", flush=True)
    print("\n", flush=True)
    return stream.result, first * 1000, time.perf_counter() - begun


async def _receipt(c: Daemon, answer: Answer, out: Path) -> dict[str, Any]:
    """Save what was signed, and check it as a third party would: from the bytes alone."""
    import hashlib

    from octonode.client import AsyncClient
    from octonode.protocol.codec import unpack
    from octonode.protocol.limits import DEFAULT_LIMITS
    from octonode.protocol.receipt import verify_receipt

    assert answer.facts is not None
    async with AsyncClient.from_home(c.home) as client:
        stored = await client.receipt(answer.facts.task)
    save_receipt(out / "demo", request=answer.facts.request, receipt=stored.receipt)
    receipt = verify_receipt((out / "demo" / "receipt.bin").read_bytes())
    header, _, _ = unpack((out / "demo" / "request.bin").read_bytes(), DEFAULT_LIMITS)
    request_sha256 = hashlib.sha256(header).digest()
    good = stored.verified and answer.facts.verified and receipt.request == request_sha256
    if not good:
        raise OctonodeError(f"the receipt does not verify: {answer.facts.reason}", code="VERIFICATION_FAILED")
    proven = {"verified": good, "request_sha256": request_sha256.hex(), "provider": stored.provider}
    return {**stored.facts, **proven}


def _facts(
    answer: Answer,
    receipt: dict[str, Any],
    published: dict[str, Any],
    fetched: dict[str, Any],
    tiers: dict[str, str],
    nodes: dict[str, Daemon],
    ttft_ms: float,
    seconds: float,
) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "model": published["reference"],
        "model_root": published["root"],
        "manifest": published["manifest"],
        "nodes": [{"name": name, "peer_id": node.peer_id, "tier": tiers.get(name, "")} for name, node in nodes.items()],
        "bytes_fetched": fetched["bytes_by_source"],
        "ttft_ms": round(ttft_ms, 1),
        "tokens_per_second": round((answer.tokens_out - 1) / max(seconds - ttft_ms / 1000, 1e-9), 1),
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "receipt_verified": receipt["verified"],
        "receipt": receipt,
    }


def _show_facts(facts: dict[str, Any], out: Path) -> None:
    receipt = facts["receipt"]
    lines = [
        "nodes          " + ", ".join(f"{node['name']} ({node['tier']})" for node in facts["nodes"]),
        f"model root     {facts['model_root']}",
        f"manifest       {facts['manifest']}",
        *(f"fetched        {size(count)} from {source}" for source, count in facts["bytes_fetched"].items()),
        f"first token    {facts['ttft_ms']:.0f} ms",
        f"speed          {facts['tokens_per_second']:.1f} tokens/s",
        f"receipt        {'verified' if facts['receipt_verified'] else 'NOT verified'}",
        f"  request      {receipt['request_sha256']}",
        f"  provider     {receipt['provider']}",
        f"  tokens       {facts['tokens_in']} in, {facts['tokens_out']} out",
        f"  transcript   {receipt.get('transcript', '')}",
        f"saved          {out / 'demo.json'}, {out / 'demo' / 'request.bin'}, {out / 'demo' / 'receipt.bin'}",
        "",
        "try next:",
        f"  {_command()} start                      serve from this machine",
        f"  {_command()} run {MODEL_FILE} 'Hello'   ask the model right here",
        f"  {_command()} testnet 5                  five nodes to play with",
    ]
    print("\n".join(lines), flush=True)


def _command() -> str:
    return ".venv/bin/octonode" if Path(".venv/bin/octonode").exists() else sys.argv[0].rpartition("/")[2]
