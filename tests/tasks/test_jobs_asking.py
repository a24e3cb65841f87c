"""Jobs over the real dispatcher and peers in memory: in mode async, by whoever is there, else by the next one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.config import JobsConfig, PricingConfig
from octonode.errors import OctonodeError
from octonode.protocol.receipt import verify_receipt
from octonode.tasks.inference import Performer, ask_of
from octonode.tasks.job import JobRequest
from octonode.tasks.jobs import Jobs
from octonode.tasks.pricing import price_list
from octonode.tasks.webhook_rule import WebhookRule
from octonode.testing.engine import TwinEngines
from octonode.testing.faces_jobs import MemoryJobStore
from tests.tasks.nodes import QUESTION, ROOT, Node, nodes, now_ms

CHAT = JobRequest("", "tiny", ROOT, "chat", {"messages": list(QUESTION)}, {"max_tokens": 4, "temperature": 0.0})
PICTURE = JobRequest("", "tiny", ROOT, "image", {"prompt": "a lighthouse"}, {"seed": 7})
PRICES = price_list(PricingConfig(out_micro_octo=4_000_000))


@asynccontextmanager
async def jobs_of(node: Node) -> AsyncIterator[Jobs]:
    jobs = Jobs(
        store=MemoryJobStore(), perform=Performer(node.dispatcher.ask), settings=JobsConfig(), rule=WebhookRule(),
        now_ms=now_ms, chance=os.urandom,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(jobs.run)
        yield jobs
        nursery.cancel_scope.cancel()


async def test_a_job_is_done_by_a_peer_at_the_economy_price(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2, prices=PRICES) as (asker, provider), jobs_of(asker) as jobs:
        engine = await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        job = await jobs.submit(CHAT)
        assert (await jobs.wait(job.id, 60)).state == "completed"
        result = await jobs.result(job.id)
        assert result is not None
        assert result.result["text"] == "".join(engine.answer(engine.requests[0]))
        assert (result.facts["provider"], result.facts["verified"]) == (provider.peer, True)
        receipt = verify_receipt(result.facts["receipt"])
        assert (receipt.price.rate_out_micro_octo, receipt.price.total_micro_octo) == (2_000_000, 8)


async def test_a_picture_is_kept_as_its_record(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider), jobs_of(asker) as jobs:
        await provider.serve()
        asker.book.at_hand = [provider.announcement(skills=("image",))]
        job = await jobs.submit(PICTURE)
        assert (await jobs.wait(job.id, 60)).state == "completed"
        result = await jobs.result(job.id)
        assert result is not None
        assert result.result["seed"] == 7
        assert all(isinstance(picture, bytes) for picture in result.result["images"])


async def test_a_job_waits_for_a_peer_that_comes_later(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider), jobs_of(asker) as jobs:
        job = await jobs.submit(CHAT)
        await trio.sleep(60)
        assert (jobs.get(job.id).state, jobs.get(job.id).code) == ("working", "MODEL_NOT_FOUND")
        await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        done = await jobs.wait(job.id, 600)
        assert (done.state, done.code, done.failures) == ("completed", "", 0)


async def test_a_provider_lost_in_the_middle_costs_an_attempt_and_no_token_is_doubled(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with nodes(tmp_path, 2) as (asker, provider), jobs_of(asker) as jobs:
        engine = await provider.serve()
        engine.script.crash_at = 2
        asker.book.at_hand = [provider.announcement()]
        job = await jobs.submit(CHAT)
        while not engine.emitted:
            await trio.sleep(0.1)
        engine.script.crash_at = None
        done = await jobs.wait(job.id, 600)
        assert (done.state, done.attempt, done.failures) == ("completed", 2, 1)
        result = await jobs.result(job.id)
        assert result is not None
        assert result.result["text"] == "".join(engine.answer(engine.requests[0]))


async def test_cancel_reaches_the_provider(tmp_path: Path, autojump_clock: Clock) -> None:
    engines = TwinEngines()
    async with nodes(tmp_path, 2, engines=[None, engines]) as (asker, provider), jobs_of(asker) as jobs:
        engine = await provider.serve()
        engine.script.seconds_per_token = 50
        asker.book.at_hand = [provider.announcement()]
        job = await jobs.submit(CHAT)
        while not engine.running:
            await trio.sleep(0.1)
        assert (await jobs.cancel(job.id)).state == "canceled"
        with trio.fail_after(20):
            while engine.running:
                await engine.changed.park()
        assert engine.canceled == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"skill": "dance"}, "no skill 'dance'"),
        ({"inputs": {}}, "messages"),
        ({"inputs": {"messages": list(QUESTION), "image": b"x"}}, "'image'"),
        ({"parameters": {"max_tokens": 0}}, "max_tokens"),
        ({"parameters": {"speed": 1}}, "'speed'"),
    ],
)
def test_what_no_provider_would_take_is_refused_before_it_is_kept(change: dict[str, object], says: str) -> None:
    asked = replace(CHAT, **change)  # type: ignore[arg-type]
    with pytest.raises(OctonodeError, match=says):
        ask_of(asked.skill, asked.model_root, asked.inputs, asked.parameters)
