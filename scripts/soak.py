"""Mixed load on the ground for minutes: does memory grow, does a stream fail that should not?

    python -m scripts.soak [--minutes 10] [--muxer own]        `make soak`

One process serves. One keeps 32 token streams, opens 20 streams a second and moves bulk, and counts what goes wrong.
Every 15 s a third connects, fills 20 streams both ways and is killed (-9). Resident memory of the first two is read
each second; the growth after the first minute must stay within 5 %, with no error: else the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from octonode.errors import OctonodeError
from scripts.bench import ground_ends as ends
from scripts.bench.nodes import START_SECONDS, resident_bytes
from scripts.bench.rows import median

PACED = "/bench/paced/1"
TOKEN_STREAMS = 32
TOKEN_SECONDS = 0.02
OPENS_PER_SECOND = 20
BULK_BYTES = 32_000_000
BULK_PAUSE_SECONDS = 1.0
VICTIM_EVERY_SECONDS = 15.0
VICTIM_LIVES_SECONDS = 5.0
VICTIM_STREAMS = 20
WARM_SECONDS = 60.0
AT_REST_SAMPLES = 10
GROWTH_MAX_PERCENT = 5.0


async def paced(stream: ends.Plain) -> None:
    while True:
        await stream.send(bytes(ends.MESSAGE_BYTES))
        await trio.sleep(TOKEN_SECONDS)


@dataclass
class Tally:
    frames: int = 0
    opens: int = 0
    bulk_bytes: int = 0
    errors: list[str] = field(default_factory=list)


async def steady(muxer: str, address: str, seconds: float) -> None:
    """The end that counts; prints its tally as JSON."""
    tally = Tally()
    async with ends.running(muxer, address) as (_, open_stream, _forget):
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(TOKEN_STREAMS):
                    nursery.start_soon(_counted, tally, _drink_tokens, open_stream, tally)
                nursery.start_soon(_counted, tally, _keep_opening, open_stream, tally)
                nursery.start_soon(_counted, tally, _move_bulk, open_stream, tally)
        shown = {"frames": tally.frames, "opens": tally.opens, "bulk_bytes": tally.bulk_bytes, "errors": tally.errors}
        print(json.dumps(shown), flush=True)


async def _counted(
    tally: Tally, work: Callable[[ends.Open, Tally], Awaitable[None]], open_stream: ends.Open, _: Tally
) -> None:
    try:
        await work(open_stream, tally)
    except OctonodeError as error:
        tally.errors.append(f"{work.__name__}: {error!r}")


async def _drink_tokens(open_stream: ends.Open, tally: Tally) -> None:
    stream = await open_stream(PACED)
    await stream.send(b"go")
    while data := await stream.receive():
        tally.frames += len(data) // ends.MESSAGE_BYTES
    tally.errors.append("a token stream ended")


async def _keep_opening(open_stream: ends.Open, tally: Tally) -> None:
    while True:
        stream = await open_stream(ends.ECHO)
        await ends.ask(stream)
        await stream.end()
        tally.opens += 1
        await trio.sleep(1 / OPENS_PER_SECOND)


async def _move_bulk(open_stream: ends.Open, tally: Tally) -> None:
    while True:
        await ends.pour_seconds(open_stream, ends.BULK, 1, BULK_BYTES)
        tally.bulk_bytes += BULK_BYTES
        await trio.sleep(BULK_PAUSE_SECONDS)


async def victim(muxer: str, address: str) -> None:
    """Fill streams both ways until killed."""
    async with ends.running(muxer, address) as (_, open_stream, _forget), trio.open_nursery() as nursery:

        async def fill() -> None:
            stream = await open_stream(ends.ECHO)
            async with trio.open_nursery() as both:
                both.start_soon(_send_for_ever, stream)
                while await stream.receive():
                    pass

        for _ in range(VICTIM_STREAMS):
            nursery.start_soon(fill)


async def _send_for_ever(stream: ends.Plain) -> None:
    while True:
        await stream.send(bytes(ends.PIECE_BYTES))
        await trio.sleep(TOKEN_SECONDS)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "scripts.soak", *words]


async def _kill_victims(muxer: str, address: str) -> None:
    while True:
        process = await trio.lowlevel.open_process(command("--victim", address, "--muxer", muxer))
        try:
            await trio.sleep(VICTIM_LIVES_SECONDS)
        finally:
            process.send_signal(signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
        await trio.sleep(VICTIM_EVERY_SECONDS - VICTIM_LIVES_SECONDS)


async def soak(minutes: float, muxer: str) -> bool:
    server = await trio.lowlevel.open_process(command("--serve", "--muxer", muxer), stdout=subprocess.PIPE)
    assert server.stdout is not None
    address = b""
    with trio.fail_after(START_SECONDS):
        while not address.endswith(b"\n"):
            address += await server.stdout.receive_some()
    where, seconds = address.decode().strip(), minutes * 60
    flags = ("--steady", where, "--muxer", muxer, "--minutes", str(minutes))
    client = await trio.lowlevel.open_process(command(*flags), stdout=subprocess.PIPE)
    samples: dict[str, list[int]] = {"server": [], "client": []}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_kill_victims, muxer, where)
        await trio.sleep(START_SECONDS / 30)
        for _ in range(int(seconds - START_SECONDS / 30)):
            await trio.sleep(1)
            samples["server"].append(resident_bytes(server.pid))
            samples["client"].append(resident_bytes(client.pid))
        nursery.cancel_scope.cancel()
    assert client.stdout is not None
    told = b""
    while piece := await client.stdout.receive_some():
        told += piece
    server.kill()
    await server.wait()
    await client.wait()
    return report(samples, json.loads(told))


def report(samples: dict[str, list[int]], tally: dict[str, object]) -> bool:
    """Whether all held."""
    holds = not tally["errors"]
    print(json.dumps(tally))
    for name, resident in samples.items():
        warm = int(WARM_SECONDS)
        early, late = median(resident[warm : warm + AT_REST_SAMPLES]), median(resident[-AT_REST_SAMPLES:])
        growth = 100 * (late - early) / early
        holds = holds and growth <= GROWTH_MAX_PERCENT
        print(f"{name}: {early / 1e6:.1f} MB after a minute, {late / 1e6:.1f} MB at the end, {growth:+.2f} %")
    print("all held" if holds else "NOT all held")
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--muxer", choices=("own", "stock"), default="own")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--steady", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--victim", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    ends.HANDLERS[PACED] = paced
    if options.serve:
        trio.run(ends.serve, options.muxer)
    elif options.steady:
        trio.run(steady, options.muxer, options.steady, options.minutes * 60)
    elif options.victim:
        trio.run(victim, options.muxer, options.victim)
    else:
        return 0 if trio.run(soak, options.minutes, options.muxer) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
