"""What a supervisor needs of who keeps the files of models: they stay while a worker has them open."""

from __future__ import annotations

from typing import Protocol


class Lease(Protocol):
    """Keeps the files of one model. A child that inherits `descriptor` keeps them until its own end."""

    @property
    def descriptor(self) -> int:
        """-1 where there is none to inherit."""
        ...

    def hand_to(self, pid: int) -> None:
        """The child `pid` has them open from now on."""
        ...

    def close(self) -> None: ...


class ModelFiles(Protocol):
    def lease(self, model_root: str, owner: str) -> Lease | None:
        """None for a root whose files nobody keeps. Raises OctonodeError when they are being removed.

        Called in the loop: it takes microseconds.
        """
        ...
