"""Fixtures of the peers' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tests.network.peers.world import World


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[World]:
    """Tests that use it ask for `autojump_clock` too: only an argument of the test itself sets the clock."""
    yield World(nursery)
    nursery.cancel_scope.cancel()
