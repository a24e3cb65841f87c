"""Nothing that dies inside the library ends the daemon: every task of it runs in one of these two wrappers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

log = logging.getLogger(__name__)

RESET_SECONDS = 2.0
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


async def reset_quietly(stream: Any) -> None:
    """Reset a stream, of the library or ours, within moments. Never raises."""
    with trio.move_on_after(RESET_SECONDS, shield=True):
        await contained("resetting a stream", stream.reset, level=logging.DEBUG)


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


class ContainedTasks:
    """Stands in for the library's service manager, under which one failing task ends all others.

    `spawn(what, work, *args)` starts a contained task. `on_failure(work)` is told of a task that raised. When a task
    that should run for ever ends, the service is finished, for whoever supervises it to start again.
    """

    def __init__(
        self,
        spawn: Callable[..., None],
        on_failure: Callable[[Callable[..., Awaitable[Any]]], Awaitable[None]] | None = None,
    ) -> None:
        self._spawn = spawn
        self._on_failure = on_failure
        self._finished = trio.Event()

    @property
    def is_running(self) -> bool:
        return not self._finished.is_set()

    @property
    def is_finished(self) -> bool:
        return self._finished.is_set()

    def run_task(
        self, work: Callable[..., Awaitable[Any]], *args: Any, daemon: bool = False, name: str | None = None
    ) -> None:
        self._spawn(name or getattr(work, "__qualname__", "a task of the library"), self._run, daemon, work, *args)

    def run_daemon_task(self, work: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None) -> None:
        self.run_task(work, *args, daemon=True, name=name)

    async def _run(self, daemon: bool, work: Callable[..., Awaitable[Any]], *args: Any) -> None:
        try:
            await work(*args)
        except Exception:
            if self._on_failure is not None:
                await self._on_failure(work)
            raise
        finally:
            if daemon:
                self.finish()

    async def wait_finished(self) -> None:
        await self._finished.wait()

    def finish(self) -> None:
        self._finished.set()


def _must_pass(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_must_pass(inner) for inner in error.exceptions)
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))
