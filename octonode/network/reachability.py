"""Can others reach us? The verdict for `doctor`, from dial-backs by a few peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import trio

from octonode.errors import OctonodeError
from octonode.ids import PeerId
from octonode.network.addresses import AddressError, parse, scope_of
from octonode.network.clock import Chance
from octonode.network.hello import Hello
from octonode.network.hello_messages import DIALBACK_ADDRESSES_MAX, Dialled
from octonode.network.host import Host

PEERS_ASKED = 3
CHECK_TIMEOUT_SECONDS = 20.0

State = Literal["reachable", "local", "unreachable", "unknown"]


@dataclass(frozen=True, slots=True)
class Witness:
    """What one peer found when it dialled us, or why it did not."""

    peer_id: PeerId
    observed_ip: str = ""
    results: tuple[Dialled, ...] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Reachability:
    """`local`: reached, by peers on this machine or in its private network alone, which proves nothing of others."""

    state: State
    reason: str
    advice: str = ""
    witnesses: tuple[Witness, ...] = ()


def listening_ports(addresses: Sequence[str]) -> list[int]:
    """The plain TCP ports among our own multiaddrs."""
    ports: dict[int, None] = {}
    for text in addresses:
        try:
            address = parse(text)
        except AddressError:
            continue
        if address.port and not address.ws:
            ports.setdefault(address.port)
    return list(ports)[:DIALBACK_ADDRESSES_MAX]


def verdict(ports: Sequence[int], witnesses: Sequence[Witness]) -> Reachability:
    """What the witnesses' answers mean. Pure; the best news of any of them counts."""
    heard = tuple(witnesses)
    if not ports:
        return Reachability("unknown", "this node does not listen", "check network.listen", heard)
    answers = [witness for witness in heard if not witness.failure]
    if not answers:
        why = heard[0].failure if heard else "no peer is connected"
        return Reachability(
            "unknown", f"nobody could dial us back: {why}", "join a network first, then ask again", heard
        )
    reached = [witness for witness in answers if any(result.outcome == "reached" for result in witness.results)]
    if reached:
        outside = next((w for w in reached if scope_of(w.observed_ip) == "public"), None)
        if outside is not None:
            return Reachability("reachable", f"{outside.peer_id} reached us at {outside.observed_ip}", "", heard)
        seen = reached[0].observed_ip
        advice = "" if scope_of(seen) == "loopback" else "for peers elsewhere, forward the port and ask again"
        return Reachability("local", f"reached at {seen}, by a peer that is near", advice, heard)
    worst = next((r for w in answers for r in w.results if r.outcome != "refused"), None)
    if worst is None:
        return Reachability("unknown", "the peers did not try our ports", "", heard)
    return Reachability(
        "unreachable", f"{worst.address} at {answers[0].observed_ip}: {worst.detail}", _advice(worst), heard
    )


def _advice(result: Dialled) -> str:
    port = result.address.rpartition("/")[2]
    if result.outcome == "closed":
        return f"forward TCP port {port} of your router to this machine, or listen on 0.0.0.0 instead of loopback"
    if result.outcome == "stranger":
        return (
            f"TCP port {port} leads to another program; forward it to this node, or set network.listen to another port"
        )
    return (
        f"let TCP port {port} through the firewall and forward it on the router; then set network.announce_addresses. "
        "Asking others works without it; serving does not"
    )


async def check(
    host: Host, hello: Hello, random: Chance, timeout_seconds: float = CHECK_TIMEOUT_SECONDS
) -> Reachability:
    """Ask up to three connected peers to dial us. Raises nothing."""
    ports = listening_ports(host.addresses)
    wanted = [f"/tcp/{port}" for port in ports]
    connected = sorted(host.connected)
    witnesses: list[Witness] = []

    async def ask(peer_id: PeerId) -> None:
        try:
            answer = await hello.dialback(peer_id, wanted)
        except OctonodeError as error:
            witnesses.append(Witness(peer_id, failure=f"{error.code}: {error.message}"))
            return
        try:
            scope_of(answer.observed)
        except ValueError:
            witnesses.append(Witness(peer_id, failure=f"it sees us at {answer.observed[:64]!r}, which is no address"))
            return
        witnesses.append(Witness(peer_id, answer.observed, answer.results))

    if wanted:
        with trio.move_on_after(timeout_seconds):
            async with trio.open_nursery() as nursery:
                for peer_id in random.sample(connected, min(PEERS_ASKED, len(connected))):
                    nursery.start_soon(ask, peer_id)
    return verdict(ports, witnesses)
