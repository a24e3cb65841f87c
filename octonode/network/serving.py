"""Run a stream handler so that nothing in it can hurt anybody but its own stream."""

from __future__ import annotations

import logging

import trio

from octonode.network.host import Stream, StreamHandler, StreamReset

log = logging.getLogger(__name__)

LINGER_SECONDS = 5.0
"""After a handler has returned: how long the peer may take to finish its side before the stream is reset."""
LINGER_BYTES_MAX = 1024 * 1024
"""And how much it may still send."""
CLEANUP_SECONDS = 2.0
"""A reset is a frame to write; on a dead connection it is given up after this."""


async def serve(handler: StreamHandler, stream: Stream) -> None:
    """Run `handler` to its end, then end the stream. Raises nothing but a cancellation of our own surroundings.

    A handler that returns has its stream finished, drained for a moment and, if the peer does not finish either,
    reset. A handler that raises, be it an exception, a group of them or a stray `Cancelled` of a scope that it has
    already left, has its stream reset and is logged.
    """
    try:
        await handler(stream)
        await _end(stream)
    except BaseException as error:
        with trio.move_on_after(CLEANUP_SECONDS, shield=True):
            await stream.reset()
        if _asks_to_exit(error):
            raise
        # Raises here when it was our surroundings that were cancelled; a stray Cancelled falls through.
        await trio.lowlevel.checkpoint_if_cancelled()
        _report(stream, error)


async def _end(stream: Stream) -> None:
    with trio.move_on_after(LINGER_SECONDS):
        await stream.finish()
        left_bytes = LINGER_BYTES_MAX
        while left_bytes > 0:
            chunk = await stream.receive()
            if not chunk:
                return
            left_bytes -= len(chunk)
    await stream.reset()


def _asks_to_exit(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_asks_to_exit(inner) for inner in error.exceptions)
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))


def _report(stream: Stream, error: BaseException) -> None:
    if isinstance(error, StreamReset):
        log.debug("stream %s with %s was reset", stream.protocol, stream.peer_id)
        return
    log.error("the handler of %s failed for %s: %r", stream.protocol, stream.peer_id, error, exc_info=error)
