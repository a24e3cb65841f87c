"""Nothing that dies inside the library ends the daemon: every task of it runs in one of these two wrappers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

log = logging.getLogger(__name__)

RESTART_PAUSE_SECONDS = 0.5
RESTART_PAUSE_MAX_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
"""A service that ran for so long starts again with the first pause."""


async def contained(what: str, work: Callable[..., Awaitable[Any]], *args: Any, level: int = logging.WARNING) -> bool:
    """Run `work` to its end. False when it raised, which is logged and goes no further.

    `level` is DEBUG where a peer makes it fail at will: strangers do not write our log.

    Exceptions, groups of them, and a `Cancelled` that belongs to no scope of ours end here; a cancellation of our
    own surroundings, KeyboardInterrupt and SystemExit pass.
    """
    try:
        await work(*args)
    except BaseException as error:
        if _must_pass(error):
            raise
        await trio.lowlevel.checkpoint_if_cancelled()
        log.log(level, "%s failed: %r", what, error)
        log.debug("%s failed", what, exc_info=error)
        return False
    return True


async def supervised(what: str, work: Callable[[], Awaitable[Any]]) -> None:
    """Run `work` for ever: started again when it raises or returns, after 0.5 s, then 1, 2, 4 ... 30."""
    pause = RESTART_PAUSE_SECONDS
    while True:
        started_at = trio.current_time()
        await contained(what, work)
        if trio.current_time() - started_at >= HEALTHY_SECONDS:
            pause = RESTART_PAUSE_SECONDS
        log.warning("%s ended; it starts again in %g s", what, pause)
        await trio.sleep(pause)
        pause = min(2 * pause, RESTART_PAUSE_MAX_SECONDS)


def _must_pass(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_must_pass(inner) for inner in error.exceptions)
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))
