"""The one reader of this node's GPUs: a reading at a time, in a thread, never in the loop."""

from __future__ import annotations

import trio

from octonode.hardware.live import LiveReader, Reading


class Gpus:
    """Used by who watches them and by who places models. `last` is the latest reading, empty before the first."""

    def __init__(self, reader: LiveReader | None = None) -> None:
        self._reader = reader or LiveReader()
        self._lock = trio.Lock()
        self.last = Reading()

    async def read(self) -> Reading:
        """A fresh one; waits for one that is under way first. Takes as long as the drivers do.

        Cancelled, it leaves a thread behind that ends with the driver's answer: a driver that hangs must not keep the
        node from stopping.
        """
        async with self._lock:
            self.last = await trio.to_thread.run_sync(self._reader.read, abandon_on_cancel=True)
        return self.last
