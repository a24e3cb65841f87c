"""How the models here were asked for, and which are kept as the previous version of another.

`OCTONODE_HOME/versions.json`, by root. `models update` looks here for the range to stay in; the cache keeps what is
marked as previous until the user lets it go (`models unpin`, `models rm`).
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from octonode.models.placing import write_atomically

log = logging.getLogger(__name__)

FOLLOWED_MAX: Final = 10_000
"""Roots remembered; the one asked for longest ago is forgotten: it is then followed as if its bare name was asked."""


@dataclass(frozen=True, slots=True)
class Followed:
    reference: str = ""
    """`publisher/name@range` as it was asked for."""
    previous_of: str = ""
    """The root that took its place; it is kept to go back to."""
    rolled_back: bool = False
    """The user went back from it: ranges pass it over here until the next update."""


_NOTHING: Final = Followed()


class Following:
    """One process writes. A damaged file is said and begun anew: what is held stays held."""

    def __init__(self, home: Path) -> None:
        self._path = home / "versions.json"
        self._rows: dict[str, Followed] | None = None
        self._lock = threading.RLock()

    def of(self, root: str) -> Followed:
        """Once it is read this waits for nobody, whatever is being written."""
        rows = self._rows
        return (self._load() if rows is None else rows).get(root, _NOTHING)

    def is_previous(self, root: str) -> bool:
        """Kept as the previous version of another model: evicting and collecting leave it alone."""
        return bool(self.of(root).previous_of)

    def asked(self, root: str, reference: str) -> None:
        """It was fetched or served under this reference: that is the range it follows from now on."""
        self._set(root, replace(self.of(root), reference=reference, previous_of="", rolled_back=False))

    def succeeded(self, old: str, new: str, reference: str) -> None:
        """`new` takes the place of `old`, which is kept."""
        with self._lock:
            self._set(old, replace(self.of(old), previous_of=new, rolled_back=False))
            self._set(new, Followed(reference))

    def went_back(self, bad: str, good: str, reference: str) -> None:
        """`good`, which was kept, takes the place of `bad` again."""
        with self._lock:
            self._set(bad, replace(self.of(bad), rolled_back=True))
            self._set(good, Followed(reference))

    def let_go(self, root: str) -> None:
        """No longer kept as a previous version."""
        if self.is_previous(root):
            self._set(root, replace(self.of(root), previous_of=""))

    def forget(self, root: str) -> None:
        """It is held no more."""
        with self._lock:
            rows = self._load()
            if root in rows:
                self._write({each: followed for each, followed in rows.items() if each != root})

    def _set(self, root: str, followed: Followed) -> None:
        with self._lock:
            rows = self._load()
            if rows.get(root) == followed:
                return
            kept = {each: row for each, row in rows.items() if each != root}
            kept[root] = followed
            while len(kept) > FOLLOWED_MAX:
                del kept[next(iter(kept))]
            self._write(kept)

    def _load(self) -> dict[str, Followed]:
        with self._lock:
            if self._rows is None:
                self._rows = self._read()
            return self._rows

    def _read(self) -> dict[str, Followed]:
        try:
            value: dict[str, dict[str, Any]] = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(root): Followed(**row) for root, row in value.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s is damaged and begun anew: %s", self._path, error)
            return {}

    def _write(self, rows: dict[str, Followed]) -> None:
        """Raises OctonodeError (DISK_FULL); then what was remembered stays."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        value = {root: asdict(row) for root, row in rows.items()}
        write_atomically(self._path, json.dumps(value, indent=1).encode() + b"\n", 0o600)
        self._rows = rows
