"""`/v1/*` over a real socket, asked by OpenAI's own client and byte for byte."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import trio

from octonode.tasks.asking import Ask, AskEvent, Attempt, Pieces, Progress
from octonode.testing.faces import MODEL, PROVIDER, ROOT, PlayedAsking, Stage, answered, says

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


def ask_openai(stage: Stage, **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="tiny", **{"messages": HELLO, **fields})
        return list(answer) if fields.get("stream") else answer


async def test_the_openai_client_gets_a_whole_answer() -> None:
    async with Stage().run() as stage:
        answer = await trio.to_thread.run_sync(ask_openai, stage)
    assert answer.choices[0].message.content == "Hello, world."
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 4, 11)
    facts = answer.model_extra["octonode"]
    assert (facts["provider"], facts["model_root"], facts["verified"]) == (PROVIDER, ROOT, True)
    assert base64.b64decode(facts["receipt"]) == b"a receipt"


async def test_the_openai_client_streams() -> None:
    async with Stage().run() as stage:
        chunks = await trio.to_thread.run_sync(
            lambda: ask_openai(stage, stream=True, stream_options={"include_usage": True})
        )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.content for c in chunks[1:-2]] == ["Hello", ",", " world", "."]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].model_extra["octonode"]["provider"] == PROVIDER
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 11
    assert all(c.usage is None for c in chunks[:-1])


async def test_the_openai_client_on_trio_streams() -> None:
    async with Stage().run() as stage, openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="none") as client:
        texts = []
        async with await client.chat.completions.create(model="tiny", messages=HELLO, stream=True) as answer:
            async for chunk in answer:
                texts.append(chunk.choices[0].delta.content or "")
        models = await client.models.list()
        one = await client.models.retrieve(MODEL)
    assert "".join(texts) == "Hello, world."
    assert [each.id for each in models.data] == [MODEL]
    assert one.id == MODEL
    assert one.owned_by == PROVIDER


async def test_what_was_asked_reaches_the_dispatcher() -> None:
    async with Stage().run() as stage:
        await trio.to_thread.run_sync(
            lambda: ask_openai(
                stage,
                messages=[
                    {"role": "developer", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                ],
                max_completion_tokens=9,
                temperature=0,
                top_p=0.5,
                seed=-3,
                stop=["\n", "END"],
                user="someone",
                n=1,
                extra_body={"octonode": {"peer": PROVIDER}, "privacy_level": "public"},
            )
        )
        (ask,) = stage.asking.asked
    assert ask == Ask(
        model_root=ROOT,
        messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "ab"}),
        max_tokens=9,
        temperature=0.0,
        top_p=0.5,
        seed=-3,
        stop=("\n", "END"),
        peer=PROVIDER,
    )


async def read_raw(stage: Stage, body: dict[str, Any]) -> tuple[bytes, bytes]:
    """Head and decoded body of one answer, from the socket's bytes."""
    data = json.dumps(body).encode()
    stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
    async with stream:
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        )
        await stream.send_all(head % len(data) + data)
        received = b"".join([part async for part in stream])
    head, _, chunked = received.partition(b"\r\n\r\n")
    plain = b""
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        length = int(size, 16)
        plain, chunked = plain + rest[:length], rest[length + 2 :]
    return head, plain


async def test_the_bytes_of_a_stream_are_exactly_these() -> None:
    async with Stage().run() as stage:
        head, body = await read_raw(stage, {"model": "tiny", "messages": HELLO, "stream": True})
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-type: text/event-stream" in head
    events = body.split(b"\n\n")
    assert events.pop() == b""
    assert events.pop() == b"data: [DONE]"
    first = json.loads(events[0].removeprefix(b"data: "))
    fixed = b'"object":"chat.completion.chunk","created":%d,"model":"tiny","choices":[' % first["created"]
    start = b'data: {"id":"%s",%s{"index":0,"delta":' % (first["id"].encode(), fixed)
    end = b',"logprobs":null,"finish_reason":null}]}'
    assert events[0] == start + b'{"role":"assistant","content":""}' + end
    texts = (b"Hello", b",", b" world", b".")
    assert events[1:5] == [start + b'{"content":"%s"}' % text + end for text in texts]
    assert events[5].startswith(start + b'{},"logprobs":null,"finish_reason":"stop"}],"octonode":{"provider":')
    assert len(events) == 6


@pytest.mark.parametrize(
    "pieces",
    [
        ("👩", "\u200d", "🚀", " ok"),  # one glyph of three code points
        ("e", "\u0301", "ñ", "日本", "語"),
        ("a\u2028b", "\u2029", "\x85", "\n", "\r\n", "\t", '"', "\\", "\x00", "\x1c"),
        ("data: [DONE]\n\n", "data: x"),
        ("\ufffd", "\ufeff"),
    ],
)
async def test_text_survives_whatever_it_holds_and_wherever_it_is_cut(pieces: tuple[str, ...]) -> None:
    async with Stage(asking=PlayedAsking(says(*pieces))).run() as stage:
        chunks = await trio.to_thread.run_sync(lambda: ask_openai(stage, stream=True))
        whole = await trio.to_thread.run_sync(ask_openai, stage)
    got = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert tuple(got) == pieces
    assert whole.choices[0].message.content == "".join(pieces)


async def test_the_first_text_is_sent_before_the_second_exists() -> None:
    go_on = trio.Event()

    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Attempt(0, PROVIDER, local=False)
        yield Pieces(("one",))
        await go_on.wait()
        yield Pieces(("two",), 1)
        yield answered(2)

    async with Stage(asking=PlayedAsking(script)).run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        with trio.fail_after(30):
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if '"one"' in line:
                        go_on.set()
                    if line == "data: [DONE]":
                        break
    assert go_on.is_set()


async def test_an_answer_without_text_is_an_answer() -> None:
    async with Stage(asking=PlayedAsking(says())).run() as stage:
        chunks = await trio.to_thread.run_sync(lambda: ask_openai(stage, stream=True))
        whole = await trio.to_thread.run_sync(ask_openai, stage)
    assert [c.choices[0].finish_reason for c in chunks] == [None, "stop"]
    assert whole.choices[0].message.content == ""


async def test_attempts_and_candidates_are_told() -> None:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Attempt(0, PROVIDER, local=False)
        yield Progress(PROVIDER, "prefill", 1, 2)
        yield Attempt(1, PROVIDER, local=False, moved_on="OVERLOADED: no slot")
        yield Pieces(("x",))
        yield answered(1)

    async with Stage(asking=PlayedAsking(script)).run() as stage:
        answer = await trio.to_thread.run_sync(lambda: ask_openai(stage, extra_body={"octonode": {"explain": True}}))
    facts = answer.model_extra["octonode"]
    assert facts["attempts"] == 2
    assert [(each["peer"], each["accepted"]) for each in facts["candidates"]] == [(PROVIDER, True), (PROVIDER, False)]


async def test_a_hundred_streams_at_once() -> None:
    many = 100
    started = trio.Event()

    async def script(ask: Ask) -> AsyncIterator[AskEvent]:
        if stage.asking.open == many:
            started.set()
        await started.wait()  # nobody is answered before all are asking
        for index in range(20):
            yield Pieces((f"{ask.seed}:{index} ",), index)
            await trio.lowlevel.checkpoint()
        yield answered(20)

    stage = Stage(asking=PlayedAsking(script))
    texts: dict[int, str] = {}

    async def one(seed: int) -> None:
        body = {"model": "tiny", "messages": HELLO, "stream": True, "seed": seed}
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            events = [json.loads(line[6:]) async for line in answer.aiter_lines() if line.startswith("data: {")]
        texts[seed] = "".join(e["choices"][0]["delta"].get("content", "") for e in events)

    limits = httpx.Limits(max_connections=many)
    with trio.fail_after(90):
        async with (
            stage.run(),
            httpx.AsyncClient(base_url=stage.url, limits=limits, timeout=60) as client,
            trio.open_nursery() as nursery,
        ):
            for seed in range(many):
                nursery.start_soon(one, seed)
    assert texts == {seed: "".join(f"{seed}:{i} " for i in range(20)) for seed in range(many)}
