"""`/v1/audio/*` by OpenAI's own client."""

from __future__ import annotations

import io
import wave
from typing import Any

import openai
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from octonode.api.schema.audio import clock, parse_speech, parse_transcription
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import (
    AUDIO_BYTES_MAX,
    Segment,
    Sound,
    SpeakRequest,
    TranscribeRequest,
    Transcription,
    Word,
)
from octonode.testing.faces import PROVIDER, TASK, PlayedAsking, Stage, makes

WORDS = (Word(" The", 0.0, 0.5), Word(" quick", 0.5, 0.75), Word(" fox.", 0.75, 1.25))
FOUND = Transcription(
    "The quick fox. It jumps --> far.",
    "en",
    3723.5,
    (Segment("The quick fox.", 0.0, 1.25, WORDS), Segment(" It jumps\n--> far.", 3722.0, 3723.4996, ())),
)


def wav(samples: bytes = b"\x01\x00\xff\x7f", rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)
    return out.getvalue()


def transcribe(stage: Stage, **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
        return client.audio.transcriptions.create(**{"model": "tiny", "file": ("talk.wav", wav()), **fields})


async def test_the_openai_client_gets_a_text() -> None:
    async with Stage(asking=PlayedAsking(makes(FOUND))).run() as stage:
        answer = await trio.to_thread.run_sync(
            lambda: transcribe(
                stage, language="en", prompt="foxes", temperature=0.25, extra_body={"octonode": {"peer": PROVIDER}}
            )
        )
    assert answer.text == FOUND.text
    assert answer.usage.seconds == 3723.5
    assert answer.model_extra["octonode"]["verified"] is True
    asked = stage.asking.asked[0]
    assert asked.work == TranscribeRequest(wav(), language="en", prompt="foxes", temperature=0.25)
    assert asked.peer == PROVIDER


async def test_the_openai_client_gets_times() -> None:
    async with Stage(asking=PlayedAsking(makes(FOUND))).run() as stage:
        plain = await trio.to_thread.run_sync(lambda: transcribe(stage, response_format="verbose_json"))
        words = await trio.to_thread.run_sync(
            lambda: transcribe(stage, response_format="verbose_json", timestamp_granularities=["word"])
        )
    assert (plain.language, plain.duration) == ("en", 3723.5)
    assert [(each.id, each.start, each.end) for each in plain.segments] == [(0, 0.0, 1.25), (1, 3722.0, 3723.4996)]
    assert plain.words is None
    assert [(each.word, each.start) for each in words.words] == [("The", 0.0), ("quick", 0.5), ("fox.", 0.75)]
    assert words.segments is None
    assert [each.work.words for each in stage.asking.asked] == [False, True]


SRT = """1
00:00:00,000 --> 00:00:01,250
The quick fox.

2
01:02:02,000 --> 01:02:03,500
It jumps -> far.
"""
VTT = """WEBVTT

00:00:00.000 --> 00:00:01.250
The quick fox.

01:02:02.000 --> 01:02:03.500
It jumps -> far.
"""


@pytest.mark.parametrize(("form", "text"), [("text", FOUND.text + "\n"), ("srt", SRT), ("vtt", VTT)])
async def test_subtitles_are_texts_whose_proof_stands_in_headers(form: str, text: str) -> None:
    async with Stage(asking=PlayedAsking(makes(FOUND))).run() as stage:

        def ask() -> Any:
            with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
                return client.audio.transcriptions.with_raw_response.create(
                    model="tiny",
                    file=("talk.wav", wav()),
                    response_format=form,  # type: ignore[arg-type]
                )

        answer = await trio.to_thread.run_sync(ask)
    assert answer.text == text
    assert answer.headers["content-type"].startswith("text/")
    assert answer.headers["x-octonode-provider"] == PROVIDER
    assert answer.headers["x-octonode-verified"] == "true"
    assert answer.headers["x-octonode-receipt"] == f"/api/v1/receipts/{TASK.hex()}"


@given(seconds=st.floats(0, 1e6))
def test_a_clock_is_a_clock(seconds: float) -> None:
    told = clock(seconds)
    hours, minutes, rest = told.split(":")
    assert len(rest) == 6
    assert int(minutes) < 60
    assert float(rest) < 60
    assert abs(int(hours) * 3600 + int(minutes) * 60 + float(rest) - seconds) <= 0.000_51


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"response_format": "docx"}, "BAD_REQUEST", "response_format"),
        ({"temperature": "hot"}, "BAD_REQUEST", "temperature"),
        ({"temperature": 2}, "BAD_REQUEST", "temperature"),
        ({"timestamp_granularities": ["word"]}, "BAD_REQUEST", "timestamp_granularities"),
        ({"response_format": "verbose_json", "timestamp_granularities": ["sentence"]}, "BAD_REQUEST",
         "timestamp_granularities"),
        ({"stream": "true"}, "UNSUPPORTED", "stream"),
        ({"include": ["logprobs"]}, "UNSUPPORTED", "include"),
        ({"language": "x" * 17}, "BAD_REQUEST", "language"),
        ({"lang": "en"}, "BAD_REQUEST", "lang"),
    ],
)  # fmt: skip
def test_what_is_not_served_of_a_transcription_is_named(change: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(OctonodeError) as refused:
        parse_transcription({"model": "m", **change}, b"sound")
    assert (refused.value.code, refused.value.detail["param"]) == (code, param)


async def test_a_sound_over_what_is_taken_is_told_so_at_once() -> None:
    """A form may be larger than what goes on to a provider."""
    async with Stage().run() as stage:
        sound = ("talk.wav", bytes(AUDIO_BYTES_MAX + 1))
        with pytest.raises(openai.APIStatusError) as refused:
            await trio.to_thread.run_sync(lambda: transcribe(stage, file=sound))
    assert (refused.value.status_code, refused.value.code, refused.value.param) == (413, "TOO_LARGE", "file")
    assert stage.asking.asked == []


async def test_a_form_without_its_sound_is_told_what_is_missing() -> None:
    async with Stage().run() as stage:
        with pytest.raises(openai.BadRequestError) as refused:
            await trio.to_thread.run_sync(lambda: transcribe(stage, file=("talk.wav", b"")))
    assert (refused.value.code, refused.value.param) == ("BAD_REQUEST", "file")
    assert stage.asking.asked == []


async def test_the_openai_client_gets_speech() -> None:
    samples = bytes(range(64))
    made = Sound(wav(samples, 22_050), 22_050, 32 / 22_050)
    async with Stage(asking=PlayedAsking(makes(made))).run() as stage:

        def speak(**fields: Any) -> tuple[bytes, Any]:
            with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
                answer = client.audio.speech.create(
                    **{"model": "tiny", "input": "Hello.", "voice": "default", **fields}
                )
                return answer.read(), answer.response.headers

        data, headers = await trio.to_thread.run_sync(lambda: speak(response_format="wav", speed=1.5))
        raw, raw_headers = await trio.to_thread.run_sync(lambda: speak(response_format="pcm", voice="joe"))
        plain, _ = await trio.to_thread.run_sync(speak)
        with pytest.raises(openai.BadRequestError) as refused:
            await trio.to_thread.run_sync(lambda: speak(response_format="mp3"))
    assert data == plain == made.audio
    assert headers["content-type"] == "audio/wav"
    assert (headers["x-octonode-provider"], headers["x-octonode-sample-rate-hz"]) == (PROVIDER, "22050")
    assert raw == samples
    assert raw_headers["content-type"] == "audio/pcm"
    assert (refused.value.code, refused.value.param) == ("UNSUPPORTED", "response_format")
    assert [each.work for each in stage.asking.asked] == [
        SpeakRequest("Hello.", speed=1.5), SpeakRequest("Hello.", voice="joe"), SpeakRequest("Hello."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"input": " "}, "BAD_REQUEST", "input"),
        ({"input": "x" * 4097}, "BAD_REQUEST", "input"),
        ({"speed": 5}, "BAD_REQUEST", "speed"),
        ({"voice": {"id": "x"}}, "BAD_REQUEST", "voice"),
        ({"response_format": "ogg"}, "BAD_REQUEST", "response_format"),
        ({"instructions": "whisper"}, "UNSUPPORTED", "instructions"),
        ({"stream_format": "sse"}, "UNSUPPORTED", "stream_format"),
    ],
)
def test_what_is_not_served_of_speech_is_named(change: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(OctonodeError) as refused:
        parse_speech({"model": "m", "input": "x", "voice": "default", **change})
    assert (refused.value.code, refused.value.detail["param"]) == (code, param)


async def test_a_provider_that_sends_no_wav_is_told_of() -> None:
    async with Stage(asking=PlayedAsking(makes(Sound(b"not a wav", 16_000, 1.0)))).run() as stage:

        def speak() -> None:
            with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as client:
                client.audio.speech.create(model="tiny", input="x", voice="default", response_format="pcm")

        with pytest.raises(openai.InternalServerError) as lost:
            await trio.to_thread.run_sync(speak)
    assert lost.value.code == "PROVIDER_LOST"
