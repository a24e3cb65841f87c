"""A peer in a process of its own, to be killed and stopped. Prints its address; serves echo and pour."""

from __future__ import annotations

import sys
from typing import Any

import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.network.host import Stream
from octonode.network.libp2p.host import Libp2pHost


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


async def pour(stream: Stream) -> None:
    while True:
        await stream.send(bytes(1000))
        await trio.sleep(0.001)


async def main(seed: str, muxer: Any) -> None:
    host = Libp2pHost(NodeKey(bytes.fromhex(seed)), NetworkConfig(listen="127.0.0.1:0", muxer=muxer))
    host.handle("/test/echo/1", echo)
    host.handle("/test/pour/1", pour)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        print(host.addresses[0], flush=True)


trio.run(main, sys.argv[1], sys.argv[2])
