"""What daemons tell of themselves at /metrics while something is measured."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import trio

from octonode.testing.daemon import Daemon

LOOK_SECONDS = 0.25
"""As often as a daemon looks at its own loop."""
_LAG = re.compile(r"^octonode_loop_lag_seconds (\S+)$", re.MULTILINE)


@asynccontextmanager
async def lags_of(daemons: Sequence[Daemon]) -> AsyncIterator[list[float]]:
    """Seconds by which the loops of the daemons were late, looked at as long as the block runs."""
    lags: list[float] = []
    async with trio.open_nursery() as nursery, httpx.AsyncClient() as client:

        async def look(daemon: Daemon) -> None:
            while True:
                await trio.sleep(LOOK_SECONDS)
                text = (await client.get(f"{daemon.api}/metrics")).text
                found = _LAG.search(text)
                if found is None:
                    raise RuntimeError("the daemon tells no octonode_loop_lag_seconds")
                lags.append(float(found[1]))

        for daemon in daemons:
            nursery.start_soon(look, daemon)
        yield lags
        nursery.cancel_scope.cancel()
