"""Logs: one record a line, bounded files, private, readable by `octonode logs`."""

from __future__ import annotations

import io
import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from octonode import log
from octonode.config import LogConfig


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("octonode")
    levels = root.level, ours.level
    yield
    log.configure(LogConfig())
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_a_peer_cannot_forge_a_line() -> None:
    out = io.StringIO()
    log.configure(LogConfig(), stderr=out)
    logging.getLogger("octonode.network.hello").warning("peer says %s", "ok\n2026-01-01 ERROR all is lost\x1b[2J")
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(r"WARNING network.hello: peer says ok\n2026-01-01 ERROR all is lost\x1b[2J")


def test_a_long_record_is_cut_and_says_so() -> None:
    line = log.one_line("x" * (log.RECORD_CHARS_MAX + 7))
    assert line == "x" * log.RECORD_CHARS_MAX + "... (7 more characters)"


def test_json_lines_hold_the_traceback() -> None:
    out = io.StringIO()
    log.configure(LogConfig(format="json"), stderr=out)
    try:
        raise ValueError("broken\nthing")
    except ValueError:
        logging.getLogger("octonode.tasks").exception("task %s failed", 7)
    (record,) = [json.loads(line) for line in out.getvalue().splitlines()]
    assert record["level"] == "error"
    assert record["logger"] == "octonode.tasks"
    assert record["message"] == "task 7 failed"
    assert "ValueError: broken" in record["traceback"]


def test_text_sets_a_traceback_in_so_that_only_records_begin_a_line() -> None:
    out = io.StringIO()
    log.configure(LogConfig(), stderr=out)
    try:
        raise ValueError("broken\nINFO forged")
    except ValueError:
        logging.getLogger("octonode.tasks").exception("failed")
    first, *rest = out.getvalue().splitlines()
    assert "ERROR tasks: failed" in first
    assert rest
    assert all(line.startswith("\t") for line in rest)


def test_levels_ours_by_config_others_from_warning_on_and_libp2p_mute() -> None:
    out = io.StringIO()
    log.configure(LogConfig(level="debug"), stderr=out)
    logging.getLogger("octonode.api").debug("seen")
    logging.getLogger("somebody").info("not seen")
    logging.getLogger("libp2p.network").error("not seen either")
    assert [line.rsplit(" ", 1)[-1] for line in out.getvalue().splitlines()] == ["seen"]


def test_files_rotate_within_their_bound_and_tail_reads_over_them(home: Path) -> None:
    log.configure(LogConfig(file_bytes_max=2000, files_max=3), home=home)
    logger = logging.getLogger("octonode.test")
    for number in range(200):
        logger.info("record %d", number)
    files = log.files(home)
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) <= 3 * 2000
    assert [line.rsplit(" ", 1)[-1] for line in log.tail(home, 60)][-40:] == [str(n) for n in range(160, 200)]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert stat.S_IMODE(log.path(home).parent.stat().st_mode) == 0o700


def test_follow_goes_on_over_a_rotation_and_yields_whole_lines(home: Path) -> None:
    log.configure(LogConfig(), home=home)
    place = log.path(home)
    place.touch()
    lines = log.follow(home, poll_seconds=0.001)
    writer = place.open("a", encoding="utf-8")

    def write_and_rotate() -> Iterator[str]:
        writer.write("first\nhal")
        writer.flush()
        yield next(lines)
        writer.write("f\n")
        writer.flush()
        place.rename(place.with_name("octonode.log.1"))
        place.write_text("after\n", encoding="utf-8")
        yield next(lines)
        yield next(lines)

    assert list(write_and_rotate()) == ["first", "half", "after"]
    writer.close()


def test_configure_twice_does_not_double_records(home: Path) -> None:
    out = io.StringIO()
    log.configure(LogConfig(), home=home, stderr=io.StringIO())
    log.configure(LogConfig(), home=home, stderr=out)
    logging.getLogger("octonode.x").info("once")
    assert len(out.getvalue().splitlines()) == 1
    assert len(log.tail(home, 10)) == 1


def test_a_node_without_a_log_has_an_empty_tail(home: Path) -> None:
    assert log.tail(home, 10) == []


def test_a_full_disk_loses_records_and_nothing_else(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = log.BoundedFile("/dev/full", maxBytes=0, backupCount=1)
    handler.emit(logging.LogRecord("octonode", logging.INFO, "", 0, "lost", None, None))
    assert capsys.readouterr().err == ""
    handler.stream = None  # its buffer cannot be flushed at exit
