"""Dial-back: a peer asks whether it can be reached from outside, and we try its ports. Spec: protocols/hello.md.

This must never become a way to make us knock at others: only the IP address of the asker's own connection is dialled,
whatever it writes, and the answer tells no more than whether libp2p speaks there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from octonode.network.addresses import AddressError, parse, same_ip
from octonode.network.hello_messages import Dialled, Outcome

MULTISTREAM = b"\x13/multistream/1.0.0\n"
"""What both ends of a libp2p connection over TCP say first."""
_PORT_ALONE = re.compile(r"/tcp/([0-9]{1,5})\Z")

Probe = Callable[[str, int], Awaitable[Outcome]]
"""(ip, port): what answers there. The caller sets the deadline."""


@dataclass(frozen=True, slots=True)
class Target:
    address: str
    """As asked for."""
    port: int = 0
    refusal: str = ""
    """Why it is not tried; empty: try the port."""


def targets(addresses: Sequence[str], observed_ip: str) -> list[Target]:
    """What to try of the `addresses` an asker named who is seen at `observed_ip`. Pure; never another host."""
    return [_target(text, observed_ip) for text in dict.fromkeys(addresses)]


def _target(text: str, observed_ip: str) -> Target:
    if alone := _PORT_ALONE.match(text):
        port = int(alone[1])
        return Target(text, port) if 0 < port <= 65535 else Target(text, refusal=f"{port} is not a port")
    try:
        address = parse(text)
    except AddressError as error:
        return Target(text, refusal=error.message)
    if address.kind.startswith("dns") or not same_ip(address.host, observed_ip):
        return Target(text, refusal=f"you are seen at {observed_ip}; no other host is dialled for you")
    if address.ws or not address.port:
        return Target(text, refusal="only plain TCP ports above 0 are tried")
    return Target(text, address.port)


async def dial_back(addresses: Sequence[str], observed_ip: str, probe: Probe, timeout_seconds: float) -> list[Dialled]:
    """Try each target, one after the other."""
    results = []
    for target in targets(addresses, observed_ip):
        if target.refusal:
            results.append(Dialled(target.address, "refused", target.refusal))
            continue
        outcome: Outcome = "silent"
        with trio.move_on_after(timeout_seconds):
            outcome = await probe(observed_ip, target.port)
        results.append(Dialled(target.address, outcome, _DETAILS[outcome]))
    return results


_DETAILS: dict[Outcome, str] = {
    "reached": "",
    "refused": "not tried",
    "closed": "the connection is refused: nothing listens on this port, or a firewall rejects it",
    "silent": "no answer: a firewall or a router drops it",
    "stranger": "something listens there that does not speak libp2p: the port is forwarded to another program",
}


async def tcp_probe(ip: str, port: int) -> Outcome:
    """Connect, say multistream, and see whether it is said back."""
    try:
        stream = await trio.open_tcp_stream(ip, port)
    except OSError:
        return "closed"
    async with stream:
        try:
            await stream.send_all(MULTISTREAM)
            heard = b""
            while len(heard) < len(MULTISTREAM):
                data = await stream.receive_some(len(MULTISTREAM))
                if not data:
                    break
                heard += data
        except (trio.BrokenResourceError, OSError):
            return "stranger"
    return "reached" if heard.startswith(MULTISTREAM) else "stranger"
