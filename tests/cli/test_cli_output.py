"""What the command line prints: sizes, tables, and nothing that a stranger's text could do to a terminal."""

from __future__ import annotations

import sys

import pytest

from octonode.cli.output import shown, size, table


def test_an_answer_cannot_drive_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a\x1b]0;owned\x07b\x9b2Jc\nd\te é"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert shown(text) == "a\ufffd]0;owned\ufffdb\ufffd2Jc\nd\te é"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert shown(text) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_362_432, "98.4 MB"), (3e12, "3.0 TB")]
)
def test_sizes_are_read_at_a_glance(size_bytes: float, text: str) -> None:
    assert size(size_bytes) == text


def test_a_table_without_rows_says_so() -> None:
    assert table(("A", "LONGER"), []) == "A  LONGER\n-  -"
    assert table(("A", "B"), [("xx", 1), ("y", 22)]).splitlines() == ["A   B", "xx  1", "y   22"]
