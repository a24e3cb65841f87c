"""What the tests of fan-out share: nodes that speak, who greets and who opens streams, frames."""

from __future__ import annotations

from typing import Any

import trio

from octonode.ids import ANNOUNCE_TOPIC, FANOUT_PROTOCOL, PeerId
from octonode.network.fanout_messages import FanoutLimits, Said, encode_said
from octonode.network.host import Stream, StreamReset
from octonode.protocol.framing import encode_frame
from tests.network.peers.world import Node, World, now_ms, until

TOPIC = "/test/topic/1"
LIMITS = FanoutLimits()


def counting(node: Node) -> list[PeerId]:
    """Whom it greets by hello from now on."""
    greeted: list[PeerId] = []
    greet = node.peers.hello.greet

    async def counted(peer_id: PeerId) -> Any:
        greeted.append(peer_id)
        return await greet(peer_id)

    node.peers.hello.greet = counted  # type: ignore[method-assign]
    return greeted


def opening(node: Node) -> list[PeerId]:
    """To whom it opens fan-out streams from now on."""
    opened: list[PeerId] = []
    open_stream = node.network.host.open

    async def watched(peer_id: PeerId, protocol: str) -> Stream:
        if protocol == FANOUT_PROTOCOL:
            opened.append(peer_id)
        return await open_stream(peer_id, protocol)

    node.network.host.open = watched  # type: ignore[method-assign]
    return opened


async def unheard(topic: str, data: bytes) -> None:
    """Gossip that reaches nobody."""
    await trio.lowlevel.checkpoint()


def region(node: Node, of: Node) -> str:
    """What `node` has heard of another."""
    known = node.peers.book.get(of.id, now_ms())
    return known.region if known else ""


def frame_of(data: bytes, topic: str = ANNOUNCE_TOPIC) -> bytes:
    return encode_frame(encode_said(Said(topic, data)))


async def met(world: World, *names: str, **options: Any) -> list[Node]:
    """Nodes that run, are all connected and have told each other their announcements more than once."""
    nodes = [await world.start(name, **options) for name in names]
    for index, node in enumerate(nodes):
        for other in nodes[:index]:
            await node.peers.membership.join(other.address)
    await until(lambda: all(n.knows(*(o for o in nodes if o is not n)) for n in nodes))
    await trio.sleep(130)
    return nodes


async def speaking(world: World, name: str, **options: Any) -> Node:
    """A node that does nothing by itself, and may speak over fan-out."""
    node = await world.listen_only(name, **options)
    await world.nursery.start(node.peers.fanout.run)
    return node


async def speaker(world: World, **options: Any) -> tuple[Node, Node, list[bytes]]:
    """A speaks, B listens; what B has heard on TOPIC."""
    a, b = await speaking(world, "a", **options), await world.listen_only("b")
    await a.network.host.connect(b.address)
    heard: list[bytes] = []
    b.peers.fanout.hear(TOPIC, lambda data, _: heard.append(data))
    return a, b, heard


async def is_reset(stream: Stream, data: bytes = b"") -> bool:
    """Whether it is, while `data` is sent or after."""
    with trio.move_on_after(5):
        try:
            await stream.send(data)
            await stream.receive()
        except StreamReset:
            return True
    return False
