"""The four services over one identity, put together; see `octonode.network.host.Network`."""

from __future__ import annotations

import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.network.host import SelectRecord, ValidateRecord
from octonode.network.libp2p.gossip import Gossip
from octonode.network.libp2p.host import Libp2pHost
from octonode.network.libp2p.kad import Kademlia


class Libp2pNetwork:
    """Constructed without I/O. `run` serves all of it; a part that fails is started again and the others go on."""

    def __init__(self, key: NodeKey, config: NetworkConfig, *, validator: ValidateRecord, select: SelectRecord) -> None:
        self.host = Libp2pHost(key, config)
        self.kademlia = Kademlia(self.host, config, validator=validator, select=select)
        self.pubsub = Gossip(self.host)

    @property
    def routing(self) -> Kademlia:
        return self.kademlia

    @property
    def values(self) -> Kademlia:
        return self.kademlia

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.host.run(task_status=task_status)
