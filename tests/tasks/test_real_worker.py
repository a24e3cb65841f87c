"""The task room on a real worker process: the scripted adapter behind the supervisor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.supervisor import Supervisor
from octonode.tasks.dispatcher import Pieces, ProviderLost
from tests.tasks.nodes import Node, answer_of, ask, events_of, nodes, text_of

pytestmark = [pytest.mark.process]


@asynccontextmanager
async def with_worker(home: Path, **options: str | int | float | bool) -> AsyncIterator[tuple[Node, Node]]:
    supervisor = Supervisor(EnginesConfig(), directory=home / "workers")
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        async with nodes(home, 2, engines=(None, supervisor)) as (asker, provider):
            provider.options = options
            with trio.fail_after(60):
                await provider.serve()
            asker.book.at_hand = [provider.announcement()]
            yield asker, provider
        nursery.cancel_scope.cancel()


async def test_a_worker_answers_over_the_network_what_it_answers_at_home(tmp_path: Path) -> None:
    async with with_worker(tmp_path) as (asker, provider):
        with trio.fail_after(60):
            away = await events_of(asker, ask())
            at_home = await events_of(provider, ask())
        assert answer_of(away).verified
        assert answer_of(at_home).local
        assert text_of(away) == text_of(at_home) != ""
        assert answer_of(away).tokens_out == answer_of(at_home).tokens_out


async def test_a_worker_that_dies_in_the_middle_is_told_and_comes_back(tmp_path: Path) -> None:
    async with with_worker(tmp_path, crash_at_piece=20, tokens_per_second=200) as (asker, provider):
        with trio.fail_after(60), pytest.raises(ProviderLost) as caught:
            await events_of(asker, ask(max_tokens=60))
        assert len(caught.value.received) > 0
        assert [t.code for t in await provider.state.tasks()] == ["ENGINE_CRASHED"]
        asker.dispatcher.standings.succeeded(provider.peer)
        with trio.fail_after(60):  # the next question waits for the worker that is started again
            assert answer_of(await events_of(asker, ask(max_tokens=5))).verified


async def test_a_cancel_reaches_the_worker(tmp_path: Path) -> None:
    async with with_worker(tmp_path, tokens_per_second=50) as (asker, provider):
        with trio.fail_after(60):
            async with asker.dispatcher.ask(ask()) as events:
                async for event in events:
                    if isinstance(event, Pieces):
                        break
            while provider.provider.open:
                await trio.sleep(0.01)
        assert [t.state for t in await provider.state.tasks()] == ["canceled"]
