"""Small parts of the stream's two ends: the writer's pace, the inbox, chat parameters, standings."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock as Clock

from octonode.errors import TABLE, OctonodeError
from octonode.ids import PeerId
from octonode.tasks.asking import Ask, Pieces, Progress
from octonode.tasks.chat import applied, generate_request
from octonode.tasks.inbox import CONSUMER_SECONDS_MAX, PUTS_MAX, Inbox
from octonode.tasks.orders import task_request
from octonode.tasks.standings import PAUSE_MS_MOST, PEERS_MAX, Standings, moves_on
from octonode.tasks.writer import (
    FRAME_CHARACTERS_MAX,
    FRAME_PIECES_MAX,
    LAG_SECONDS_MOST,
    _portion,
    coalescing_seconds,
)

PEER = PeerId("peer")


def test_an_idle_loop_waits_for_nothing_and_a_loaded_one_collects() -> None:
    assert coalescing_seconds(0.0) == 0
    assert coalescing_seconds(0.0005) == 0
    assert coalescing_seconds(0.005) == 0.005
    assert coalescing_seconds(3.0) == LAG_SECONDS_MOST


@given(st.lists(st.text(max_size=40_000).map(lambda t: t * 3), max_size=40), st.integers(0, 40))
def test_portions_join_to_the_whole_and_fit_a_frame(pieces: list[str], first: int) -> None:
    first = min(first, len(pieces))
    joined: list[str] = []
    while first + len(joined) < len(pieces):
        portion = _portion(pieces, first + len(joined))
        assert portion
        assert len(portion) <= FRAME_PIECES_MAX
        assert len(portion) == 1 or sum(map(len, portion)) <= FRAME_CHARACTERS_MAX
        joined += portion
    assert joined == pieces[first:]


async def test_the_inbox_joins_pieces_that_wait_and_keeps_the_latest_progress() -> None:
    inbox = Inbox()
    inbox.put(Progress(PEER, "queued", 2, 2))
    inbox.put(Progress(PEER, "queued", 1, 1))
    for number in range(5):
        inbox.put(Pieces((f"{number} ",), number))
    inbox.end()
    seen = [event async for event in inbox]
    assert seen == [Progress(PEER, "queued", 1, 1), Pieces(("0 ", "1 ", "2 ", "3 ", "4 "), 0)]


async def test_the_inbox_raises_its_error_after_what_came_before_it() -> None:
    inbox = Inbox()
    inbox.put(Pieces(("a",)))
    inbox.fail(OctonodeError("gone", code="PROVIDER_LOST"))
    assert await inbox.__anext__() == Pieces(("a",))
    with pytest.raises(OctonodeError, match="gone"):
        await inbox.__anext__()
    with pytest.raises(StopAsyncIteration):
        await inbox.__anext__()


async def test_a_producer_waits_for_a_consumer_that_lags_and_not_for_ever(autojump_clock: Clock) -> None:
    inbox = Inbox()
    for number in range(PUTS_MAX):
        inbox.put(Pieces(("x",), number))
    async with trio.open_nursery() as nursery:
        passed: list[float] = []

        async def produce() -> None:
            await inbox.room()
            passed.append(trio.current_time())

        nursery.start_soon(produce)
        await trio.sleep(2)
        assert not passed
        await inbox.__anext__()
        await trio.testing.wait_all_tasks_blocked()
        assert passed == [2.0]
    for number in range(PUTS_MAX):
        inbox.put(Pieces(("x",), number))
    started = trio.current_time()
    with pytest.raises(OctonodeError) as caught:
        await inbox.room()
    assert caught.value.code == "SLOW_READER"
    assert trio.current_time() - started == pytest.approx(CONSUMER_SECONDS_MAX)


asks = st.builds(
    Ask,
    model_root=st.just("m"),
    messages=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text()}),
        min_size=1,
        max_size=3,
    ).map(tuple),
    max_tokens=st.integers(1, 10_000),
    temperature=st.floats(0, 10),
    top_p=st.floats(0, 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=st.lists(st.text(min_size=1, max_size=20), max_size=4).map(tuple),
)


@given(asks)
def test_an_ask_arrives_as_it_left(ask: Ask) -> None:
    request = task_request(ask, "token")
    got = generate_request(request.input, request.parameters)
    assert got.messages == ask.messages
    assert (got.max_tokens, got.temperature, got.top_p) == (ask.max_tokens, ask.temperature, ask.top_p)
    assert (got.seed, got.stop) == (ask.seed, ask.stop)
    assert applied(got) == {k: v for k, v in request.parameters.items() if k != "seed"}


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["messages", "max_tokens", "temperature", "top_p", "seed", "stop", "role", "content", "x"])


@given(st.dictionaries(names, json), st.dictionaries(names, json))
def test_whatever_a_stranger_sends_is_a_request_or_bad_request(
    body: dict[str, Any], parameters: dict[str, Any]
) -> None:
    codes: list[str] = []
    try:
        generate_request(body, parameters)
    except OctonodeError as error:
        codes.append(error.code)
    assert codes in ([], ["BAD_REQUEST"])


def test_every_code_of_the_table_either_moves_on_or_ends_the_question() -> None:
    ends = {code for code in TABLE if not moves_on(OctonodeError("x", code=code))}
    assert ends >= {"BAD_REQUEST", "TOO_LARGE", "BUDGET_EXCEEDED", "SLOW_READER"}
    assert not ends & {"MODEL_NOT_FOUND", "MODEL_LOADING", "MODEL_UNAVAILABLE", "OVERLOADED", "RATE_LIMITED"}
    assert not ends & {"LEAVING", "PROVIDER_LOST", "UNREACHABLE", "ENGINE_CRASHED", "DEADLINE"}


def test_pauses_double_up_to_a_bound_and_a_named_time_counts() -> None:
    standings = Standings()
    pauses = []
    for _ in range(8):
        standings.failed(PEER, 0)
        pauses.append(standings.all()[PEER].not_before_ms)
    assert pauses == [1000, 2000, 4000, 8000, 16000, 30000, 30000, PAUSE_MS_MOST]
    standings.failed(PEER, 0, 7.5)
    assert standings.all()[PEER].not_before_ms == 7500
    standings.succeeded(PEER)
    assert PEER not in standings.all()
    for number in range(PEERS_MAX + 10):
        standings.failed(PeerId(str(number)), 0)
    assert len(standings.all()) == PEERS_MAX
