"""The clients' verb a skill, against the real faces: typed records both ways, progress, errors as they were raised."""

from __future__ import annotations

import math
from array import array
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio

from octonode.api.schema import ModelProgress
from octonode.api.schema.embeddings import vectors_of
from octonode.client import AsyncClient, Client
from octonode.engines.contract import TokenLogprob
from octonode.errors import OctonodeError, Unreachable
from octonode.protocol.work.audio import (
    Segment,
    Sound,
    SoundRequest,
    Span,
    SpeakRequest,
    TranscribeRequest,
    Transcription,
    VoiceActivity,
    VoiceActivityRequest,
    Word,
)
from octonode.protocol.work.image import ImageRequest, Images
from octonode.protocol.work.skills import WorkRequest, WorkResult
from octonode.protocol.work.text import Embeddings, EmbedRequest
from octonode.protocol.work.vision import (
    Box,
    Classification,
    ClassifyRequest,
    DetectedObject,
    Detection,
    DetectRequest,
    Label,
    ReadRequest,
    ReadText,
    TextLine,
)
from octonode.tasks.asking import Ask, AskEvent, Pieces, Progress
from octonode.testing.faces import PROVIDER, TOKEN, PlayedAsking, PlayedModels, Stage, a_model, answered, makes

FILE = bytes(range(256))
WAV = Sound(FILE, 16_000, 1.5, seed=5)

CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any], WorkRequest, WorkResult]] = {
    "embed": (
        (["one", "two"],),
        {"truncate": False},
        EmbedRequest(("one", "two"), truncate=False),
        Embeddings(array("f", [1.0, -2.0]).tobytes(), 1, 2, 1),
    ),
    "classify": ((FILE,), {"top": 2}, ClassifyRequest(FILE, 2), Classification((Label("cat", 0.5), Label("é", 0.0)))),
    "detect": (
        (FILE,),
        {"score_least": 0.5, "most": 3},
        DetectRequest(FILE, 0.5, most=3),
        Detection((DetectedObject("dog", 0.5, Box(0.0, 1.0, 2.5, 3.0)),), 640, 480),
    ),
    "read": ((FILE,), {}, ReadRequest(FILE), ReadText((TextLine("世界", 0.5, Box(0.0, 0.0, 1.0, 1.0)),), 9, 9)),
    "transcribe": (
        (FILE,),
        {"language": "en", "words": True},
        TranscribeRequest(FILE, language="en", words=True),
        Transcription("a b", "en", 2.0, (Segment("a b", 0.0, 1.0, (Word("a", 0.0, 0.5), Word("b", 0.5, 1.0))),)),
    ),
    "voice_activity": (
        (FILE,),
        {"threshold": 0.25},
        VoiceActivityRequest(FILE, 0.25),
        VoiceActivity((Span(0.5, 1.0),), 2.0),
    ),
    "speak": (("Hello",), {"voice": "joe", "speed": 2.0}, SpeakRequest("Hello", "joe", 2.0), WAV),
    "sound": (("rain",), {"seconds": 1.0, "seed": 5}, SoundRequest("rain", seconds=1.0, seed=5), WAV),
    "image": (
        ("a hill",),
        {"image": FILE, "strength": 0.5, "count": 2, "seed": -1},
        ImageRequest("a hill", image=FILE, strength=0.5, count=2, seed=-1),
        Images((FILE, FILE[::-1]), 64, 64, 4, -1),
    ),
}


@pytest.mark.parametrize("skill", CASES)
async def test_each_verb_sends_its_record_and_gives_the_other_back(skill: str) -> None:
    given, options, request, result = CASES[skill]
    seen: list[ModelProgress] = []
    async with Stage(asking=PlayedAsking(makes(result, steps=3))).run() as stage:

        def blocking() -> Any:
            with Client(stage.url, TOKEN) as client:
                return getattr(client, skill)("tiny", *given, **options, mode="realtime", peer=PROVIDER)

        made = await trio.to_thread.run_sync(blocking)
        async with AsyncClient(stage.url, TOKEN) as client:
            again = await getattr(client, skill)("tiny", *given, **options, on_progress=seen.append)
    assert made.result == again.result == result
    assert (made.facts.provider, made.facts.verified, made.facts.receipt) == (PROVIDER, True, b"a receipt")
    first, second = stage.asking.asked
    assert (first.work, first.mode, first.peer) == (request, "realtime", PROVIDER)
    assert (second.work, second.mode, second.peer) == (request, "", None)
    assert {(each.stage, each.total) for each in seen} <= {("step", 3)}


async def test_progress_is_told_while_the_work_is_done() -> None:
    told = trio.Event()

    async def script(ask: Ask) -> AsyncIterator[AskEvent]:
        yield Progress(PROVIDER, "step", 1, 20)
        await told.wait()  # only what came over the wire sets it
        async for event in makes(WAV)(ask):
            yield event

    seen: list[tuple[str, int, int]] = []

    def hear(progress: ModelProgress) -> None:
        seen.append((progress.stage, progress.done, progress.total))
        told.set()

    async with Stage(asking=PlayedAsking(script)).run() as stage, AsyncClient(stage.url, TOKEN) as client:
        made = await client.sound("tiny", "rain", on_progress=hear)
    assert made.result == WAV
    assert seen == [("step", 1, 20)]


async def test_errors_come_back_as_they_were_raised() -> None:
    async def breaks(_: Ask) -> AsyncIterator[AskEvent]:
        yield Progress(PROVIDER, "step", 1, 20)
        raise OctonodeError("the engine fell over", code="ENGINE_CRASHED")

    async with Stage(asking=PlayedAsking(breaks)).run() as stage, AsyncClient(stage.url, TOKEN) as client:
        with pytest.raises(OctonodeError, match="fell over") as crashed:
            await client.image("tiny", "a hill")
        with pytest.raises(OctonodeError, match="no field 'colour'") as unknown:
            await client.image("tiny", "a hill", colour="red")
        with pytest.raises(OctonodeError, match="it takes 1 to 8") as outside:
            await client.image("tiny", "a hill", count=9)
        with pytest.raises(OctonodeError, match="answered at once") as later:
            await client.image("tiny", "a hill", mode="async")
    assert crashed.value.code == "ENGINE_CRASHED"
    assert {unknown.value.code, outside.value.code, later.value.code} == {"BAD_REQUEST"}
    assert len(stage.asking.asked) == 1


async def test_leaving_early_cancels_it() -> None:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        while True:
            yield Progress(PROVIDER, "step", 1, 20)
            await trio.sleep(0.01)

    async with Stage(asking=PlayedAsking(script)).run() as stage, AsyncClient(stage.url, TOKEN) as client:
        with trio.CancelScope() as scope:
            await client.image("tiny", "a hill", on_progress=lambda _: scope.cancel())
        with trio.fail_after(60):
            await stage.asking.left.wait()


async def test_a_node_that_is_lost_in_the_middle_is_said_to_be() -> None:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Progress(PROVIDER, "step", 1, 20)
        stage.shutdown.set()
        await trio.sleep_forever()

    stage = Stage(asking=PlayedAsking(script))
    stage.limits = type(stage.limits)(drain_timeout_seconds=0.1)
    async with stage.run(), AsyncClient(stage.url, TOKEN) as client:
        with pytest.raises(Unreachable):
            await client.image("tiny", "a hill")


def test_vectors_are_numbers_again() -> None:
    assert vectors_of(Embeddings(array("f", [1.0, -2.0, 0.5, 0.25]).tobytes(), 2)) == [[1.0, -2.0], [0.5, 0.25]]


async def test_explain_is_about_what_is_to_be_done() -> None:
    models = PlayedModels([a_model(skills=("embed", "chat"))])
    asked: list[str] = []

    class Heard(PlayedAsking):
        async def explain(self, ask: Ask) -> Any:
            asked.append(ask.skill)
            return await super().explain(ask)

    async with Stage(asking=Heard(), models=models).run() as stage, AsyncClient(stage.url, TOKEN) as client:
        await client.explain("tiny")
        await client.explain("tiny", skill="chat")
        with pytest.raises(OctonodeError, match="cannot image; it can embed, chat"):
            await client.explain("tiny", skill="image")
        with pytest.raises(OctonodeError, match="no skill 'paint'"):
            await client.explain("tiny", skill="paint")
        models.held[:] = [a_model()]
        for skill in (*CASES, ""):
            await client.explain("tiny", skill=skill)
    assert asked == ["embed", "chat", *CASES, "chat"]


async def test_a_token_that_cannot_be_is_told_in_json() -> None:
    never = (TokenLogprob("x", -math.inf, (("x", -math.inf),)),)

    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Pieces(("x",))
        yield answered(1, logprobs=never)

    body = {"model": "tiny", "input": {"prompt": "Once"}, "parameters": {"logprobs": 1}}
    stage = Stage(asking=PlayedAsking(script))
    async with stage.run(), httpx.AsyncClient(base_url=stage.url) as client:
        answer = await client.post("/api/v1/inference", json=body)
    assert (answer.status_code, answer.json()["result"]["logprobs"]) == (200, [["x", -9999.0, [["x", -9999.0]]]])
