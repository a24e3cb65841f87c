"""The network on py-libp2p, behind a firewall: the only package that imports libp2p, and only when it is used.

Nothing that a peer sends and nothing that dies inside the library ends the daemon (protocols/decisions/0006).
"""

from __future__ import annotations

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.network.host import Network, SelectRecord, ValidateRecord


def build_network(key: NodeKey, config: NetworkConfig, *, validator: ValidateRecord, select: SelectRecord) -> Network:
    """A node's network, not yet running; importing the library takes a second or more here.

    `validator(key, value)` and `select(key, values)` decide over records of the namespace `octo`.
    """
    from octonode.network.libp2p.network import Libp2pNetwork

    return Libp2pNetwork(key, config, validator=validator, select=select)
