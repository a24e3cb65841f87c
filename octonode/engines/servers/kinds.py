"""What a kind of server has to say of itself: how it is started, what its metrics mean, how requests are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from octonode.engines.contract import LoadRequest
from octonode.engines.servers.dialects import Dialect
from octonode.engines.servers.openai_http import Address


@dataclass(frozen=True, slots=True)
class Launch:
    """How one server is started and reached."""

    address: Address
    parallel: int
    """Requests that it decodes together; 0: it says so itself."""
    command: tuple[str, ...] = ()
    """Empty: it runs already, and is not ours."""
    environment: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    quantization: str = ""
    flags: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Of the facts: what was asked of it."""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """One reading of a server's metrics."""

    running: int
    waiting: int
    cache_usage: float | None
    """Part of the cache for keys and values that is in use, 0 to 1; None where it is not told."""
    steps: float
    """Grows with each step of the engine, those of a long prompt included."""


class ServerKind(Protocol):
    @property
    def name(self) -> str:
        """That of its row in `select.ENGINES`."""
        ...

    @property
    def dialect(self) -> Dialect | None:
        """None: as its list of models says who made it."""
        ...

    @property
    def metrics_path(self) -> str:
        """Empty: it has none."""
        ...

    async def launch(self, request: LoadRequest, directory: Path) -> Launch:
        """Decides everything and starts nothing; `directory` is the server's own and empty.

        Raises ConfigError for what no other try can mend, and OctonodeError.
        """
        ...

    def read_metrics(self, text: str) -> ServerLoad | None:
        """None when nothing new is told. Raises ValueError for what is not its metrics."""
        ...
