"""All of a node's dealings with peers, built over one network: what `node.py` makes and runs.

rules = RecordRules(now_ms)
network = build_network(key, settings, validator=rules.validate, select=rules.select)
peers = Peers(network=network, signer=key, settings=settings, home=home, facts=facts, manifests=library)
await nursery.start(network.run)
await nursery.start(peers.run)
...
await peers.announcer.leave(2.0)
"""

from __future__ import annotations

import random as random_module
from pathlib import Path

import trio

from octonode.config import NetworkConfig
from octonode.identity import Signer
from octonode.network.announcer import Announcer
from octonode.network.clock import Chance, NowMs, wall_clock_ms
from octonode.network.dialback import Probe, tcp_probe
from octonode.network.discovery import Discovery
from octonode.network.hello import Hello, Manifests
from octonode.network.hello_messages import HelloLimits
from octonode.network.host import Network
from octonode.network.intake import Intake
from octonode.network.membership import Membership
from octonode.network.own_announcement import Facts, OwnAnnouncement
from octonode.network.peerbook import Peerbook
from octonode.network.reachability import Reachability, check
from octonode.network.sequence import Sequence, SequenceFile


class Peers:
    """Peerbook, hello, announcer, membership and discovery of one node. No I/O before `run`; raises ConfigError for a
    malformed bootstrap, static or announced address."""

    def __init__(
        self,
        *,
        network: Network,
        signer: Signer,
        settings: NetworkConfig,
        home: Path,
        facts: Facts,
        manifests: Manifests | None = None,
        now_ms: NowMs = wall_clock_ms,
        random: Chance | None = None,
        limits: HelloLimits | None = None,
        probe: Probe = tcp_probe,
        sequence: Sequence | None = None,
    ) -> None:
        random = random or random_module.Random()
        host = network.host
        self._host, self._random = host, random
        self.book = Peerbook(host.peer_id, settings.peerbook_peers_max)
        self.intake = Intake(host, self.book, now_ms)
        self.own = OwnAnnouncement(
            signer=signer, host=host, facts=facts, sequence=sequence or SequenceFile(home), settings=settings,
            now_ms=now_ms,
        )  # fmt: skip
        self.hello = Hello(
            host=host, own=self.own, peerbook=self.book, intake=self.intake, now_ms=now_ms, random=random,
            manifests=manifests, limits=limits, probe=probe,
        )  # fmt: skip
        self.announcer = Announcer(
            own=self.own, host=host, hello=self.hello, routing=network.routing, values=network.values,
            pubsub=network.pubsub, settings=settings, now_ms=now_ms, random=random,
        )  # fmt: skip
        self.membership = Membership(
            host=host, hello=self.hello, intake=self.intake, peerbook=self.book, pubsub=network.pubsub,
            settings=settings, now_ms=now_ms, random=random,
        )  # fmt: skip
        self.discovery = Discovery(
            host=host, hello=self.hello, intake=self.intake, peerbook=self.book, routing=network.routing,
            values=network.values, now_ms=now_ms, random=random,
        )  # fmt: skip

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Join, announce and listen until cancelled. The network must be running."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.membership.run)
            await nursery.start(self.announcer.run)
            task_status.started()

    async def reachability(self) -> Reachability:
        """Whether others can reach us, by asking some to try. Takes up to 20 s; raises nothing."""
        return await check(self._host, self.hello, self._random)
