"""Whose manifests count: a small table of publishers in `OCTONODE_HOME/trust.json`, written atomically.

Beside them stand the roots that the user took without any publisher's signature, so that they are asked for once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from octonode.errors import ConfigError, NotFound, OctonodeError
from octonode.ids import PeerId, public_key_from_peer_id
from octonode.models.placing import write_atomically
from octonode.models.reference import BadReference, is_peer_id

PUBLISHERS_MAX: Final = 10_000
UNSIGNED_MAX: Final = 10_000
ALIAS_CHARACTERS_MAX: Final = 63


@dataclass(frozen=True, slots=True)
class Publisher:
    peer_id: PeerId
    alias: str
    """Empty, or a name of our own for this publisher."""
    since_ms: int

    @property
    def public_key(self) -> str:
        """The Ed25519 key, 64 hex digits."""
        return public_key_from_peer_id(self.peer_id).hex()

    @property
    def fingerprint(self) -> str:
        """`SHA256:` and the digest of the key in base64 without padding: short enough to be read out and compared."""
        digest = hashlib.sha256(public_key_from_peer_id(self.peer_id)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class _Table:
    """The file as it was read."""

    mark: tuple[int, int, int]
    """Inode, time and size of the file: while they stand it is not read again."""
    publishers: tuple[Publisher, ...] = ()
    named: frozenset[str] = frozenset()
    unsigned: tuple[str, ...] = ()
    """Root CIDs, the latest last."""


_NO_TABLE: Final = _Table((0, 0, 0))


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
        self._read = _NO_TABLE

    def publishers(self) -> tuple[Publisher, ...]:
        """Those in the table, as any process wrote it last. Raises ConfigError when the file is damaged."""
        return self._current().publishers

    def _current(self) -> _Table:
        """The file is read when it was replaced; else this costs a stat."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return _NO_TABLE
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._read.mark != mark:
            self._read = self._load(mark)
        return self._read

    def _load(self, mark: tuple[int, int, int]) -> _Table:
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
            rows = value["publishers"]
            publishers = tuple(Publisher(PeerId(str(r["peer_id"])), str(r["alias"]), int(r["since_ms"])) for r in rows)
            unsigned = tuple(str(root) for root in value.get("unsigned", ()))
            return _Table(mark, publishers, frozenset(row.peer_id for row in publishers), unsigned)
        except FileNotFoundError:
            return _NO_TABLE
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{self._path} is damaged ({error}); restore it, or remove it and trust anew") from None

    def aliases(self) -> dict[str, PeerId]:
        return {publisher.alias: publisher.peer_id for publisher in self.publishers() if publisher.alias}

    def alias_of(self, peer_id: str) -> str:
        return next((publisher.alias for publisher in self.publishers() if publisher.peer_id == peer_id), "")

    def is_trusted(self, peer_id: str) -> bool:
        return self._trust_all or self.is_named(peer_id)

    def is_named(self, peer_id: str) -> bool:
        """True for publishers in the table or the configuration, whatever `trust_all` says."""
        return peer_id in self._always or peer_id in self._current().named

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
        _check(peer_id, alias)
        with self._lock:
            rows = [publisher for publisher in self.publishers() if publisher.peer_id != peer_id]
            if alias and any(row.alias == alias for row in rows):
                raise BadReference(f"the alias {alias!r} is taken by {self.aliases()[alias]}")
            if len(rows) >= PUBLISHERS_MAX:
                raise BadReference(f"{PUBLISHERS_MAX} publishers are trusted already; remove some")
            added = Publisher(PeerId(peer_id), alias, now_ms)
            self._write([*rows, added])
        return added

    def add_all(self, rows: Sequence[tuple[str, str]], *, now_ms: int) -> tuple[int, int, tuple[str, ...]]:
        """Trust all of a list of (peer id, alias), or none: (added, trusted before, those whose alias is another's).

        Who is trusted already keeps an alias of its own. Raises BadReference, and nothing is written.
        """
        with self._lock:
            kept = {row.peer_id: row for row in self.publishers()}
            before = len(kept)
            taken = {row.alias: row.peer_id for row in kept.values() if row.alias}
            without = []
            for peer_id, alias in rows:
                _check(peer_id, alias)
                known = kept.get(PeerId(peer_id))
                free = not alias or taken.setdefault(alias, PeerId(peer_id)) == peer_id
                if not free:
                    without.append(peer_id)
                if known is None or (alias and free and not known.alias):
                    since_ms = known.since_ms if known else now_ms
                    kept[PeerId(peer_id)] = Publisher(PeerId(peer_id), alias if free else "", since_ms)
            if len(kept) > PUBLISHERS_MAX:
                raise BadReference(
                    f"with this list {len(kept)} publishers were trusted; at most {PUBLISHERS_MAX} may be"
                )
            self._write(list(kept.values()))
        added = len(kept) - before
        return added, len({peer_id for peer_id, _ in rows}) - added, tuple(without)

    def remove(self, publisher: str) -> None:
        """By peer id or alias. Raises NotFound."""
        with self._lock:
            rows = self.publishers()
            kept = [row for row in rows if publisher not in (row.peer_id, row.alias)]
            if len(kept) == len(rows):
                raise NotFound(f"{publisher!r} is not in the trust table; see: octonode models trust")
            self._write(kept)

    def unsigned(self) -> tuple[str, ...]:
        """Roots that the user takes though no publisher signed for them."""
        return self._current().unsigned

    def allow_unsigned(self, root: str) -> None:
        """Take this root without a signature from now on. At UNSIGNED_MAX the one allowed longest ago is forgotten."""
        with self._lock:
            kept = [each for each in self.unsigned() if each != root]
            if len(kept) + 1 != len(self.unsigned()):
                self._write(self.publishers(), [*kept, root][-UNSIGNED_MAX:])

    def disallow_unsigned(self, root: str) -> None:
        """Ask again before this root is taken."""
        with self._lock:
            if root in self.unsigned():
                self._write(self.publishers(), [each for each in self.unsigned() if each != root])

    def _write(self, rows: Sequence[Publisher], unsigned: Sequence[str] | None = None) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        value: dict[str, Any] = {"publishers": [asdict(row) for row in rows]}
        if roots := list(self.unsigned() if unsigned is None else unsigned):
            value["unsigned"] = roots
        write_atomically(self._path, json.dumps(value, indent=1).encode() + b"\n", 0o600)


def _check(peer_id: str, alias: str) -> None:
    if not is_peer_id(peer_id):
        raise BadReference(f"{peer_id[:64]!r} is not a peer id (12D3KooW...)")
    plain = alias.replace("-", "").replace("_", "")
    if alias and (not plain.isalnum() or not plain.isascii() or len(alias) > ALIAS_CHARACTERS_MAX):
        raise BadReference(f"{alias!r} cannot be an alias: letters, digits, - and _, at most {ALIAS_CHARACTERS_MAX}")
