"""Fixtures of the peers' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.network.peers.world import World


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[World]:
    """Tests that use it ask for `autojump_clock` too: only an argument of the test itself sets the clock."""
    yield World(nursery, tmp_path)
    nursery.cancel_scope.cancel()
