"""Providers that say whatever ends a question soonest, and the questions that go on elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock as Clock

from octonode.errors import TABLE
from octonode.ids import AGENT_PROTOCOL
from octonode.network.host import Stream
from octonode.protocol.exchange import Exchange
from octonode.protocol.framing import encode_uvarint
from octonode.protocol.messages import ErrorReport
from octonode.tasks.slots import new_id
from tests.tasks.nodes import Node, answer_of, ask, events_of, nodes, now_ms, providers_of


def refuse_with(node: Node, code: str) -> None:
    async def refuse(stream: Stream) -> None:
        exchange = Exchange("provider", node.key, stream.peer_id, new_id=new_id)
        while not exchange.receive(await stream.receive(), now_ms()):
            pass
        await stream.send(exchange.send(ErrorReport(code, "so I say"), now_ms()))
        await stream.finish()
        while await stream.receive():
            pass

    node.host.handle(AGENT_PROTOCOL, refuse)


@pytest.mark.parametrize("code", sorted(TABLE))
async def test_no_word_of_one_provider_ends_a_question(tmp_path: Path, autojump_clock: Clock, code: str) -> None:
    """Also words that are ours to say: that the request is bad, that our disk is full, that we read too slowly."""
    async with nodes(tmp_path, 3) as (asker, liar, honest):
        await honest.serve()
        refuse_with(liar, code)
        asker.book.at_hand = [liar.announcement(tokens_per_second=100), honest.announcement(tokens_per_second=1)]
        events = await events_of(asker, ask())
        assert providers_of(events) == [liar.peer, honest.peer]
        assert answer_of(events).verified
        assert asker.dispatcher.standings.all()[liar.peer].failures == 1, "and it stands behind the others now"


async def test_a_frame_of_gigabytes_does_not_end_a_question(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 3) as (asker, liar, honest):
        await honest.serve()

        async def too_much(stream: Stream) -> None:
            await stream.receive()
            await stream.send(encode_uvarint(1 << 30))
            while await stream.receive():
                pass

        liar.host.handle(AGENT_PROTOCOL, too_much)
        asker.book.at_hand = [liar.announcement(tokens_per_second=100), honest.announcement(tokens_per_second=1)]
        assert providers_of(await events_of(asker, ask())) == [liar.peer, honest.peer]
