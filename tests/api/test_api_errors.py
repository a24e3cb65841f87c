"""What goes wrong: every kind of error as a status, as the one error body, and in the middle of a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import trio

from octonode.api.answering import COLD_WAIT_SECONDS
from octonode.api.app import make_app
from octonode.api.streaming import PING_SECONDS, EventStream
from octonode.config import ApiConfig
from octonode.errors import TABLE, OctonodeError, from_wire
from octonode.tasks.asking import Ask, AskEvent, Attempt, Pieces, Progress, ProviderLost
from octonode.testing.faces import PROVIDER, TOKEN, PlayedAsking, Script, Stage, answered

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def fails(error: Exception, *, after: tuple[str, ...] = ()) -> Script:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Attempt(0, PROVIDER, local=False)
        for index, piece in enumerate(after):
            yield Pieces((piece,), index)
        raise error

    return script


async def chat(stage: Stage, **changes: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=stage.url) as client:
        return await client.post("/v1/chat/completions", json={**ASK, **changes})


async def test_every_code_has_its_status_and_body_in_both_modes() -> None:
    async with Stage().run() as stage:
        for code, row in TABLE.items():
            stage.asking.script = fails(from_wire(code, "what happened and what to do"))
            for streamed in (False, True):
                answer = await chat(stage, stream=streamed)
                error = answer.json()["error"]
                assert answer.status_code == row.http_status
                assert error == {
                    "message": "what happened and what to do",
                    "type": row.openai_type,
                    "param": None,
                    "code": code,
                }
                assert ("retry-after" in answer.headers) == (row.http_status in (429, 503)), code
                assert answer.headers["x-request-id"].startswith("req_")
                assert "www-authenticate" in answer.headers or row.http_status != 401


async def test_every_code_in_the_middle_of_a_stream_is_an_event_and_the_end() -> None:
    async with Stage().run() as stage:
        for code, row in TABLE.items():
            stage.asking.script = fails(OctonodeError("broke", code=code), after=("so", " far"))
            answer = await chat(stage, stream=True)
            events = answer.text.split("\n\n")
            assert answer.status_code == 200
            assert json.loads(events[-2].removeprefix("data: "))["error"] == {
                "message": "broke",
                "type": row.openai_type,
                "param": None,
                "code": code,
            }
            assert "[DONE]" not in answer.text
            assert (await chat(stage)).status_code == row.http_status


async def test_the_openai_client_raises_its_own_errors() -> None:
    def ask(**fields: Any) -> Any:
        with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(**{**ASK, **fields})
            return list(answer) if fields.get("stream") else answer

    async with Stage().run() as stage:
        with pytest.raises(openai.NotFoundError) as unknown:
            await trio.to_thread.run_sync(lambda: ask(model="nobody/has-this"))
        assert unknown.value.code == "MODEL_NOT_FOUND"
        stage.asking.script = fails(OctonodeError("full", code="OVERLOADED", retry_after_seconds=2.2))
        with pytest.raises(openai.RateLimitError) as full:
            await trio.to_thread.run_sync(ask)
        assert full.value.response.headers["retry-after"] == "3"
        with pytest.raises(openai.BadRequestError) as tools:
            await trio.to_thread.run_sync(lambda: ask(tools=[{"type": "custom", "custom": {"name": "f"}}]))
        assert tools.value.param == "tools[0]"
        lost = ProviderLost("it was lost", provider=PROVIDER, received=("so",))
        stage.asking.script = fails(lost, after=("so",))
        with pytest.raises(openai.APIError, match="it was lost"):
            await trio.to_thread.run_sync(lambda: ask(stream=True))


async def test_the_openai_client_comes_back_after_a_503() -> None:
    async def script(asked: Ask) -> AsyncIterator[AskEvent]:
        if len(stage.asking.asked) == 1:
            raise OctonodeError("loading", code="MODEL_LOADING", retry_after_seconds=0.5)
        yield Pieces(("warm",))
        yield answered(1)

    def ask() -> str:
        with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=2) as client:
            return str(client.chat.completions.create(**ASK).choices[0].message.content)

    async with Stage(asking=PlayedAsking(script)).run() as stage:
        assert await trio.to_thread.run_sync(ask) == "warm"
        assert len(stage.asking.asked) == 2


async def test_a_bug_is_a_500_that_tells_nothing_and_the_node_stays_up() -> None:
    async with Stage().run() as stage:
        for bug in (ValueError("the secret prompt"), ExceptionGroup("g", [KeyError("the secret prompt")])):
            stage.asking.script = fails(bug)
            answer = await chat(stage)
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "INTERNAL"
            assert "secret" not in answer.text
            stage.asking.script = fails(bug, after=("so far",))
            streamed = await chat(stage, stream=True)
            assert '"code":"INTERNAL"' in streamed.text
            assert "secret" not in streamed.text
        stage.asking.script = fails(ExceptionGroup("g", [OctonodeError("full", code="OVERLOADED")]))
        assert (await chat(stage)).status_code == 429


async def test_an_answer_that_ends_without_its_end_is_a_loss() -> None:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Pieces(("so",))

    async with Stage(asking=PlayedAsking(script)).run() as stage:
        assert (await chat(stage)).status_code == 502
        assert "PROVIDER_LOST" in (await chat(stage, stream=True)).text


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"privacy_level": "private"}, 422, "PRIVACY_UNAVAILABLE", "privacy_level"),
        ({"privacy_level": "secret"}, 400, "BAD_REQUEST", "privacy_level"),
        ({"n": 2}, 400, "UNSUPPORTED", "n"),
        ({"logprobs": 1}, 400, "BAD_REQUEST", "logprobs"),
        ({"response_format": {"type": "grammar"}}, 400, "BAD_REQUEST", "response_format"),
        ({"max_token": 5}, 400, "BAD_REQUEST", "max_token"),
        ({"stop": ["a"] * 5}, 400, "BAD_REQUEST", "stop"),
        ({"temperature": 2.5}, 400, "BAD_REQUEST", "temperature"),
        ({"max_tokens": 1_000_001}, 400, "BAD_REQUEST", "max_tokens"),
        ({"messages": []}, 400, "BAD_REQUEST", "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "BAD_REQUEST", "messages[0].content"),
        ({"model": None}, 400, "BAD_REQUEST", "model"),
    ],
)
async def test_a_body_at_fault_names_the_field(change: dict[str, Any], status: int, code: str, param: str) -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        answer = await client.post("/v1/chat/completions", content=json.dumps({**ASK, **change}))
        assert stage.asking.asked == []
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (
        status,
        code,
        param,
    )


async def test_the_privacy_header_counts_and_is_never_lowered() -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        refused = await client.post("/v1/chat/completions", json=ASK, headers={"x-octonode-privacy": "Confidential"})
        both = {**ASK, "privacy_level": "public"}
        differ = await client.post("/v1/chat/completions", json=both, headers={"x-octonode-privacy": "private"})
        public = await client.post("/v1/chat/completions", json=ASK, headers={"x-octonode-privacy": "public"})
    assert (refused.status_code, differ.status_code, public.status_code) == (422, 400, 200)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "BAD_REQUEST"),
        (b"[]", 400, "BAD_REQUEST"),
        (b"\xff\xfe", 400, "BAD_REQUEST"),
        (b"", 400, "BAD_REQUEST"),
        (b'{"temperature": NaN}', 400, "BAD_REQUEST"),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400, "BAD_REQUEST"),
        (b"[" * 200_000, 400, "BAD_REQUEST"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, 400, "BAD_REQUEST"),
        (b" " * (4 * 1024 * 1024 + 1), 413, "TOO_LARGE"),
    ],
)
async def test_a_body_that_is_no_request_is_refused(body: bytes, status: int, code: str) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        sized = await client.post("/v1/chat/completions", content=body)
        unsized = await client.post("/v1/chat/completions", content=chunked())
        assert (await client.get("/healthz")).status_code == 200
    for answer in (sized, unsized):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


class Spoken:
    """An ASGI call without a socket, so that a clock can be played: what was sent, and when."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.sent: list[tuple[float, dict[str, Any]]] = []
        self._body: list[dict[str, Any]] = [{"type": "http.request", "body": json.dumps(body).encode()}]
        path = "/v1/chat/completions"
        self.scope = {"type": "http", "method": "POST", "path": path, "client": ("127.0.0.1", 1)}
        self.scope |= {"headers": [(b"host", b"localhost")], "query_string": b"", "root_path": ""}

    async def receive(self) -> dict[str, Any]:
        if self._body:
            return self._body.pop()
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append((trio.current_time(), message))

    async def ask(self, script: Script) -> None:
        stage = Stage(asking=PlayedAsking(script))
        ports = stage.ports
        await make_app(ports, config=ApiConfig(), token=TOKEN)(self.scope, self.receive, self.send)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_model_that_stays_cold_is_told_with_its_progress(streamed: bool, autojump_clock: Any) -> None:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Attempt(0, PROVIDER, local=False)
        for done in range(1000):
            yield Progress(PROVIDER, "fetching", done * 10, 400)
            await trio.sleep(1)

    spoken = Spoken({**ASK, "stream": streamed})
    began = trio.current_time()
    await spoken.ask(script)
    (at, start), (_, body) = spoken.sent
    error = json.loads(body["body"])["error"]
    assert at - began == COLD_WAIT_SECONDS
    assert start["status"] == 503
    assert error["code"] == "MODEL_LOADING"
    assert error["detail"]["progress"] == {"provider": PROVIDER, "stage": "fetching", "done": 90, "total": 400}
    assert dict(start["headers"])[b"retry-after"] == b"35"  # 310 to go at 9 a second


async def test_a_model_that_warms_up_in_time_answers(autojump_clock: Any) -> None:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Progress(PROVIDER, "loading", 0, 0)
        await trio.sleep(COLD_WAIT_SECONDS - 1)
        yield Progress(PROVIDER, "prefill", 0, 10)
        await trio.sleep(60)
        yield Pieces(("warm",))
        await trio.sleep(60)
        yield answered(1)

    spoken = Spoken(ASK)
    await spoken.ask(script)
    assert spoken.sent[0][1]["status"] == 200


async def test_silence_is_broken_by_pings_and_only_silence(autojump_clock: Any) -> None:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        await trio.sleep(PING_SECONDS * 2.5)
        yield Pieces(("a",))
        await trio.sleep(PING_SECONDS * 1.5)
        yield answered(1)

    spoken = Spoken({**ASK, "stream": True})
    began = trio.current_time()
    await spoken.ask(script)
    said = [(at - began, message["body"][:6]) for at, message in spoken.sent if message.get("body")]
    ping, data = b": ping", b"data: "
    times = [(PING_SECONDS * at, what) for at, what in ((1, ping), (2, ping), (2.5, data), (3.5, ping), (4, data))]
    assert said == times


async def test_a_reader_that_is_slow_is_not_pinged(autojump_clock: Any) -> None:
    sent: list[bytes] = []

    async def slow_send(message: Any) -> None:
        sent.append(message.get("body", b""))
        await trio.sleep(PING_SECONDS * 5)

    stream = EventStream(slow_send, b"text/plain", b"ping")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.keep_alive)
        await stream.write(b"x")
        nursery.cancel_scope.cancel()
    assert sent == [b"", b"x"]


async def test_two_writers_that_begin_together_send_one_head_first(autojump_clock: Any) -> None:
    """A ping or a progress line may be sending the head when the last words are ready."""
    sent: list[str] = []

    async def slow_head(message: Any) -> None:
        if message["type"] == "http.response.start":
            await trio.sleep(1)
        sent.append(f"{message['type']} {message.get('body', b'').decode()}")

    stream = EventStream(slow_head, b"text/plain", b"ping")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, b"progress")
        await trio.sleep(0.5)
        await stream.end(b"last")
        await stream.write(b"too late")
    assert sent == ["http.response.start ", "http.response.body progress", "http.response.body last"]
