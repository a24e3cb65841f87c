"""The one table of errors: complete, consistent, and the same on every face."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from octonode import errors
from octonode.errors import TABLE, ExitCode, OctonodeError

PACKAGE = Path(errors.__file__).parent


def subclasses(cls: type[OctonodeError]) -> list[type[OctonodeError]]:
    return [each for child in cls.__subclasses__() for each in (child, *subclasses(child))]


def codes_written_in_the_source() -> dict[str, str]:
    """Every constant `code="..."` in the package, with its place."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant)):
                continue
            if isinstance(node.value.value, str):
                found[node.value.value] = f"{path.relative_to(PACKAGE)}:{node.value.lineno}"
    return found


def test_every_class_has_a_code_of_the_table() -> None:
    assert {each.__name__: each.code for each in subclasses(OctonodeError) if each.code not in TABLE} == {}


def test_every_code_written_in_the_source_is_in_the_table() -> None:
    found = codes_written_in_the_source()
    assert len(found) > 10
    assert {code: place for code, place in found.items() if code and code not in TABLE} == {}


def test_rows_are_sane() -> None:
    for code, row in TABLE.items():
        assert 400 <= row.http_status <= 599, code
        assert row.exit_code is not ExitCode.DONE, code
        assert code == code.upper(), code
        if row.http_status in (429, 503):
            assert row.retryable or code == "NOT_RUNNING", f"{code} tells HTTP clients to come back"


def test_a_code_that_is_not_in_the_table_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        OctonodeError("?", code="NO_SUCH_CODE")


def test_an_error_carries_what_its_faces_need() -> None:
    error = OctonodeError(
        "the node is busy; try again", code="OVERLOADED", retry_after_seconds=2.0, detail={"queue": 8}
    )
    assert str(error) == error.message == "the node is busy; try again"
    assert (error.row.http_status, error.row.exit_code, error.row.retryable) == (429, ExitCode.REFUSED, True)
    assert error.detail == {"queue": 8}


def test_what_a_peer_sent_becomes_the_same_error_here() -> None:
    error = errors.from_wire("MODEL_LOADING", "come back", 3.0)
    assert (error.code, error.retry_after_seconds) == ("MODEL_LOADING", 3.0)


def test_a_code_that_a_peer_made_up_is_internal_and_bounded() -> None:
    error = errors.from_wire("X" * 1000, "?")
    assert error.code == "INTERNAL"
    assert error.detail == {"peer_code": "X" * 64}


def test_what_a_peer_says_is_printable_and_short() -> None:
    """It is shown in terminals, which obey control characters, and in logs."""
    error = errors.from_wire("OVERLOADED", "\x1b[2Jgone\n\u202eelsewhere" + "x" * 5000)
    assert error.message.startswith(" [2Jgone  elsewhere")
    assert len(error.message) == errors.PEER_WORDS_MAX
    assert errors.from_wire("NEVER HEARD OF", "a\tb").message == "a b"
