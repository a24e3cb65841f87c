"""Which models this node was told to serve, over restarts: `OCTONODE_HOME/serving.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import trio

from octonode.models.placing import write_atomically


class Wishes:
    """References with the engine named for each, empty for the one that its format decides."""

    def __init__(self, home: Path) -> None:
        self._path = home / "serving.json"
        self._wishes = self._read()

    def _read(self) -> dict[str, str]:
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(reference): str(engine) for reference, engine in value.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def all(self) -> Mapping[str, str]:
        return self._wishes

    def engine_of(self, name: str, root: str) -> str:
        """The engine named for a model, by its `publisher/name` or its root; empty when none was."""
        for reference, engine in self._wishes.items():
            if reference == f"cid:{root}" or (name and reference.partition("@")[0] == name):
                return engine
        return ""

    async def add(self, reference: str, engine: str = "") -> None:
        self._wishes[reference] = engine
        await self._write()

    async def remove(self, *references: str) -> None:
        for reference in references:
            self._wishes.pop(reference, None)
        await self._write()

    async def _write(self) -> None:
        data = json.dumps(self._wishes, indent=1).encode()
        await trio.to_thread.run_sync(write_atomically, self._path, data, 0o600)
