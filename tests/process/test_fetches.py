"""Fetches of real daemons: shared, paused, cancelled, in the background, over kill -9, and in a swarm of six."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from octonode.api.schema.fetches import FetchFacts, fetches
from octonode.client import Client
from octonode.testing.daemon import Daemon
from octonode.testing.testnet import write_scripted_model
from tests.process.fleet import Fleet, fails, octonode, works

pytestmark = pytest.mark.process

MIB = 1024 * 1024
SLOW = {"OCTONODE_GATEWAY_UPLOAD_BYTES_PER_SECOND_MAX": str(4 * MIB), "OCTONODE_BITSWAP_ENABLED": "false"}


def _publish(node: Daemon, path: Path, name: str) -> str:
    added = works(node.home, "models", "add", str(path), "--name", name, "--version", "1.0.0", "--publish")
    return str(added["model"]["reference"])


@pytest.fixture(scope="module")
def slow(fleet: Fleet, place: Path) -> Daemon:
    """Gives 4 MiB/s in all."""
    return fleet.start(place / "slow", "--public", extra=SLOW)


@pytest.fixture(scope="module")
def taker(fleet: Fleet, place: Path, slow: Daemon) -> Daemon:
    node = fleet.start(place / "taker", "--bootstrap", slow.address, "--trust-all")
    fleet.met(node, slow)
    return node


def _fetches(node: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = works(node.home, "models", "fetches")["fetches"]
    return found


def _until_done(fleet: Fleet, node: Daemon, at_least: int) -> FetchFacts:
    """The only fetch, once it is so far. Asked from here: a start of the command line may take as long as the fetch."""
    with Client.from_home(node.home) as client:
        (row,) = fleet.until(lambda: [each for each in client.do(fetches) if each.done_bytes > at_least])
    return row


def _state(node: Daemon, reference: str) -> dict[str, Any]:
    return works(node.home, "models", "show", reference)  # type: ignore[no-any-return]


def test_pause_resume_and_cancel(fleet: Fleet, slow: Daemon, taker: Daemon, tmp_path: Path) -> None:
    path = write_scripted_model(tmp_path / "m", size_bytes=160 * MIB, seed=1)  # 40 seconds
    reference = _publish(slow, path, "paused")
    told = works(taker.home, "models", "fetch", reference, "--background", "--priority", "3")
    assert "background" in told["note"]
    row = _until_done(fleet, taker, 4 * MIB)
    assert (row.state, row.priority, row.background) == ("running", 3, True)
    assert row.reference.startswith(reference)
    assert sum(row.bytes_by_source.values()) == row.done_bytes

    assert works(taker.home, "models", "pause", reference)["state"] == "paused"
    fleet.until(lambda: [each["bytes_per_second"] for each in _fetches(taker)] == [0.0])
    (one,), (two,) = _fetches(taker), _fetches(taker)
    assert one["done_bytes"] == two["done_bytes"]
    assert works(taker.home, "models", "prioritize", reference, "7")["priority"] == 7
    assert works(taker.home, "models", "resume", row.root)["state"] in ("queued", "running")
    _until_done(fleet, taker, two["done_bytes"])
    text = octonode(taker.home, "models", "fetches").out
    assert "running" in text
    assert "MB of" in text

    works(taker.home, "models", "cancel", reference)
    assert _fetches(taker) == []
    kept = fleet.until(lambda: _state(taker, reference)["have_bytes"])
    assert 0 < kept < path.stat().st_size
    fails(taker.home, "models", "pause", reference, code="MODEL_NOT_FOUND", exit_code=4)
    works(taker.home, "models", "fetch", reference, "--from", f"file:{path}")
    assert _state(taker, reference)["complete"]


def test_one_in_the_background_goes_on_after_kill_9(fleet: Fleet, slow: Daemon, taker: Daemon, tmp_path: Path) -> None:
    path = write_scripted_model(tmp_path / "m", size_bytes=48 * MIB, seed=2)
    reference = _publish(slow, path, "goes-on")
    works(taker.home, "models", "fetch", reference, "--background")
    _until_done(fleet, taker, 8 * MIB)
    fleet.kill(taker)
    fleet.again(taker)
    fleet.until(lambda: _state(taker, reference)["complete"])
    fleet.until(lambda: _fetches(taker) == [])


def test_two_who_ask_at_once_fetch_it_once(fleet: Fleet, slow: Daemon, taker: Daemon, tmp_path: Path) -> None:
    path = write_scripted_model(tmp_path / "m", size_bytes=12 * MIB, seed=3)
    reference = _publish(slow, path, "shared")
    before = _served_bytes(slow)
    _together([lambda: works(taker.home, "models", "fetch", reference) for _ in range(3)])
    assert _state(taker, reference)["complete"]
    assert _served_bytes(slow) - before < 1.1 * path.stat().st_size


def _served_bytes(node: Daemon) -> float:
    text = httpx.get(f"{node.api}/metrics", trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith("octonode_block_bytes_total{") and "served" in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _together(acts: list[Callable[[], Any]]) -> None:
    faults: list[BaseException] = []

    def run(act: Callable[[], Any]) -> None:
        try:
            act()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_six_daemons_take_a_model_about_once_from_its_first_holder(fleet: Fleet, place: Path, tmp_path: Path) -> None:
    limit = {**SLOW, "OCTONODE_GATEWAY_UPLOAD_BYTES_PER_SECOND_MAX": str(16 * MIB)}
    first = fleet.start(place / "first", "--public", extra=limit)
    six = [
        fleet.start(place / f"six-{number}", "--bootstrap", first.address, "--trust-all", "--public")
        for number in range(6)
    ]
    for node in six:
        fleet.met(node, first, *(other for other in six if other is not node))
    seed = 20261127
    print("seed", seed)
    path = write_scripted_model(tmp_path / "m", size_bytes=128 * MIB, seed=random.Random(seed).randrange(1000))
    reference = _publish(first, path, "swarm")
    try:
        before = _served_bytes(first)
        _together([lambda node=node: works(node.home, "models", "fetch", reference) for node in six])  # type: ignore[misc]
        times = (_served_bytes(first) - before) / path.stat().st_size
        print("from the first holder:", times, "times the file")
        assert times <= 1.25
        for node in six:
            with Client.from_home(node.home) as client:
                assert client.model(reference).complete
    finally:
        for node in six:
            fleet.stop(node)


def test_a_holder_without_a_gateway_gives_its_blocks_over_bitswap(
    fleet: Fleet, place: Path, taker: Daemon, tmp_path: Path
) -> None:
    holder = fleet.start(
        place / "no-gateway", "--bootstrap", taker.address, "--public", extra={"OCTONODE_GATEWAY_ENABLED": "false"}
    )
    fleet.met(taker, holder)
    path = write_scripted_model(tmp_path / "m", size_bytes=12 * MIB, seed=4)
    reference = _publish(holder, path, "no-gateway")
    fetched = works(taker.home, "models", "fetch", reference)
    assert fetched["bytes_by_source"] == {f"bitswap:{holder.peer_id}": path.stat().st_size}
    assert _state(taker, reference)["complete"]
    fleet.stop(holder)


def test_what_an_earlier_download_has_is_not_fetched(fleet: Fleet, slow: Daemon, taker: Daemon, tmp_path: Path) -> None:
    path = write_scripted_model(tmp_path / "m", size_bytes=12 * MIB, seed=5)
    reference = _publish(slow, path, "half-here")
    half = tmp_path / "half.model"
    half.write_bytes(path.read_bytes()[: 7 * MIB + 5])
    fetched = works(taker.home, "models", "fetch", reference, "--from", f"file:{half}")
    assert fetched["bytes_by_source"] == {str(half): 7 * MIB, f"gateway:{slow.peer_id}": 5 * MIB}
    fails(taker.home, "models", "fetch", reference, "--from", "file:half.model", code="BAD_REQUEST", exit_code=2)


def test_an_address_that_cannot_be_is_refused_before_anything_is_asked(taker: Daemon) -> None:
    root = "bafybeiglsxk4eu63zlt3itpgvjrnriwd4w4lctggo5qjhbfj7m4q4mjtza"
    message = fails(
        taker.home, "models", "fetch", f"cid:{root}", "--allow-unsigned", "--from", "/ip4/127.0.0.1/tcp/1",
        code="BAD_REQUEST", exit_code=2,
    )  # fmt: skip
    assert "/p2p/" in message
    message = fails(
        taker.home, "models", "fetch", f"cid:{root}", "--background", "--pin", code="BAD_REQUEST", exit_code=2
    )
    assert "octonode models pin" in message
