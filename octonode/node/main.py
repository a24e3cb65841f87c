"""The life of a daemon: lock, run, signals, drain, exit."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import trio

from octonode import identity
from octonode import log as logs
from octonode.config import Config
from octonode.errors import OctonodeError
from octonode.node.events import Events
from octonode.node.lock import home_lock

log = logging.getLogger(__name__)

SHOW_SECONDS = 1.0
"""For the last events to be read, at the end."""

COLLECT_AFTER = (5_000, 10, 10)
"""Python's own first figure is 700. A passage over the objects of a thousand open streams takes a tenth of a second."""

Show = Callable[[Mapping[str, Any]], None]


def run_daemon(config: Config, *, on_ready: Show, on_event: Show) -> None:
    """Run a node until SIGINT, SIGTERM or `octonode stop`; drains, and a second signal quits at once.

    Raises OctonodeError: ALREADY_RUNNING, CONFIG for a port in use or a setting that cannot be.
    """
    with home_lock(config.home):
        logs.configure(config.log, home=config.home)
        key = identity.load_or_create(config.home)
        try:
            trio.run(_live, config, key, on_ready, on_event)
        except* OctonodeError as group:
            raise _first(group) from None


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The one error a person needs to see; the log has the rest."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _live(config: Config, key: identity.NodeKey, on_ready: Show, on_event: Show) -> None:
    events = Events()
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        shown = await nursery.start(_show_events, events, on_event, ready)
        await nursery.start(_watch_signals, stopping)
        from octonode.node.composition import build, run  # imports the network: a second or more

        node = build(config, key, events=events, stopping=stopping)
        gc.freeze()  # modules and what is built of them stay for good: 30 ms of every full collection
        gc.set_threshold(*COLLECT_AFTER)

        def tell(facts: Mapping[str, Any]) -> None:
            on_ready(facts)
            ready.set()

        await run(node, tell)
        events.emit("stopped")
        events.close()
        with trio.move_on_after(SHOW_SECONDS):
            await shown.wait()
        nursery.cancel_scope.cancel()


async def _show_events(
    events: Events, on_event: Show, ready: trio.Event, *, task_status: trio.TaskStatus[trio.Event]
) -> None:
    """From the ready line, which comes first, until the events end or nobody reads them.

    In a thread: a reader that stalls must not stall the node.
    """
    done = trio.Event()
    async with events.subscribe() as stream:
        task_status.started(done)
        await ready.wait()
        try:
            async for event in stream:
                await trio.to_thread.run_sync(on_event, event, abandon_on_cancel=True)
        except OSError as error:
            log.info("events are shown no more: %s", error.strerror)
        finally:
            done.set()


async def _watch_signals(stopping: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if stopping.is_set():
                print("octonode: quitting at once; open tasks are lost", file=sys.stderr, flush=True)
                os._exit(128 + number)  # nothing more is waited for; the workers see our end
            stopping.set()
