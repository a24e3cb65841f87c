"""Whose manifests count: a small table of publishers in `OCTONODE_HOME/trust.json`, written atomically."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from octonode.errors import ConfigError, NotFound, OctonodeError
from octonode.ids import PeerId, public_key_from_peer_id
from octonode.models.placing import write_atomically
from octonode.models.reference import BadReference, is_peer_id

PUBLISHERS_MAX: Final = 10_000
ALIAS_CHARACTERS_MAX: Final = 63


@dataclass(frozen=True, slots=True)
class Publisher:
    peer_id: PeerId
    alias: str
    """Empty, or a name of our own for this publisher."""
    since_ms: int


class NotTrusted(OctonodeError):
    """An unknown publisher. `detail` holds `publisher` and `public_key` (hex)."""

    code = "NOT_TRUSTED"


class TrustTable:
    """`always` are trusted beside the table: our own key, and those of the configuration. `trust_all` takes anybody."""

    def __init__(self, home: Path, *, always: Sequence[str] = (), trust_all: bool = False) -> None:
        self._path = home / "trust.json"
        self._always = frozenset(always)
        self._trust_all = trust_all
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int], tuple[Publisher, ...], frozenset[str]] = ((0, 0, 0), (), frozenset())

    def publishers(self) -> tuple[Publisher, ...]:
        """Those in the table, as any process wrote it last. Raises ConfigError when the file is damaged."""
        return self._current()[0]

    def _current(self) -> tuple[tuple[Publisher, ...], frozenset[str]]:
        """The rows and their peer ids. The file is read when it was replaced; else this costs a stat."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return (), frozenset()
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._read[0] != mark:
            rows = self._rows()
            self._read = (mark, rows, frozenset(row.peer_id for row in rows))
        return self._read[1:]

    def _rows(self) -> tuple[Publisher, ...]:
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))["publishers"]
            return tuple(Publisher(PeerId(str(r["peer_id"])), str(r["alias"]), int(r["since_ms"])) for r in rows)
        except FileNotFoundError:
            return ()
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path} is damaged ({error}); restore it, or remove it and trust anew") from None

    def aliases(self) -> dict[str, PeerId]:
        return {publisher.alias: publisher.peer_id for publisher in self.publishers() if publisher.alias}

    def alias_of(self, peer_id: str) -> str:
        return next((publisher.alias for publisher in self.publishers() if publisher.peer_id == peer_id), "")

    def is_trusted(self, peer_id: str) -> bool:
        return self._trust_all or self.is_named(peer_id)

    def is_named(self, peer_id: str) -> bool:
        """True for publishers in the table or the configuration, whatever `trust_all` says."""
        return peer_id in self._always or peer_id in self._current()[1]

    def require(self, peer_id: str, what: str) -> None:
        """Raises NotTrusted that shows the key and says how to trust it."""
        if self.is_trusted(peer_id):
            return
        key = public_key_from_peer_id(peer_id).hex()
        raise NotTrusted(
            f"{what} is published by {peer_id}, whom you have not trusted yet (Ed25519 key {key}). If that is who you "
            f"mean: octonode models trust {peer_id} [--note NAME], or add --trust in a script",
            detail={"publisher": peer_id, "public_key": key},
        )

    def add(self, peer_id: str, alias: str = "", *, now_ms: int) -> Publisher:
        """Trust a publisher from now on; again with another alias renames. Raises BadReference."""
        if not is_peer_id(peer_id):
            raise BadReference(f"{peer_id[:64]!r} is not a peer id (12D3KooW...)")
        if alias and (not alias.replace("-", "").replace("_", "").isalnum() or len(alias) > ALIAS_CHARACTERS_MAX):
            raise BadReference(
                f"{alias!r} cannot be an alias: letters, digits, - and _, at most {ALIAS_CHARACTERS_MAX}"
            )
        with self._lock:
            rows = [publisher for publisher in self.publishers() if publisher.peer_id != peer_id]
            if alias and any(row.alias == alias for row in rows):
                raise BadReference(f"the alias {alias!r} is taken by {self.aliases()[alias]}")
            if len(rows) >= PUBLISHERS_MAX:
                raise BadReference(f"{PUBLISHERS_MAX} publishers are trusted already; remove some")
            added = Publisher(PeerId(peer_id), alias, now_ms)
            self._write([*rows, added])
        return added

    def remove(self, publisher: str) -> None:
        """By peer id or alias. Raises NotFound."""
        with self._lock:
            rows = self.publishers()
            kept = [row for row in rows if publisher not in (row.peer_id, row.alias)]
            if len(kept) == len(rows):
                raise NotFound(f"{publisher!r} is not in the trust table; see: octonode models trust")
            self._write(kept)

    def _write(self, rows: Sequence[Publisher]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps({"publishers": [asdict(row) for row in rows]}, indent=1).encode() + b"\n"
        write_atomically(self._path, data, 0o600)
