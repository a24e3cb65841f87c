"""`/api/v1/inference` over a real socket: answers at once, jobs, and who may see them."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio

from octonode.api.schema.inference import Infer, InferenceCalls
from octonode.client import AsyncClient
from octonode.config import ApiConfig, JobsConfig
from octonode.errors import OctonodeError
from octonode.protocol.work.image import ImageRequest, Images
from octonode.protocol.work.text import Embeddings, EmbedRequest
from octonode.protocol.work.vision import Box, ReadText, TextLine
from octonode.tasks.asking import Ask, AskEvent, Attempt, Pieces
from octonode.testing.faces import MODEL, PROVIDER, ROOT, TOKEN, Stage, answered, makes, says

CHAT = {"model": MODEL, "input": {"messages": [{"role": "user", "content": "hello"}]}, "parameters": {"max_tokens": 9}}
PATH = "/api/v1/inference"
KEY_ONE, KEY_TWO = "the-first-key-0123456789", "the-second-key-0123456789"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def holds(go: trio.Event, *pieces: str) -> Any:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Attempt(0, PROVIDER, local=False)
        await go.wait()
        for index, piece in enumerate(pieces):
            yield Pieces((piece,), index)
        yield answered(len(pieces))

    return script


# At once.


async def test_a_chat_is_answered_at_once_in_its_mode() -> None:
    async with Stage().run() as stage, AsyncClient(stage.url) as client:
        for mode in ("", "realtime", "batch"):
            facts = await client.do(InferenceCalls.submit(Infer(**CHAT, mode=mode)))  # type: ignore[arg-type]
            assert facts.state == "completed"
            assert facts.result == {"text": "Hello, world.", "finish_reason": "stop", "tokens_in": 7, "tokens_out": 4}
            assert facts.octonode is not None
            assert (facts.octonode.provider, facts.octonode.verified, facts.id) == (PROVIDER, True, facts.octonode.task)
            assert stage.asking.asked[-1].mode == mode
        assert stage.asking.asked[0].max_tokens == 9
        assert (await client.do(InferenceCalls.jobs)) == ()  # none of them is a job


async def test_every_skill_takes_and_gives_its_records() -> None:
    picture = base64.b64encode(b"a picture").decode()
    line = TextLine("OCTO", 0.9, Box(1, 2, 3, 4))
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as http:
        stage.asking.script = makes(Embeddings(b"\x00\x01\x02\x03", 1, tokens_in=3))
        body = {"model": MODEL, "skill": "embed", "input": {"texts": ["one"]}, "parameters": {"truncate": False}}
        answer = (await http.post(PATH, json=body)).json()
        assert answer["result"] == {"vectors": "AAECAw==", "dimensions": 1, "tokens_in": 3, "texts_cut": 0}
        assert stage.asking.asked[-1].work == EmbedRequest(("one",), truncate=False)
        stage.asking.script = makes(ReadText((line,), 10, 20))
        answer = (await http.post(PATH, json={"model": MODEL, "skill": "read", "input": {"image": picture}})).json()
        assert answer["result"]["lines"][0]["box"] == {"left": 1, "top": 2, "right": 3, "bottom": 4}
        assert answer["octonode"]["model_root"] == ROOT
        stage.asking.script = makes(Images((b"png",), 8, 8, 4, 7))
        body = {"model": MODEL, "skill": "image", "input": {"prompt": "p", "image": picture}, "parameters": {"seed": 7}}
        answer = (await http.post(PATH, json=body)).json()
        assert answer["result"]["images"] == [base64.b64encode(b"png").decode()]
        assert stage.asking.asked[-1].work == ImageRequest("p", image=b"a picture", seed=7)


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"skill": "dance"}, "UNSUPPORTED", "no skill 'dance'"),
        ({"input": {"messages": []}}, "BAD_REQUEST", "messages"),
        ({"input": {"message": []}}, "BAD_REQUEST", "'message'"),
        ({"parameters": {"max_token": 3}}, "BAD_REQUEST", "'max_token'"),
        ({"parameters": {"temperature": "hot"}}, "BAD_REQUEST", "temperature"),
        ({"mode": "later"}, "BAD_REQUEST", "mode"),
        ({"modes": "async"}, "BAD_REQUEST", "did you mean mode"),
        ({"priority": 3}, "BAD_REQUEST", "jobs alone"),
        ({"webhook": "https://a.example/"}, "BAD_REQUEST", "jobs alone"),
        ({"mode": "async", "priority": 10}, "BAD_REQUEST", "from 0 to 9"),
        ({"mode": "async", "ttl_seconds": -1}, "BAD_REQUEST", "ttl_seconds"),
        ({"mode": "async", "webhook": "http://127.0.0.1/"}, "FORBIDDEN", "no public address"),
        ({"mode": "async", "webhook": "http://2130706433/"}, "BAD_REQUEST", "odd form"),
        ({"mode": "async", "webhook": "gopher://a/"}, "BAD_REQUEST", "https://"),
        ({"peer": "nobody"}, "BAD_REQUEST", "no peer id"),
        ({"privacy_level": "private"}, "PRIVACY_UNAVAILABLE", "never lowered"),
        ({"model": "unheard/of"}, "MODEL_NOT_FOUND", "unheard/of"),
        ({"skill": "embed", "input": {"texts": [1]}, "parameters": {}}, "BAD_REQUEST", "texts"),
        (
            {"skill": "embed", "input": {"texts": ["x"], "truncate": True}, "parameters": {}},
            "BAD_REQUEST",
            "wrong half",
        ),
        ({"skill": "read", "input": {"image": "%%"}, "parameters": {}}, "BAD_REQUEST", "base64"),
        ({"skill": "read", "input": {"image": 5}, "parameters": {}}, "BAD_REQUEST", "base64"),
        ({"skill": "image", "input": {"prompt": "p"}, "parameters": {"steps": 10**9}}, "BAD_REQUEST", "steps"),
    ],
)
async def test_bad_input_is_refused_by_name_and_nothing_is_asked(change: dict[str, Any], code: str, says: str) -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as http:
        answer = await http.post(PATH, json={**CHAT, **change})
        error = answer.json()["error"]
        assert error["code"] == code
        assert says in error["message"]
        assert stage.asking.asked == []
        assert stage.jobs.all() == ()


async def test_a_client_that_leaves_cancels_its_question() -> None:
    async with Stage().run() as stage:
        stage.asking.script = holds(trio.Event())
        with trio.move_on_after(30):
            async with trio.open_nursery() as nursery, httpx.AsyncClient(base_url=stage.url, timeout=None) as http:
                nursery.start_soon(lambda: http.post(PATH, json=CHAT))
                await stage.asking.began.wait()
                nursery.cancel_scope.cancel()
            await stage.asking.left.wait()
        assert stage.asking.left.is_set()


# Jobs.


async def test_a_job_from_its_202_to_its_result() -> None:
    go = trio.Event()
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as http, AsyncClient(stage.url) as client:
        stage.asking.script = holds(go, "Hel", "lo")
        made = await http.post(PATH, json={**CHAT, "mode": "async", "priority": 9, "ttl_seconds": 100})
        assert made.status_code == 202
        told = made.json()
        assert made.headers["location"] == f"{PATH}/{told['id']}"
        assert (told["mode"], told["priority"], told["result"], told["octonode"]) == ("async", 9, None, None)
        early = await client.do(InferenceCalls.get(told["id"], 0.05))
        assert early.state in ("submitted", "working")
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                seen.append(await client.do(InferenceCalls.get(told["id"], 30)))

            seen: list[Any] = []
            nursery.start_soon(look)
            await trio.sleep(0.05)
            go.set()
        (done,) = seen
        assert (done.state, done.result["text"], done.attempt) == ("completed", "Hello", 1)
        assert done.octonode.provider == PROVIDER
        assert done.octonode.receipt == b"a receipt"
        assert done.expires_at_ms - done.ended_at_ms == 100_000
        assert stage.asking.asked[0].mode == "async"
        (listed,) = await client.do(InferenceCalls.jobs)
        assert (listed.id, listed.state, listed.result) == (told["id"], "completed", None)
        assert (await client.do(InferenceCalls.cancel(told["id"]))).state == "completed"
        with pytest.raises(OctonodeError) as caught:
            await client.do(InferenceCalls.get(told["id"]))
        assert (caught.value.code, caught.value.row.http_status) == ("NOT_FOUND", 404)


async def test_jobs_of_other_skills_have_their_results() -> None:
    async with Stage().run() as stage, AsyncClient(stage.url) as client:
        stage.asking.script = makes(Images((b"\x89PNG",), 8, 8, 4, 7), steps=3)
        asked = Infer(MODEL, skill="image", input={"prompt": "a lighthouse"}, mode="async")
        job = await client.do(InferenceCalls.submit(asked))
        done = await client.do(InferenceCalls.get(job.id, 30))
        assert done.state == "completed"
        assert done.result["images"] == [base64.b64encode(b"\x89PNG").decode()]
        assert done.result["media_type"] == "image/png"  # at its default, and shown all the same


async def test_delete_cancels_what_has_not_ended() -> None:
    async with Stage().run() as stage, AsyncClient(stage.url) as client:
        stage.asking.script = holds(trio.Event())
        job = await client.do(InferenceCalls.submit(Infer(**CHAT, mode="async")))  # type: ignore[arg-type]
        await stage.asking.began.wait()
        ended = await client.do(InferenceCalls.cancel(job.id))
        assert (ended.state, ended.error and ended.error.code) == ("canceled", "CANCELED")
        with trio.fail_after(60):
            await stage.asking.left.wait()
        assert (await client.do(InferenceCalls.get(job.id))).state == "canceled"


async def test_a_failed_job_says_why() -> None:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        raise OctonodeError("the prompt is too long", code="CONTEXT_EXCEEDED")
        yield answered(0)  # an asynchronous generator

    async with Stage().run() as stage, AsyncClient(stage.url) as client:
        stage.asking.script = script
        job = await client.do(InferenceCalls.submit(Infer(**CHAT, mode="async")))  # type: ignore[arg-type]
        failed = await client.do(InferenceCalls.get(job.id, 30))
        assert failed.state == "failed"
        assert failed.error is not None
        assert (failed.error.code, failed.error.message) == ("CONTEXT_EXCEEDED", "the prompt is too long")


async def test_a_full_queue_answers_429_with_a_time_to_come_back() -> None:
    async with Stage(jobs_settings=JobsConfig(queued_max=1)).run() as stage:
        stage.asking.script = holds(trio.Event())
        async with httpx.AsyncClient(base_url=stage.url) as http:
            assert (await http.post(PATH, json={**CHAT, "mode": "async"})).status_code == 202
            refused = await http.post(PATH, json={**CHAT, "mode": "async"})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert "jobs.queued_max" in refused.json()["error"]["message"]


async def test_a_job_is_seen_by_the_key_that_made_it_and_by_admins() -> None:
    config = ApiConfig(listen="127.0.0.1:0", keys=(KEY_ONE, KEY_TWO))
    async with Stage(config=config).run() as stage, httpx.AsyncClient(base_url=stage.url) as http:
        stage.asking.script = says("x")
        job = (await http.post(PATH, json={**CHAT, "mode": "async"}, headers=bearer(KEY_ONE))).json()["id"]
        seen: dict[str, tuple[int, int]] = {}
        for name, headers in (
            ("owner", bearer(KEY_ONE)), ("other", bearer(KEY_TWO)), ("nobody", {}), ("admin", bearer(TOKEN)),
        ):  # fmt: skip
            listed = (await http.get(PATH, headers=headers)).json()["jobs"]
            found = await http.get(f"{PATH}/{job}?wait=20", headers=headers)
            seen[name] = (len(listed), found.status_code)
        assert seen == {"owner": (1, 200), "other": (0, 404), "nobody": (0, 404), "admin": (1, 200)}
        assert (await http.delete(f"{PATH}/{job}", headers=bearer(KEY_TWO))).status_code == 404
        assert (await http.delete(f"{PATH}/{job}", headers=bearer(TOKEN))).status_code == 200
        assert KEY_ONE not in str(stage.jobs.all())


async def test_from_beyond_loopback_a_key_is_needed() -> None:
    config = ApiConfig(listen="127.0.0.1:0", keys=(KEY_ONE,))
    forwarded = {"x-forwarded-for": "192.0.2.1"}
    async with Stage(config=config).run() as stage, httpx.AsyncClient(base_url=stage.url, headers=forwarded) as http:
        for answer in (await http.post(PATH, json=CHAT), await http.get(PATH), await http.delete(f"{PATH}/x")):
            assert answer.status_code == 401
        assert (await http.post(PATH, json=CHAT, headers=bearer(KEY_ONE))).status_code == 200


@pytest.mark.parametrize("wait", ["-1", "56", "soon", "nan", "inf"])
async def test_a_wait_that_is_none_is_refused(wait: str) -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as http:
        job = (await http.post(PATH, json={**CHAT, "mode": "async"})).json()["id"]
        answer = await http.get(f"{PATH}/{job}?wait={wait}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "wait")


async def test_the_list_is_bounded_and_the_latest_come_first() -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as http:
        made = [(await http.post(PATH, json={**CHAT, "mode": "async"})).json()["id"] for _ in range(3)]
        listed = (await http.get(f"{PATH}?limit=2")).json()["jobs"]
        assert [each["id"] for each in listed] == [made[2], made[1]]
        for limit in ("0", "1001", "-1", "many"):
            answer = await http.get(f"{PATH}?limit={limit}")
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
