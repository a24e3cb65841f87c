"""The README's table of how engines are installed is the one that `octonode doctor` reads."""

from __future__ import annotations

from octonode.engines.installing import PACKAGES, as_markdown
from tests.tidy import tree


def test_the_readme_has_the_table_that_doctor_reads() -> None:
    readme = tree.text(tree.ROOT / "README.md")
    said = (
        "put this in its place: python -c 'from octonode.engines.installing import as_markdown; print(as_markdown())'"
    )
    assert as_markdown() in readme, said


def test_each_way_is_a_row() -> None:
    rows = as_markdown().splitlines()[2:]
    assert len(rows) == sum(len(package.ways) for package in PACKAGES)
    assert all(row.count("|") == 6 for row in rows), "a command with a bar would break the table"
