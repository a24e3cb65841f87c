"""The pages say what the code does: the table of limits, of states and of codes, and the tests of the attacks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from octonode import config, errors
from octonode.protocol.limits import Limits
from octonode.protocol.messages import Header
from octonode.protocol.states import TABLE

ROOT = Path(__file__).parents[2]
AGENT = (ROOT / "protocols" / "agent.md").read_text(encoding="utf-8")


def rows(heading: str, page: str = AGENT) -> list[list[str]]:
    """Cells of the last table below `heading`, without its two head lines."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_limits_is_the_code() -> None:
    told = {cells[0].strip("`"): cells[1] for cells in rows("Limits")}
    shared = {f"Limits.{entry.name}": str(entry.default) for entry in dataclasses.fields(Limits)}
    assert {name: value for name, value in told.items() if name.startswith("Limits.")} == shared
    for name, value in told.items():
        section, field = name.split(".")
        if section != "Limits":
            assert str(getattr(config.SECTIONS[section](), field)) == value, name


def test_the_table_of_states_is_the_code() -> None:
    told = {(state, role, kind): following for state, role, kind, following in rows("Stream life")}
    assert told == {(str(state), role, kind): str(following) for (state, role, kind), following in TABLE.items()}


def test_the_table_of_codes_is_the_code() -> None:
    told = {code: (int(http), retry == "yes") for code, http, retry, _ in rows("Error codes")}
    assert told == {code: (row.http_status, row.retryable) for code, row in errors.TABLE.items()}


def test_every_field_of_the_header_is_on_the_page() -> None:
    told = set(re.findall(r"`(\w+)`", " ".join(cells[2] for cells in rows("Envelope") if len(cells) == 4)))
    assert told == {entry.name for entry in dataclasses.fields(Header)}


def test_every_code_this_room_raises_is_on_the_page_and_in_the_table() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "octonode" / "protocol").glob("*.py"))
    raised = set(re.findall(r'code="([A-Z_]+)"', sources))
    assert {"REPLAY", "MISADDRESSED", "CLOCK_SKEW"} <= raised
    assert raised <= errors.TABLE.keys()


def test_every_test_named_among_the_attacks_exists() -> None:
    page = (ROOT / "protocols" / "attacks.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) >= 30
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
