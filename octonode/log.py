"""Logging by the standard library: to stderr for people, to `OCTONODE_HOME/logs/octonode.log` for later.

A record is one line whatever a peer put into it: control characters are escaped and long records are cut, so that
nobody can forge a line or fill the disk. Files are bounded by `[log] file_bytes_max` and
`files_max`.

Prompts and answers are never logged, at any level: no module of this package hands them to a logger.
"""

from __future__ import annotations

import collections
import json
import logging
import logging.handlers
import os
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Protocol, TextIO

RECORD_CHARS_MAX = 4096
"""Of a message; the rest is cut and the cut is shown."""
TRACEBACK_CHARS_MAX = 16384

NOISY_LIBRARIES: dict[str, int] = {
    # Each logs every remote fault as an error or warning of its own; ours name those that matter.
    "libp2p": logging.CRITICAL,
    "multiaddr": logging.ERROR,
    "anycorn": logging.WARNING,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "zeroconf": logging.WARNING,
}

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))} | {9: "\t", 10: "\\n", 13: "\\r"}


class LogSettings(Protocol):
    """What this module needs of `config.LogConfig`, its sibling."""

    @property
    def level(self) -> str: ...

    @property
    def format(self) -> str:
        """`text` or `json`."""
        ...

    @property
    def file_bytes_max(self) -> int: ...

    @property
    def files_max(self) -> int: ...


def path(home: Path) -> Path:
    return home / "logs" / "octonode.log"


def one_line(text: str, chars_max: int = RECORD_CHARS_MAX) -> str:
    """`text` without control characters, at most `chars_max` of it and a word about what was cut."""
    cut = len(text) - chars_max
    if cut > 0:
        text = f"{text[:chars_max]}... ({cut} more characters)"
    return text.translate(_ESCAPES)


class TextFormatter(logging.Formatter):
    """`2026-11-22T20:43:01.123Z INFO network.hello: message`, in UTC; a traceback follows, set in by tabs."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        name = record.name.removeprefix("octonode.")
        line = f"{when}.{int(record.msecs):03}Z {record.levelname} {name}: {one_line(record.getMessage())}"
        trace = _traceback(self, record)
        return line + "".join(f"\n\t{one_line(each)}" for each in trace.splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (seconds since 1970), level, logger, message, and traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": one_line(record.getMessage()),
        }
        if trace := _traceback(self, record):
            fields["traceback"] = trace
        return json.dumps(fields, ensure_ascii=False)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The end of the traceback: its last lines say what happened."""
    return formatter.formatException(record.exc_info)[-TRACEBACK_CHARS_MAX:] if record.exc_info else ""


class BoundedFile(logging.handlers.RotatingFileHandler):
    """A rotating file readable by its owner alone. Where the disk is full, records are lost and nothing else."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=_private)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the base class would write a traceback to stderr for each record."""


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def configure(
    config: LogSettings,
    *,
    home: Path | None = None,
    stderr: TextIO | None = None,
) -> None:
    """Send this process's records to the file under `home` and to `stderr`; what is None gets nothing.

    Replaces what an earlier call set up. Raises OSError when the folder for the file cannot be made.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "of_octonode", False):
            root.removeHandler(handler)
            handler.close()
    handlers: list[logging.Handler] = []
    if home is not None:
        path(home).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handlers.append(
            BoundedFile(
                path(home), maxBytes=config.file_bytes_max, backupCount=max(2, config.files_max) - 1, encoding="utf-8"
            )
        )
    if stderr is not None:
        handlers.append(logging.StreamHandler(stderr))
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
        handler.of_octonode = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("octonode").setLevel(config.level.upper())
    for name, level in NOISY_LIBRARIES.items():
        logging.getLogger(name).setLevel(level)


def files(home: Path) -> list[Path]:
    """The log files of a node from the oldest to the one written now."""
    newest = path(home)
    rotated = sorted(newest.parent.glob(f"{newest.name}.*"), key=lambda each: -int(each.suffix[1:] or 0))
    return [*rotated, *([newest] if newest.exists() else [])]


def tail(home: Path, lines: int) -> list[str]:
    """The last `lines` lines over all files, oldest first; empty when there is no log. Memory: those lines alone."""
    kept: collections.deque[str] = collections.deque(maxlen=lines)
    for file in files(home):
        with file.open(encoding="utf-8", errors="replace") as stream:
            kept.extend(line.rstrip("\n") for line in stream)
    return list(kept)


def follow(home: Path, *, poll_seconds: float = 0.2) -> Iterator[str]:
    """Lines added from this call on, over rotations, until the caller stops. Blocks: for the command line.

    Raises FileNotFoundError when there is no log yet.
    """
    stream = path(home).open(encoding="utf-8", errors="replace")
    stream.seek(0, os.SEEK_END)
    return _added_lines(path(home), stream, poll_seconds)


def _added_lines(place: Path, stream: TextIOWrapper, poll_seconds: float) -> Iterator[str]:
    rest = ""
    while True:
        rest += stream.readline()
        if rest.endswith("\n"):
            yield rest.rstrip("\n")
            rest = ""
        elif place.exists() and place.stat().st_ino != os.fstat(stream.fileno()).st_ino:
            stream.close()  # rotated: what was left in the old file has been read
            stream, rest = place.open(encoding="utf-8", errors="replace"), ""
        else:
            time.sleep(poll_seconds)
