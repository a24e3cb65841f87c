"""How verbs show things: one JSON value or NDJSON for scripts, short text and progress bars for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def emit(value: Any, *, as_json: bool, text: str) -> None:
    """Print `value` as one line of JSON, or `text`."""
    print(json.dumps(value, ensure_ascii=False, default=str) if as_json else text, flush=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns padded with spaces; a line of `-` when there are no rows."""
    cells = [[str(cell) for cell in row] for row in rows] or [["-"] * len(headings)]
    widths = [max(len(row[i]) for row in [list(headings), *cells]) for i in range(len(headings))]
    lines = [list(headings), *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


def shown(text: str) -> str:
    """`text` for a terminal: a model or a peer must not move the cursor or rename the window. Files get it as it is."""
    return text.translate(_CONTROL) if sys.stdout.isatty() else text


def size(size_bytes: float) -> str:
    """`98.4 MB`; decimal units, as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


class Bar(Protocol):
    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress(title: str, *, quiet: bool) -> Iterator[Bar]:
    """A progress bar in bytes on stderr with speed and time left; silent where stderr is no terminal or `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None)

        shown = ""

        def show(done: int, total: int, note: str = "") -> None:
            nonlocal shown
            text = title if title.startswith(note) else f"{title}: {note}"
            if text != shown or not total:
                bars.reset(task, total=total or None, description=text)  # an unknown total pulses
                shown = text
            bars.update(task, completed=done, total=total or None)

        yield show
