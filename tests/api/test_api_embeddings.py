"""`/v1/embeddings` by OpenAI's own client."""

from __future__ import annotations

from array import array
from typing import Any

import httpx
import openai
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.api.app import make_app
from octonode.api.schema.embeddings import parse_embeddings, vectors_of
from octonode.config import ApiConfig
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import Sound
from octonode.protocol.work.text import Embeddings, EmbedRequest
from octonode.tasks.asking import Progress
from octonode.testing.faces import PROVIDER, ROOT, TOKEN, PlayedAsking, PlayedModels, Stage, a_model, makes

VECTORS = [[0.5, -0.25, 1.0], [0.0, 2.0, -8.0]]
FOUND = Embeddings(array("f", [number for vector in VECTORS for number in vector]).tobytes(), 3, 11, 1)


def embed(stage: Stage, **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
        return client.embeddings.create(**{"model": "tiny", "input": ["one", "two"], **fields})


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
async def test_the_openai_client_gets_vectors(encoding: dict[str, Any]) -> None:
    async with Stage(asking=PlayedAsking(makes(FOUND))).run() as stage:
        answer = await trio.to_thread.run_sync(lambda: embed(stage, **encoding))
    got = [each.embedding for each in answer.data]
    if encoding.get("encoding_format") == "base64":
        assert got == ["AAAAPwAAgL4AAIA/", "AAAAAAAAAEAAAADB"]
    else:
        assert got == VECTORS
    assert [each.index for each in answer.data] == [0, 1]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (11, 11)
    facts = answer.model_extra["octonode"]
    assert (facts["provider"], facts["model_root"], facts["verified"]) == (PROVIDER, ROOT, True)
    assert (facts["dimensions"], facts["texts_cut"]) == (3, 1)
    assert stage.asking.asked[0].work == EmbedRequest(("one", "two"))


async def test_what_may_be_asked_for_reaches_the_engine() -> None:
    async with Stage(asking=PlayedAsking(makes(FOUND))).run() as stage:
        extra = {"octonode": {"truncate": False, "peer": PROVIDER, "mode": "batch"}}
        await trio.to_thread.run_sync(lambda: embed(stage, input="one", extra_body=extra, user="u"))
    assert stage.asking.asked[0].work == EmbedRequest(("one",), truncate=False)
    assert (stage.asking.asked[0].peer, stage.asking.asked[0].mode) == (PROVIDER, "batch")


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"input": [1, 2, 3]}, "UNSUPPORTED", "input"),
        ({"input": [[1, 2], [3]]}, "UNSUPPORTED", "input"),
        ({"input": []}, "BAD_REQUEST", "input"),
        ({"input": ["x", ""]}, "BAD_REQUEST", "input[1]"),
        ({"input": ["x"] * 2049}, "BAD_REQUEST", "input"),
        ({"input": {"a": 1}}, "BAD_REQUEST", "input"),
        ({"dimensions": 256}, "UNSUPPORTED", "dimensions"),
        ({"encoding_format": "hex"}, "BAD_REQUEST", "encoding_format"),
        ({"inputs": "x"}, "BAD_REQUEST", "inputs"),
        ({"octonode": {"truncat": True}}, "BAD_REQUEST", "octonode"),
        ({"privacy_level": "private"}, "PRIVACY_UNAVAILABLE", "privacy_level"),
    ],
)
def test_what_is_not_served_is_named(change: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(OctonodeError) as refused:
        parse_embeddings({"model": "m", "input": "x", **change})
    assert (refused.value.code, refused.value.detail["param"]) == (code, param)


@settings(max_examples=100, deadline=None)
@given(vectors=st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3), max_size=5))
def test_vectors_survive_their_bytes(vectors: list[list[float]]) -> None:
    data = array("f", [number for vector in vectors for number in vector]).tobytes()
    assert vectors_of(Embeddings(data, 3)) == vectors


async def test_a_cold_model_is_told(autojump_clock: Any) -> None:
    async def cold(_: Any) -> Any:
        for done in range(100):
            yield Progress(PROVIDER, "loading", done, 100)
            await trio.sleep(1)

    app = make_app(Stage(asking=PlayedAsking(cold)).ports, config=ApiConfig(), token=TOKEN)
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8808") as client:
        answer = await client.post("/v1/embeddings", json={"model": "tiny", "input": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "MODEL_LOADING")
    assert answer.headers["retry-after"] == "60"


async def test_a_chat_in_place_of_vectors_is_no_answer() -> None:
    sound = Sound(b"RIFF", 16_000, 0.0)
    async with Stage(asking=PlayedAsking(makes(sound))).run() as stage:
        with pytest.raises(openai.InternalServerError) as lost:
            await trio.to_thread.run_sync(embed, stage)
    assert (lost.value.status_code, lost.value.code) == (502, "PROVIDER_LOST")


async def test_a_model_that_cannot_do_it_is_told_at_once_and_not_to_be_asked_again() -> None:
    async with Stage(models=PlayedModels([a_model(skills=("chat",))])).run() as stage:
        with pytest.raises(openai.BadRequestError, match="cannot embed; it can chat") as refused:
            await trio.to_thread.run_sync(embed, stage)
        async with httpx.AsyncClient() as client:
            body = {"model": "tiny", "skill": "embed", "input": {"texts": ["x"]}}
            native = await client.post(f"{stage.url}/api/v1/inference", json=body)
    assert (refused.value.code, refused.value.param) == ("UNSUPPORTED", "model")
    assert native.json()["error"]["code"] == "UNSUPPORTED"
    assert stage.asking.asked == []
