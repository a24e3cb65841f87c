"""The pins of a node in its state file: `tasks.pin_ports.PinStore`."""

from __future__ import annotations

from collections.abc import Sequence

from octonode.ids import PeerId
from octonode.state import State
from octonode.tasks.pins import Pin, Released

_PIN = "root, asker, until_ms, since_ms, size_bytes, brought, kept"


class PinTable:
    """Every change is committed when its call returns. Raises OctonodeError (DISK_FULL)."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def load(self) -> tuple[Sequence[Pin], Sequence[Released]]:
        pins = [
            Pin(root, PeerId(asker), until_ms, since_ms, size_bytes, bool(brought), bool(kept))
            for root, asker, until_ms, since_ms, size_bytes, brought, kept in await self._state.select(
                f"SELECT {_PIN} FROM pins ORDER BY since_ms"
            )
        ]
        released = await self._state.select("SELECT root, size_bytes, since_ms FROM pins_released")
        return pins, [Released(*row) for row in released]

    async def save(self, pin: Pin, manifest: bytes = b"") -> None:
        values = (pin.root, pin.asker, pin.until_ms, pin.since_ms, pin.size_bytes, pin.brought, pin.kept)
        statements: list[tuple[str, tuple[object, ...]]] = [
            (f"INSERT OR REPLACE INTO pins ({_PIN}) VALUES (?, ?, ?, ?, ?, ?, ?)", values),
            ("DELETE FROM pins_released WHERE root = ?", (pin.root,)),
        ]
        if manifest:
            statements.append(("INSERT OR REPLACE INTO pin_manifests VALUES (?, ?)", (pin.root, manifest)))
        await self._state.change(*statements)

    async def drop(self, pin: Pin, released: Released | None) -> None:
        statements: list[tuple[str, tuple[object, ...]]] = [
            ("DELETE FROM pins WHERE root = ? AND asker = ?", (pin.root, pin.asker)),
            (
                "DELETE FROM pin_manifests WHERE root = ? AND NOT EXISTS (SELECT 1 FROM pins WHERE pins.root = ?)",
                (pin.root, pin.root),
            ),
        ]
        if released is not None:
            values = (released.root, released.size_bytes, released.since_ms)
            statements.append(("INSERT OR REPLACE INTO pins_released VALUES (?, ?, ?)", values))
        await self._state.change(*statements)

    async def forget(self, root: str) -> None:
        await self._state.change(("DELETE FROM pins_released WHERE root = ?", (root,)))

    async def manifest(self, root: str) -> bytes:
        rows = await self._state.select("SELECT manifest FROM pin_manifests WHERE root = ?", (root,))
        return bytes(rows[0][0]) if rows else b""
