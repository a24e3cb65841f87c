"""Long verbs over HTTP: NDJSON lines of progress, the last one a result or an error. Spec: protocols/http.md.

What fails before its first progress has a plain HTTP status. Leaving cancels.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from starlette.types import Receive, Scope, Send

from octonode.api.body import BodyLimits, read_json
from octonode.api.faults import name_fault
from octonode.api.ports import Report
from octonode.api.schema import ModelProgress, error_body, line, parse, to_json
from octonode.api.streaming import NDJSON, EventStream, cancel_when_gone

PROGRESS_PAUSE_SECONDS = 0.1
"""Least time between two progress lines; the latest is what is sent."""
PING_LINE = line({"type": "ping"})


class Job:
    """A verb that takes long, as an ASGI application that streams its progress; `act` gives a schema dataclass."""

    def __init__(self, kind: type[Any], act: Callable[[Any, Report], Awaitable[Any]], limits: BodyLimits) -> None:
        self._kind = kind
        self._act = act
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = parse(self._kind, await read_json(scope, receive, self._limits))
        stream = EventStream(send, NDJSON, PING_LINE)
        latest = _Latest()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            nursery.start_soon(stream.keep_alive)
            nursery.start_soon(_show_progress, latest, stream)
            try:
                end = await trio.to_thread.run_sync(_end, await self._act(asked, latest.put))
            except Exception as fault:
                if not stream.started:
                    stream.be_silent()  # else a progress that waits to be shown would begin an answer
                    raise
                end = line({"type": "error", **error_body(name_fault(fault)[0])})
            await stream.end(end)
            nursery.cancel_scope.cancel()


def _end(result: Any) -> bytes:
    """For a thread: a result may have megabytes."""
    return line({"type": "result", "result": to_json(result)})


class _Latest:
    """The last progress reported; those before it are gone."""

    def __init__(self) -> None:
        self._progress: ModelProgress | None = None
        self._changed = trio.Event()

    def put(self, progress: ModelProgress) -> None:
        self._progress = progress
        self._changed.set()

    async def take(self) -> ModelProgress:
        await self._changed.wait()
        self._changed = trio.Event()
        assert self._progress is not None
        return self._progress


async def _show_progress(latest: _Latest, stream: EventStream) -> None:
    while True:
        await stream.write(line({"type": "progress", "progress": to_json(await latest.take())}))
        await trio.sleep(PROGRESS_PAUSE_SECONDS)
