"""`/v1/completions` by OpenAI's own client, and the probabilities of tokens there and in chat."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
import trio

from octonode.api.schema.completions import parse_completion
from octonode.engines.contract import TokenLogprob
from octonode.errors import OctonodeError
from octonode.tasks.asking import Answered, Ask, AskEvent
from octonode.testing.faces import PROVIDER, PlayedAsking, Script, Stage, says

TOKENS = (
    TokenLogprob("Hel", -0.5, (("Hel", -0.5), ("Yo", -1.25))),
    TokenLogprob("lo é", -0.125, (("lo é", -0.125),)),
)


def probable(*pieces: str, tokens: tuple[TokenLogprob, ...] = TOKENS) -> Script:
    async def script(ask: Ask) -> AsyncIterator[AskEvent]:
        async for event in says(*pieces)(ask):
            yield replace(event, logprobs=tokens) if isinstance(event, Answered) and ask.logprobs else event

    return script


def complete(stage: Stage, **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(**{"model": "tiny", "prompt": "Once", **fields})
        return list(answer) if fields.get("stream") else answer


async def test_a_prompt_is_gone_on_from_without_a_template() -> None:
    async with Stage(asking=PlayedAsking(says(" upon", " a time"))).run() as stage:
        answer = await trio.to_thread.run_sync(
            lambda: complete(
                stage, max_tokens=9, temperature=0, seed=4, stop=["\n"], extra_body={"privacy_level": "public"}
            )
        )
        default = await trio.to_thread.run_sync(complete, stage)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion",
        " upon a time",
        "stop",
    )
    assert answer.choices[0].logprobs is None
    assert answer.usage.total_tokens == 9
    assert answer.model_extra["octonode"]["provider"] == PROVIDER
    asked = stage.asking.asked[0]
    assert (asked.prompt, asked.messages, asked.max_tokens, asked.seed, asked.stop) == ("Once", (), 9, 4, ("\n",))
    assert default.choices[0].text == " upon a time"
    assert stage.asking.asked[1].max_tokens == 16


async def test_it_streams() -> None:
    async with Stage(asking=PlayedAsking(probable(" upon", " a time"))).run() as stage:
        chunks = await trio.to_thread.run_sync(
            lambda: complete(stage, stream=True, logprobs=2, stream_options={"include_usage": True})
        )
    assert [each.choices[0].text for each in chunks[:-1]] == [" upon", " a time", ""]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].choices[0].logprobs.tokens == ["Hel", "lo é"]
    assert chunks[-2].model_extra["octonode"]["verified"] is True
    assert (chunks[-1].choices, chunks[-1].usage.prompt_tokens) == ([], 7)


async def test_probabilities_have_the_older_shape_here_and_the_newer_one_in_chat() -> None:
    async with Stage(asking=PlayedAsking(probable("Hello é"))).run() as stage:

        def chat(**fields: Any) -> Any:
            with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none") as client:
                answer = client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": "x"}], logprobs=True, **fields
                )
                return list(answer) if fields.get("stream") else answer

        old = await trio.to_thread.run_sync(lambda: complete(stage, logprobs=2))
        bare = await trio.to_thread.run_sync(lambda: complete(stage, logprobs=0))
        new = await trio.to_thread.run_sync(lambda: chat(top_logprobs=2))
        chunks = await trio.to_thread.run_sync(lambda: chat(stream=True))
    legacy = old.choices[0].logprobs
    assert legacy.tokens == ["Hel", "lo é"]
    assert legacy.token_logprobs == [-0.5, -0.125]
    assert legacy.top_logprobs == [{"Hel": -0.5, "Yo": -1.25}, {"lo é": -0.125}]
    assert legacy.text_offset == [0, 3]
    assert bare.choices[0].logprobs.top_logprobs is None
    content = new.choices[0].logprobs.content
    assert [(each.token, each.logprob) for each in content] == [("Hel", -0.5), ("lo é", -0.125)]
    assert bytes(content[1].bytes) == "lo é".encode()
    assert [each.token for each in content[0].top_logprobs] == ["Hel", "Yo"]
    assert [each.token for each in chunks[-1].choices[0].logprobs.content] == ["Hel", "lo é"]
    assert [each.logprobs for each in stage.asking.asked] == [2, -1, 2, -1]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"prompt": ["a", "b"]}, "UNSUPPORTED", "prompt"),
        ({"prompt": [1, 2, 3]}, "UNSUPPORTED", "prompt"),
        ({"prompt": ""}, "BAD_REQUEST", "prompt"),
        ({"suffix": "end"}, "UNSUPPORTED", "suffix"),
        ({"echo": True}, "UNSUPPORTED", "echo"),
        ({"n": 2}, "UNSUPPORTED", "n"),
        ({"best_of": 2}, "UNSUPPORTED", "best_of"),
        ({"logprobs": 6}, "BAD_REQUEST", "logprobs"),
        ({"max_token": 6}, "BAD_REQUEST", "max_token"),
    ],
)
def test_what_is_not_served_is_named(change: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(OctonodeError) as refused:
        parse_completion({"model": "m", "prompt": "x", **change})
    assert (refused.value.code, refused.value.detail["param"]) == (code, param)


async def test_a_client_that_leaves_cancels_it() -> None:
    async def script(ask: Ask) -> AsyncIterator[AskEvent]:
        async for event in says("so")(ask):
            yield event
            await trio.sleep_forever()

    async with Stage(asking=PlayedAsking(script)).run() as stage:
        client = openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0)
        with trio.move_on_after(30) as scope:
            async with client, trio.open_nursery() as nursery:
                nursery.start_soon(_ask, client)
                await stage.asking.began.wait()
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
        with trio.fail_after(60):
            await stage.asking.left.wait()


async def _ask(client: openai.AsyncOpenAI) -> None:
    await client.completions.create(model="tiny", prompt="Once")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_a_token_that_cannot_be_is_told_in_json(path: str, stream: bool) -> None:
    """A model's padding has a probability of nothing, whose logarithm no JSON can hold."""
    never = (TokenLogprob("x", -math.inf, (("x", -math.inf), ("y", -0.5))),)
    asked = {"logprobs": 2} if path == "completions" else {"logprobs": True, "top_logprobs": 2}
    body = {"model": "tiny", "prompt": "Once", "stream": stream, **asked}
    if path != "completions":
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    stage = Stage(asking=PlayedAsking(probable("x", tokens=never)))
    async with stage.run(), httpx.AsyncClient(base_url=stage.url) as client:
        answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200
    assert "-9999.0" in answer.text
    assert "Infinity" not in answer.text
