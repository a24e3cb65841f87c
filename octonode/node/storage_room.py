"""What keeps models for others, built from what holds, reaches and fetches them."""

from __future__ import annotations

from octonode.config import Config
from octonode.identity import NodeKey
from octonode.node.fetches import Fetches
from octonode.node.keeper import NodeKeeper
from octonode.node.pin_table import PinTable
from octonode.node.rooms import Holdings, Presence, Reach
from octonode.node.storage import Pins, Storage, build_storage
from octonode.node.view import View
from octonode.tasks.pin_asking import PinAsker
from octonode.tasks.receipts import TaskLog


def build_keeper(
    config: Config, key: NodeKey, reach: Reach, holdings: Holdings, presence: Presence, fetches: Fetches, view: View
) -> Storage:
    """The view shows it from then on. Raises ConfigError."""
    keeper = NodeKeeper(
        own=key.peer_id, library=holdings.library, shelf=holdings.shelf, source=holdings.source, fetches=fetches,
        residency=holdings.residency, others=reach.copies,
    )  # fmt: skip
    storage = build_storage(config, key.peer_id, keeper, PinTable(holdings.state), changed=presence.announcer.changed)
    view.storage = storage
    return storage


def build_pins(
    config: Config, key: NodeKey, reach: Reach, holdings: Holdings, storage: Storage, tasks: TaskLog
) -> Pins:
    asker = PinAsker(
        host=reach.network.host, signer=key, settings=config.tasks, token_for=reach.access.show,
        receipts=holdings.state, tasks=tasks,
    )  # fmt: skip
    return Pins(
        storage, asker, own=key.peer_id, library=holdings.library, shelf=holdings.shelf, resolver=holdings.resolver
    )
