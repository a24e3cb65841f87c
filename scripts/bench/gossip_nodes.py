"""Four nodes in one process that gossip in a star, and the CPU time that one message costs all of them.

    python -m scripts.bench.gossip_nodes octonode|stock

Prints a line when the star stands; then measures one window for each line that it reads, and prints milliseconds a
message, the idle nodes' share taken off. `stock` is the library alone with its own defaults.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey

NODES = 4
MESSAGES = 100
"""Of one window, which so takes five seconds."""
MESSAGES_PER_SECOND = 20
PAYLOAD_BYTES = 208
WARM_MESSAGES = 20
IDLE_SECONDS = 2.0
ALL_HEARD_SECONDS = 15.0
MEET_SECONDS = 30.0
TOPIC = "/bench/gossip/1"

Publish = Callable[[bytes], Awaitable[None]]


class Tally:
    """Who has heard which message. A message begins with its number, and its author is number modulo nodes."""

    def __init__(self) -> None:
        self._heard: dict[int, set[int]] = defaultdict(set)

    def hear(self, node: int, data: bytes) -> None:
        number = int(data[:8])
        if node != number % NODES:
            self._heard[number].add(node)

    async def all_heard(self, numbers: range) -> None:
        """Raises RuntimeError when a message has not reached everybody in time."""
        with trio.move_on_after(ALL_HEARD_SECONDS):
            while self._missing(numbers):
                await trio.sleep(0.01)
        if missing := self._missing(numbers):
            raise RuntimeError(f"{missing} of {len(numbers) * (NODES - 1)} deliveries were lost")

    def _missing(self, numbers: range) -> int:
        return len(numbers) * (NODES - 1) - sum(len(self._heard[number]) for number in numbers)


async def window(publish: list[Publish], tally: Tally, first: int, count: int) -> float:
    """CPU seconds of `count` messages until everybody has heard them all."""
    used, begun = time.process_time(), trio.current_time()
    for number in range(first, first + count):
        await publish[number % NODES](b"%08d" % number + bytes(PAYLOAD_BYTES - 8))
        await trio.sleep_until(begun + (number - first + 1) / MESSAGES_PER_SECOND)
    await tally.all_heard(range(first, first + count))
    return time.process_time() - used


async def serve_windows(publish: list[Publish], tally: Tally) -> None:
    await window(publish, tally, 0, WARM_MESSAGES)
    await trio.sleep(IDLE_SECONDS)
    used, begun = time.process_time(), trio.current_time()
    await trio.sleep(IDLE_SECONDS)
    idle_share = (time.process_time() - used) / (trio.current_time() - begun)
    print("ready", flush=True)
    first = WARM_MESSAGES
    while await trio.to_thread.run_sync(sys.stdin.readline):
        begun = trio.current_time()
        used = await window(publish, tally, first, MESSAGES)
        used -= idle_share * (trio.current_time() - begun)
        first += MESSAGES
        print(f"{1000 * used / MESSAGES:.4f}", flush=True)


@asynccontextmanager
async def octonode_star(tally: Tally) -> AsyncIterator[list[Publish]]:
    """Host and gossip as `build_network` makes them; without the DHT, which would turn the star into a mesh."""
    from octonode.network.libp2p.gossip import Gossip
    from octonode.network.libp2p.host import Libp2pHost

    async def listen(index: int, channel: trio.MemoryReceiveChannel[Any]) -> None:
        async for _, data in channel:
            tally.hear(index, data)

    async with trio.open_nursery() as nursery:
        hosts: list[Libp2pHost] = []
        services: list[Gossip] = []
        for index in range(NODES):
            key = NodeKey(hashlib.sha256(f"gossip bench {index}".encode()).digest())
            hosts.append(Libp2pHost(key, NetworkConfig(listen="127.0.0.1:0")))
            services.append(Gossip(hosts[index]))
            await nursery.start(hosts[index].run)
            nursery.start_soon(listen, index, await services[index].subscribe(TOPIC))
            if index:
                await hosts[index].connect(hosts[0].addresses[0])
        with trio.fail_after(MEET_SECONDS):
            while [len(each.neighbours(TOPIC)) for each in services] != [NODES - 1, *(1 for _ in hosts[1:])]:
                await trio.sleep(0.05)
        await trio.sleep(IDLE_SECONDS)
        yield [partial(service.publish, TOPIC) for service in services]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stock_star(tally: Tally) -> AsyncIterator[list[Publish]]:
    from libp2p import new_host
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

    async def listen(index: int, subscription: Any) -> None:
        while True:
            tally.hear(index, (await subscription.get()).data)

    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        hosts: list[Any] = []
        services: list[Any] = []
        for index in range(NODES):
            host = new_host()
            await stack.enter_async_context(host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]))
            router = GossipSub(
                protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11, PROTOCOL_ID],
                degree=6,
                degree_low=4,
                degree_high=12,
                heartbeat_interval=1,
                spam_protection_enabled=False,
            )
            service = Pubsub(host, router, strict_signing=True)
            await stack.enter_async_context(background_trio_service(service))
            await stack.enter_async_context(background_trio_service(router))
            await service.wait_until_ready()
            nursery.start_soon(listen, index, await service.subscribe(TOPIC))
            hosts.append(host)
            services.append(service)
        for host in hosts[1:]:
            await host.connect(info_from_p2p_addr(hosts[0].get_addrs()[0]))
        with trio.fail_after(MEET_SECONDS):
            for host, service in zip(hosts[1:], services[1:], strict=True):
                await services[0].wait_for_mesh(host.get_id(), TOPIC, MEET_SECONDS)
                await service.wait_for_mesh(hosts[0].get_id(), TOPIC, MEET_SECONDS)
        await trio.sleep(IDLE_SECONDS)
        yield [partial(service.publish, TOPIC) for service in services]
        nursery.cancel_scope.cancel()


async def main(kind: str) -> None:
    tally = Tally()
    star = octonode_star if kind == "octonode" else stock_star
    async with star(tally) as publish:
        await serve_windows(publish, tally)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
