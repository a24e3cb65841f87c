"""Name records on disk: what each publisher last said of a model's versions, `OCTONODE_HOME/names/PUBLISHER/NAME.cbor`.

They stay when they expire: the highest `seq` seen is what rollbacks are told by.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

from octonode.errors import OctonodeError, VerificationFailed
from octonode.ids import PeerId
from octonode.models.placing import write_atomically
from octonode.protocol.name_record import NAME_RECORD_BYTES_MAX, NameRecord, open_name_record

log = logging.getLogger(__name__)

NAMES_MAX: Final = 10_000
_SUFFIX: Final = ".cbor"


class NameBook:
    """One process writes; what others wrote is seen at the next start. Damaged files are logged and passed over."""

    def __init__(self, home: Path) -> None:
        self.directory = home / "names"
        self._known: dict[tuple[str, str], tuple[NameRecord, bytes]] | None = None
        self._lock = threading.Lock()

    def record(self, publisher: str, name: str) -> NameRecord | None:
        """The record with the highest seq seen, expired or not."""
        found = self._all().get((publisher, name))
        return found[0] if found else None

    def data(self, publisher: str, name: str) -> bytes | None:
        """The same as signed."""
        found = self._all().get((publisher, name))
        return found[1] if found else None

    def all(self) -> tuple[NameRecord, ...]:
        return tuple(record for record, _ in self._all().values())

    def keep(self, data: bytes, now_ms: int) -> NameRecord:
        """Remember a valid record, durably, and return it; the same again changes nothing.

        Raises RemoteProtocolError for a record that is not valid, VerificationFailed (ROLLBACK) for one with a lower
        seq than was seen before, OctonodeError (TOO_LARGE) when there are too many names, DISK_FULL.
        """
        record = open_name_record(data, now_ms)
        key = (record.publisher, record.name)
        with self._lock:
            known = self._load()
            before = known.get(key)
            if before is not None and before[1] == data:
                return record
            if before is not None and record.rank <= before[0].rank:
                raise VerificationFailed(
                    f"the record of {record.publisher}/{record.name} has seq {record.seq}, but seq {before[0].seq} was "
                    "seen before: an old record is being passed off as the latest",
                    code="ROLLBACK",
                )
            if before is None and len(known) >= NAMES_MAX:
                message = f"{NAMES_MAX} names are kept in {self.directory}; remove old ones"
                raise OctonodeError(message, code="TOO_LARGE")
            path = self.directory / record.publisher / f"{record.name}{_SUFFIX}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
            self._known = {**known, key: (record, data)}
        return record

    def _all(self) -> dict[tuple[str, str], tuple[NameRecord, bytes]]:
        """Once it is read this waits for nobody, whatever is being written."""
        if self._known is not None:
            return self._known
        with self._lock:
            return self._load()

    def _load(self) -> dict[tuple[str, str], tuple[NameRecord, bytes]]:
        if self._known is None:
            known: dict[tuple[str, str], tuple[NameRecord, bytes]] = {}
            for path in sorted(self.directory.glob(f"*/*{_SUFFIX}"))[:NAMES_MAX]:
                self._take(path, known)
            self._known = known
        return self._known

    @staticmethod
    def _take(path: Path, known: dict[tuple[str, str], tuple[NameRecord, bytes]]) -> None:
        try:
            with path.open("rb") as file:
                data = file.read(NAME_RECORD_BYTES_MAX + 1)
            record = open_name_record(data, None)
            if (path.parent.name, path.name) == (record.publisher, f"{record.name}{_SUFFIX}"):
                known[PeerId(record.publisher), record.name] = (record, data)
        except (OctonodeError, OSError) as error:
            log.warning("%s is damaged and passed over: %s", path, error)
