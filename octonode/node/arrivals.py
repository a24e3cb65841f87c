"""The parts by which models come and go other than through peers: hubs, uploads, smaller ones of those held."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from octonode.config import Config
from octonode.identity import NodeKey
from octonode.ipfs.kubo_rpc import rpc_base
from octonode.models.sources.https import gateway_base
from octonode.models.sources.hub import Hub, HubSettings
from octonode.node.hub import HubModels, MakeRoom
from octonode.node.quantizing import Quantizing
from octonode.node.rooms import Holdings
from octonode.node.uploads import Uploads


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What has to run beside the node."""

    hub: HubModels
    uploads: Uploads
    quantizing: Quantizing

    async def run(self) -> None:
        """Tidies up behind all of them, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.uploads.run)
            nursery.start_soon(self.hub.run)
            nursery.start_soon(self.quantizing.run)


def build_arrivals(config: Config, key: NodeKey, holdings: Holdings, make_room: MakeRoom) -> Arrivals:
    """Raises ConfigError for a hub, a gateway or a Kubo that is none."""
    models = config.models
    for url in models.gateways:
        gateway_base(url)
    if models.kubo_rpc:
        rpc_base(models.kubo_rpc)
    settings = HubSettings.of(models.hub_endpoint, models.hub_token, models.hub_patterns)
    hub = HubModels(
        Hub(settings), holdings.library, config.home, own=key.peer_id, refresh=holdings.source.refresh,
        make_room=make_room, expire_days=models.partial_days,
    )  # fmt: skip
    holdings.source.connect_hub(hub)
    quantizing = Quantizing(
        own=key.peer_id, home=config.home, settings=config.engines, library=holdings.library, gate=holdings.gate,
        refresh=holdings.source.refresh, make_room=make_room,
    )  # fmt: skip
    return Arrivals(hub, Uploads(config.home, holdings.store, expire_days=models.partial_days), quantizing)
