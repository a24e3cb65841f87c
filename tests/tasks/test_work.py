"""Requests that are no chat, from an asker to a provider and back: results of any size, whole and verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.config import TasksConfig
from octonode.errors import OctonodeError, RemoteProtocolError
from octonode.ids import PeerId, TaskId
from octonode.protocol.receipt import verify_receipt
from octonode.protocol.work.image import ImageRequest, Images
from octonode.protocol.work.text import Embeddings, EmbedRequest
from octonode.protocol.work.vision import ClassifyRequest
from octonode.tasks.asking import AskEvent, Made, Progress
from octonode.tasks.dispatcher import Ask
from octonode.tasks.generation import Generation, Order
from octonode.tasks.resident import ModelStatus
from octonode.tasks.results import INLINE_BYTES_MAX, pack_result, piece_of, unpack_result
from octonode.tasks.slots import EngineSlots
from tests.tasks.nodes import ROOT, answer_of, ask, events_of, nodes, providers_of

PICTURE = ImageRequest("a lighthouse", seed=7)


def work(request, **changes: object) -> Ask:  # type: ignore[no-untyped-def]
    return Ask(ROOT, work=request, **changes)  # type: ignore[arg-type]


def made_of(events: list[AskEvent]) -> object:
    made = [event for event in events if isinstance(event, Made)]
    assert len(made) == 1
    return made[0].result


@pytest.mark.parametrize("size", [1000, INLINE_BYTES_MAX + 1, 5_000_000], ids=["inline", "one artifact", "large"])
async def test_a_result_comes_whole_and_under_the_receipt(tmp_path: Path, autojump_clock: Clock, size: int) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        engine.script.result_bytes = size
        engine.script.seconds_per_token = 0.3
        asker.book.at_hand = [provider.announcement(skills=("image",))]
        events = await events_of(asker, work(PICTURE))
        made, answered = made_of(events), answer_of(events)
        assert isinstance(made, Images)
        assert [len(picture) for picture in made.images] == [size]
        assert answered.verified, answered.reason
        assert engine.requests == [PICTURE]
        receipt = verify_receipt(answered.receipt or b"")
        assert (receipt.pieces, receipt.seed) == (1, 7)
        assert receipt.parameters["steps"] == PICTURE.steps
        assert "prompt" not in receipt.parameters
        steps = [event.done for event in events if isinstance(event, Progress) and event.stage == "step"]
        assert steps == sorted(steps)
        assert steps[-1] >= engine.script.steps - 1, "the last one may be told by the result itself"


async def test_an_input_above_a_frame_travels_too(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        asker.book.at_hand = [provider.announcement(skills=("image",))]
        request = replace(PICTURE, image=bytes(range(256)) * 16384)
        assert isinstance(made_of(await events_of(asker, work(request))), Images)
        assert engine.requests == [request]


async def test_our_own_engine_makes_it_with_a_receipt_of_its_own(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 1) as (asker,):
        await asker.serve()
        events = await events_of(asker, work(EmbedRequest(("one", "two"))))
        made = made_of(events)
        assert isinstance(made, Embeddings)
        assert len(made.vectors) == 2 * 2 * 4
        assert answer_of(events).local
        receipt = verify_receipt(answer_of(events).receipt or b"")
        assert receipt.parameters == {"truncate": True}


async def test_a_provider_lost_while_it_makes_is_followed_by_the_next(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 3) as (asker, first, second):
        (await first.serve()).script.crash_at = 2
        await second.serve()
        asker.book.at_hand = [
            first.announcement(skills=("image",), tokens_per_second=900),
            second.announcement(skills=("image",)),
        ]
        events = await events_of(asker, work(PICTURE))
        assert providers_of(events) == [first.peer, second.peer]
        assert isinstance(made_of(events), Images)


async def test_steps_keep_a_slow_picture_alive_and_a_stuck_one_is_given_up(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    settings = TasksConfig(first_token_timeout_seconds=30)
    async with nodes(tmp_path, 2, settings) as (asker, provider):
        script = (await provider.serve()).script
        script.steps, script.seconds_per_token = 6, 20.0
        asker.book.at_hand = [provider.announcement(skills=("image",))]
        assert isinstance(made_of(await events_of(asker, work(PICTURE))), Images)
        script.seconds_per_token = 40.0
        with pytest.raises(OctonodeError, match="got no further with it within 30 s") as caught:
            await events_of(asker, work(PICTURE))
        assert caught.value.code == "DEADLINE"


async def test_who_has_not_the_skill_is_not_asked_and_refuses_when_asked(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        question = work(ClassifyRequest(b"picture"))
        candidates = await asker.dispatcher.explain(question)
        assert [each.reason for each in candidates] == ["the model has no skill classify there; it has chat"]
        asker.book.at_hand = [provider.announcement(skills=("classify",))]  # it lies, or has changed
        with pytest.raises(OctonodeError, match="no skill classify") as caught:
            await events_of(asker, question)
        assert caught.value.code == "UNSUPPORTED"


async def test_a_result_other_than_the_transcript_says_is_not_given(
    tmp_path: Path, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        await provider.serve()
        asker.book.at_hand = [provider.announcement(skills=("embed",))]
        lie = pack_result(Embeddings(b"\x00" * 8, 2))
        monkeypatch.setattr("octonode.tasks.run.told_result", lambda data: {"data": lie})
        seen: list[AskEvent] = []
        with pytest.raises(OctonodeError, match="not what the transcript stands for"):
            await events_of(asker, work(EmbedRequest(("one",))), seen.append)
        assert not [event for event in seen if isinstance(event, Made)]


async def test_leaving_early_cancels_it_at_the_provider(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        engine.script.seconds_per_token = 5.0
        asker.book.at_hand = [provider.announcement(skills=("image",))]
        async with asker.dispatcher.ask(work(PICTURE)) as events:
            async for event in events:
                if isinstance(event, Progress) and event.stage == "step" and event.done:
                    break
        with trio.fail_after(60):
            while engine.running:
                await engine.changed.park()
        assert engine.canceled == 1


async def test_logprobs_of_a_chat_come_with_its_answer(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        answered = answer_of(await events_of(asker, replace(ask(), logprobs=1)))
        assert answered.verified, answered.reason
        assert [token.text for token in answered.logprobs] == engine.answer(engine.requests[0])
        assert verify_receipt(answered.receipt or b"").parameters["logprobs"] == 1
        local = await provider.dispatcher.explain(ask())
        assert local
        plain = answer_of(await events_of(asker, ask()))
        assert plain.logprobs == ()


def test_bytes_that_are_no_result_are_refused() -> None:
    data = pack_result(Embeddings(b"\x00" * 8, 2))
    assert unpack_result("embed", data) == Embeddings(b"\x00" * 8, 2)
    assert piece_of(data).startswith("sha256:")
    for broken in (b"", b"\x90", data[:-1], data + b"\x00"):
        with pytest.raises(RemoteProtocolError):
            unpack_result("embed", broken)
    with pytest.raises(RemoteProtocolError):
        unpack_result("image", data)


async def test_answers_that_are_kept_for_the_same_request_again_are_bounded_in_bytes(
    tmp_path: Path, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was asked, which may be a large picture, is not kept with them."""
    monkeypatch.setattr("octonode.tasks.provider.RUNS_ENDED_BYTES_MAX", 10_000)
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        engine.script.result_bytes = 4000
        asker.book.at_hand = [provider.announcement(skills=("image",))]
        for _ in range(5):
            assert answer_of(await events_of(asker, work(PICTURE))).verified
        kept = [run.generation for run in provider.provider._runs.values()]
        assert len(kept) == 2
        assert all(each is not None and each.order.request != PICTURE and each.made is None for each in kept)


async def test_a_model_that_stands_by_when_nobody_loads_it_any_more_is_waited_for_and_not_spun_over() -> None:
    """As at the stop of a node: the loop must turn, or the node would never end."""

    class Stopped:
        changes, asked = 0, 0

        def engine(self, root: str) -> None:
            return None

        def model(self, root: str) -> ModelStatus:
            return ModelStatus(root, "standby")

        def ask(self, root: str) -> None:
            self.asked += 1
            assert self.asked < 100, "it spins"

        def used(self, root: str) -> None: ...

        async def wait_changed(self, seen: int) -> int:
            await trio.sleep_forever()
            raise AssertionError

    class Nowhere:
        def progress(self, stage: str, done: int, total: int) -> None: ...

        async def emit(self, pieces: tuple[str, ...]) -> None: ...

    order = Order(TaskId(bytes(16)), PeerId(""), ROOT, PICTURE, b"", bytes(32), "public", 0)
    made = Generation(order, resident=Stopped(), slots=EngineSlots(1), now_ms=lambda: 0)  # type: ignore[arg-type]
    with trio.move_on_after(0.05) as left:
        await made.work(Nowhere())
    assert left.cancelled_caught
