"""Webhooks: signed, posted to the address that the rule has chosen and to no other, a few times, delaying nobody."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import base58
import pytest
import trio
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from trio.testing import MockClock as Clock

from octonode.api.inference import webhook_body
from octonode.config import JobsConfig
from octonode.errors import OctonodeError, Unreachable
from octonode.identity import NodeKey
from octonode.tasks.job import Job, JobResult, JobWork
from octonode.tasks.jobs import Jobs
from octonode.tasks.webhook_post import post, resolve
from octonode.tasks.webhook_rule import Target, WebhookRule
from octonode.tasks.webhooks import BODY_BYTES_MAX, DELIVERY_SECONDS_MAX, PAUSES_SECONDS, Webhooks
from octonode.testing.faces_jobs import MemoryJobStore
from octonode.testing.http_service import Asked, HttpService, Reply
from tests.tasks.nodes import now_ms
from tests.tasks.test_jobs import REQUEST

ROOT = Path(__file__).parents[2]
KEY = NodeKey(b"\x05" * 32)
HOOKED = replace(REQUEST, webhook="https://hooks.example.org/done?a=b")


def verify(headers: dict[str, str], body: bytes) -> None:
    """What protocols/http.md tells a receiver to do, without a line of ours."""
    raw = base58.b58decode(headers["x-octonode-peer"])
    assert len(raw) == 38 and raw[:6] == bytes.fromhex("002408011220")  # noqa: PT018  # as printed on the page
    digest = hashlib.sha256(headers["x-octonode-timestamp"].encode() + b"." + body).digest()
    signature = base64.b64decode(headers["x-octonode-signature"])
    VerifyKey(raw[6:]).verify(b"octonode/webhook/1\0" + digest, signature)


@pytest.fixture
def patient_clock(autojump_clock: Clock) -> Clock:
    """Does not jump while a body is rendered in its thread."""
    autojump_clock.autojump_threshold = 0.1
    return autojump_clock


@dataclass
class Outside:
    """The world that webhooks go to: names, and what is answered."""

    addresses: list[str] = field(default_factory=lambda: ["93.184.216.34"])
    statuses: list[int | Exception] = field(default_factory=list)
    posted: list[tuple[Target, str, dict[str, str], bytes, float]] = field(default_factory=list)
    seconds: float = 0.0
    looked_up: int = 0

    async def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up += 1
        await trio.lowlevel.checkpoint()
        return self.addresses

    async def post(self, target: Target, address: str, headers: dict[str, str], body: bytes) -> int:
        self.posted.append((target, address, headers, body, trio.current_time()))
        await trio.sleep(self.seconds)
        answer = self.statuses.pop(0) if self.statuses else 204
        if isinstance(answer, Exception):
            raise answer
        return answer


@asynccontextmanager
async def running(
    outside: Outside,
    store: MemoryJobStore,
    result: str = "done",
    *,
    parallel: int = 1,
    clock: Callable[[], int] = now_ms,
) -> AsyncIterator[Jobs]:
    async def perform(job: Job, work: JobWork) -> JobResult:
        await trio.sleep(1)
        facts = {"provider": "12D3KooW", "local": True, "task": bytes(16), "verified": True, "receipt": b""}
        return JobResult({"text": result}, facts)

    rule = WebhookRule()
    jobs = Jobs(
        store=store, perform=perform, settings=JobsConfig(parallel=parallel), rule=rule, now_ms=clock, chance=os.urandom
    )
    hooks = Webhooks(
        jobs, signer=KEY, rule=rule, resolve=outside.resolve, post=outside.post, render=webhook_body, now_ms=clock
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(jobs.run)
        await nursery.start(hooks.run)
        yield jobs
        nursery.cancel_scope.cancel()


async def hooked(jobs: Jobs, job: str, state: str = "delivered") -> Job:
    while jobs.get(job).hook_state != state:
        await jobs.wait_changed()
    return jobs.get(job)


async def test_the_end_of_a_job_is_posted_signed_and_as_get_shows_it(patient_clock: Clock) -> None:
    outside = Outside()
    async with running(outside, MemoryJobStore()) as jobs:
        job = await jobs.submit(HOOKED)
        assert (await hooked(jobs, job.id)).hook_tries == 1
        ((target, address, headers, body, _),) = outside.posted
        assert (target.host, target.path, address) == ("hooks.example.org", "/done?a=b", "93.184.216.34")
        assert outside.looked_up == 1
        told = json.loads(body)
        assert (told["id"], told["state"], told["result"], told["mode"]) == (
            job.id,
            "completed",
            {"text": "done"},
            "async",
        )
        assert told["octonode"]["verified"] is True
        assert (headers["x-octonode-job"], headers["x-octonode-try"]) == (job.id, "1")
        assert headers["x-octonode-peer"] == KEY.peer_id
        verify(headers, body)
        for changed in ({"x-octonode-timestamp": str(int(headers["x-octonode-timestamp"]) + 1)}, {}):
            with pytest.raises(BadSignatureError):
                verify({**headers, **changed}, body if changed else body + b" ")


async def test_it_is_tried_five_times_with_growing_pauses(patient_clock: Clock) -> None:
    outside = Outside(statuses=[500, OSError("refused"), Unreachable("lost"), 301, 404])
    async with running(outside, MemoryJobStore()) as jobs:
        job = await jobs.submit(HOOKED)
        assert (await hooked(jobs, job.id, "failed")).hook_tries == 5
    times = [at for *_, at in outside.posted]
    assert [round(b - a) for a, b in pairwise(times)] == list(PAUSES_SECONDS)
    assert [headers["x-octonode-try"] for _, _, headers, _, _ in outside.posted] == ["1", "2", "3", "4", "5"]


async def test_the_tries_go_on_after_a_restart(patient_clock: Clock) -> None:
    outside, store = Outside(statuses=[500, 500]), MemoryJobStore()
    async with running(outside, store) as jobs:
        job = await jobs.submit(HOOKED)
        while len(outside.posted) < 2:
            await trio.sleep(0.5)
        await trio.sleep(1)
    assert store.jobs[job.id].hook_tries == 2
    async with running(outside, store) as jobs:
        assert (await hooked(jobs, job.id)).hook_tries == 3
    assert len(outside.posted) == 3
    assert outside.posted[2][-1] - outside.posted[1][-1] >= PAUSES_SECONDS[1] - 1


async def test_a_name_that_turns_to_a_private_address_is_not_posted_to(patient_clock: Clock) -> None:
    """Rebinding: looked up at each try, once, and the rule decides about what was found."""
    outside = Outside(addresses=["127.0.0.1", "10.0.0.1", "::1"])
    async with running(outside, MemoryJobStore()) as jobs:
        job = await jobs.submit(HOOKED)
        while jobs.get(job.id).hook_tries < 2:
            await trio.sleep(1)
        assert outside.posted == []
        outside.addresses = ["127.0.0.1", "93.184.216.34"]
        await hooked(jobs, job.id)
    assert [address for _, address, *_ in outside.posted] == ["93.184.216.34"]


async def test_who_does_not_answer_delays_no_job_and_no_other_webhook(patient_clock: Clock) -> None:
    outside = Outside(seconds=10_000)
    async with running(outside, MemoryJobStore()) as jobs:
        made = [await jobs.submit(HOOKED) for _ in range(3)]
        begun = trio.current_time()
        for job in made:
            await jobs.wait(job.id, 100)
        assert trio.current_time() - begun < 3.5
        while jobs.get(made[0].id).hook_tries < 1:
            await trio.sleep(1)
        assert trio.current_time() - begun < DELIVERY_SECONDS_MAX + 3


async def test_a_host_that_does_not_answer_keeps_none_of_many_jobs_from_other_hosts(patient_clock: Clock) -> None:
    class Silent(Outside):
        async def post(self, target: Target, address: str, headers: dict[str, str], body: bytes) -> int:
            if target.host == "silent.example.org":
                await trio.sleep_forever()
            return await super().post(target, address, headers, body)

    outside = Silent()
    async with running(outside, MemoryJobStore(), parallel=50) as jobs:
        silent = replace(REQUEST, webhook="https://silent.example.org/")
        for job in [await jobs.submit(silent) for _ in range(9)]:
            await jobs.wait(job.id, 100)
        other = await jobs.submit(HOOKED)
        await jobs.wait(other.id, 100)
        ended = trio.current_time()
        await hooked(jobs, other.id)
        assert trio.current_time() - ended < DELIVERY_SECONDS_MAX / 2
        while any(job.hook_tries < 1 for job in jobs.all()):  # and all of the silent one have their turn
            await jobs.wait_changed()


async def test_a_clock_that_steps_back_delays_no_post(patient_clock: Clock) -> None:
    outside, back_ms = Outside(statuses=[500]), [0]
    async with running(outside, MemoryJobStore(), clock=lambda: now_ms() - back_ms[0]) as jobs:
        job = await jobs.submit(HOOKED)
        while jobs.get(job.id).hook_tries < 1:
            await trio.sleep(0.5)
        back_ms[0] = 3_600_000
        began = trio.current_time()
        await hooked(jobs, job.id)
        assert trio.current_time() - began <= 61


async def test_canceled_and_failed_jobs_are_told_of_and_a_large_result_is_left_out(patient_clock: Clock) -> None:
    outside = Outside()
    async with running(outside, MemoryJobStore(), "x" * (BODY_BYTES_MAX + 1)) as jobs:
        large = await jobs.submit(HOOKED)
        canceled = await jobs.submit(HOOKED)
        await jobs.cancel(canceled.id)
        for job in (canceled, large):
            await hooked(jobs, job.id)
    told = [json.loads(body) for _, _, _, body, _ in outside.posted]
    assert [(each["id"], each["state"], each["result"]) for each in told] == [
        (canceled.id, "canceled", None),
        (large.id, "completed", None),
    ]
    assert [each.get("result_left_out") for each in told] == [None, True]
    assert all(len(body) <= BODY_BYTES_MAX for _, _, _, body, _ in outside.posted)


def test_the_vectors_verify_and_urls_have_their_verdicts() -> None:
    vectors = json.loads((ROOT / "protocols" / "vectors" / "webhook.json").read_text())
    verify(vectors["headers"], vectors["body"].encode())
    assert vectors["headers"]["x-octonode-try"] == "2"
    for row in vectors["urls"]:
        try:
            WebhookRule().target(row["url"])
            code = ""
        except OctonodeError as error:
            code = error.code
        assert code == row["code"], row["url"]


# On a real socket.


async def test_a_post_goes_to_the_pinned_address_under_the_name_and_follows_nothing() -> None:
    heard: list[tuple[str, str, dict[str, str], bytes]] = []

    async def answer(asked: Asked, reply: Reply) -> None:
        heard.append((asked.method, asked.target, asked.headers, await asked.body()))
        if asked.path == "/move":
            await reply.send(302, headers={"location": "/other"})
        else:
            await reply.send(200, b"x" * 1_000_000)  # more than is ever read

    async with HttpService(answer) as service:
        rule = WebhookRule(("127.0.0.1",))
        target = rule.target(f"http://no-such-name.invalid:{service.port}/hook?x=1")
        assert await post(target, "127.0.0.1", {"x-octonode-job": "J"}, b"{}") == 200
        moved = rule.target(f"http://no-such-name.invalid:{service.port}/move")
        assert await post(moved, "127.0.0.1", {}, b"{}") == 302
        assert [(method, path) for method, path, _, _ in heard] == [("POST", "/hook?x=1"), ("POST", "/move")]
        assert heard[0][2]["host"] == f"no-such-name.invalid:{service.port}"
        assert (heard[0][2]["x-octonode-job"], heard[0][3]) == ("J", b"{}")
        secure = rule.target(f"https://no-such-name.invalid:{service.port}/")
        with pytest.raises(OctonodeError) as caught:
            await post(secure, "127.0.0.1", {}, b"{}")  # no TLS there
        assert caught.value.code == "UNREACHABLE"
    with pytest.raises(OctonodeError) as caught:
        await post(target, "127.0.0.1", {}, b"{}")
    assert caught.value.code == "UNREACHABLE"


@pytest.mark.parametrize("goes_on", [True, False])
async def test_who_took_a_post_has_taken_it_however_its_answer_ends(goes_on: bool) -> None:
    """Else the same post would be made four times more: by a body that never ends, or that breaks off."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        if goes_on:
            await trio.sleep_forever()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        target = WebhookRule(("127.0.0.1",)).target(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/")
        with trio.fail_after(DELIVERY_SECONDS_MAX):
            assert await post(target, "127.0.0.1", {}, b"{}") == 200
        nursery.cancel_scope.cancel()


async def test_addresses_are_looked_up_by_the_system() -> None:
    assert await resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert await resolve("::1", 80) == ["::1"]
    assert set(await resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r".+"):
        await resolve("no-such-name.invalid", 80)
