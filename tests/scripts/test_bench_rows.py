"""The harness of `make bench`: rows, order statistics, choice of rows, and the parsing of streamed answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from scripts.bench import __main__ as bench
from scripts.bench import chat, tokens, vllm
from scripts.bench.rows import Goal, Row, percentile, table, write

GOAL = Goal("speed", "ratio", ">=", 0.97, "the other")
ISSUE_FIELDS = ["name", "value", "unit", "goal", "holds", "against", "n"]

Measure = Callable[[Path], Awaitable[list[Row]]]


@pytest.mark.parametrize(("value", "holds"), [(0.97, True), (0.9699, False), (1.2, True)])
def test_a_row_holds_its_goal_or_says_that_it_does_not(value: float, holds: bool) -> None:
    row = GOAL.row(value, 5)
    assert (row.holds, row.goal, row.n) == (holds, ">= 0.97", 5)


def test_a_row_that_could_not_be_measured_does_not_hold() -> None:
    row = GOAL.missing("no model")
    assert (row.value, row.holds) == (None, False)
    assert "no model" in row.against


def test_the_file_is_the_list_that_scripts_rely_on(tmp_path: Path) -> None:
    write([GOAL.row(1.0, 5)], tmp_path / "build" / "bench.json")
    (row,) = json.loads((tmp_path / "build" / "bench.json").read_text(encoding="utf-8"))
    assert list(row) == ISSUE_FIELDS


def test_the_table_shows_short_figures_first() -> None:
    shown = table([GOAL.row(1.0, 5), Goal("late", "ms", "<=", 8, "x").row(9.5, 5)])
    lines = shown.splitlines()
    assert lines[1].split()[:3] == ["SHORT", "late", "9.5"]
    assert lines[2].split()[:3] == ["ok", "speed", "1"]
    assert lines[-1] == "1 of 2 rows hold their goal"


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.95) == 95
    assert percentile([3.0], 0.95) == 3.0


def test_names_of_rows_are_unique_and_listed() -> None:
    done = subprocess.run([sys.executable, "-m", "scripts.bench", "--list"], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert len(set(names)) == len(names)
    assert {"first_token_added_p50", "tokens_through_peer_8", "load_lost", "fetch_ratio", "help"} <= set(names)
    assert {"burst_lost", "crowd_errors"} <= set(names)


async def test_the_ways_are_compared_round_by_round_and_token_by_token(autojump_clock: trio.testing.MockClock) -> None:
    """Through a peer a first token comes 5 ms later and the rest at the same pace."""

    def way(late_seconds: float) -> tokens.Generate:
        async def generate(prompt: str, max_tokens: int) -> tokens.Said:
            await trio.sleep(late_seconds + max_tokens * 0.01)
            return tokens.Said(max_tokens, late_seconds)

        return generate

    ways = {"peer": way(0.105), "bare": way(0.1), "own": way(0.1)}
    one, firsts = await tokens.rounds(ways, 1, 3)
    eight, _ = await tokens.rounds(ways, 8, 3)
    assert tokens.added_ms(firsts, "own") == pytest.approx(5)
    assert tokens.ratio(one, "bare") == pytest.approx(1.38 / 1.385)
    assert tokens.gain(eight, one) == pytest.approx((0.74 / 0.745) / (1.38 / 1.385))


def test_the_engines_are_measured_at_each_number_of_streams() -> None:
    names = {goal.name for goal in (*tokens.GOALS, *vllm.GOALS)}
    rows = ["tokens_through_peer", "tokens_peer_vs_own_server", "vllm_peer_vs_own_server"]
    rows += ["first_token_real_added_p50", "first_token_vs_own_server_p50", "vllm_first_token_added_p50"]
    for row in rows:
        assert {f"{row}_{n}" for n in (1, 4, 8, 32)} <= names


def test_an_unknown_row_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "nothing"]) == 2
    assert "there is no row nothing" in capsys.readouterr().err


def group(measure: Measure) -> bench.Group:
    return bench.Group((GOAL, Goal("other", "ms", "<=", 1, "x")), measure)


def test_a_group_that_fails_gives_rows_that_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(folder: Path) -> list[Row]:
        raise RuntimeError("the provider said no")

    rows = bench.run(group(broken), {"speed", "other"})
    assert [row.name for row in rows] == ["speed", "other"]
    assert all("the provider said no" in row.against and row.value is None for row in rows)
    assert "Traceback" in capsys.readouterr().err


def test_only_the_chosen_rows_of_a_group_come_out() -> None:
    async def both(folder: Path) -> list[Row]:
        assert folder.is_dir()
        return [GOAL.row(1.0, 5), Goal("other", "ms", "<=", 1, "x").row(0.5, 5)]

    assert [row.name for row in bench.run(group(both), {"other"})] == ["other"]
    assert bench.run(group(both), {"elsewhere"}) == []


def event(content: str | None = None, finish: str | None = None, **more: object) -> bytes:
    delta = {} if content is None else {"content": content}
    choices = (
        [] if "usage" in more and content is None and finish is None else [{"delta": delta, "finish_reason": finish}]
    )
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = (event(""), event("Hello"), event(" world"), event(finish="stop"), event(usage={"completion_tokens": 2}))


async def answered(*writes: bytes) -> chat.Reply:
    """The reply to what a server writes, each part by itself."""

    async def serve(stream: trio.SocketStream) -> None:
        request = await stream.receive_some()
        while (length := re.search(rb"content-length: (\d+)", request)) is None or len(
            request.partition(b"\r\n\r\n")[2]
        ) < int(length[1]):
            request += await stream.receive_some()
        for each in writes:
            await stream.send_all(each)
            await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        reply = await chat.ask(f"http://127.0.0.1:{port}", "cid:x", "Hi", 2)
        nursery.cancel_scope.cancel()
    return reply


async def test_a_streamed_answer_is_read_whole_however_it_is_cut() -> None:
    body = HEAD + chunked(*ANSWER, b"data: [DONE]\n\n")
    for size in (1000, 37):
        reply = await answered(*(body[at : at + size] for at in range(0, len(body), size)))
        assert (reply.status, reply.text, reply.tokens_out, reply.finish_reason) == (200, "Hello world", 2, "stop")
        assert reply.whole
        assert 0 < reply.first_seconds <= reply.seconds


async def test_an_answer_that_breaks_off_is_not_whole() -> None:
    reply = await answered(HEAD + chunked(*ANSWER[:3])[:-5])
    assert reply.text == "Hello world"
    assert not reply.whole


async def test_a_refusal_is_not_whole() -> None:
    reply = await answered(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}")
    assert (reply.status, reply.whole, reply.first_seconds) == (429, False, 0.0)
