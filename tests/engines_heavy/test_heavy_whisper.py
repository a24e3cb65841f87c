"""Speech to text with real Whisper tiny.en, by CTranslate2 and by torch, of speech that a real voice spoke."""

from __future__ import annotations

import io
import struct

import pytest
import trio

from octonode.engines.contract import Step
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import AUDIO_SECONDS_MAX, TranscribeRequest, Transcription
from octonode.protocol.work.text import EmbedRequest
from tests.engines_heavy.working import RATE_HZ, ROOT, WORDS, frames_of, load, made, spoken, wav

pytestmark = pytest.mark.process

ENGINES = {"faster-whisper": "whisper-tiny-en", "transformers-whisper": "whisper-tiny-en-hf"}
FRAMES_AT = 44


@pytest.fixture(scope="module")
def speech(model_folder) -> bytes:  # type: ignore[no-untyped-def]
    return spoken(model_folder("piper-joe"))


@pytest.fixture(params=ENGINES)
def whisper(request: pytest.FixtureRequest, model_folder):  # type: ignore[no-untyped-def]
    return load(request.param, model_folder(ENGINES[request.param]), "audio")


def heard(result: Transcription) -> set[str]:
    return {word.strip(".,!?").lower() for word in result.text.split()} & set(WORDS)


def ogg(sound: bytes) -> bytes:
    """The same as Opus in Ogg."""
    import av

    file = io.BytesIO()
    with av.open(io.BytesIO(sound), format="wav") as source, av.open(file, "w", format="ogg") as target:
        stream = target.add_stream("libopus", rate=48_000)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000)
        for frame in (*source.decode(audio=0), None):
            for part in resampler.resample(frame):
                for packet in stream.encode(part):
                    target.mux(packet)
        for packet in stream.encode(None):
            target.mux(packet)
    return file.getvalue()


async def test_speech_becomes_words_with_rising_times(supervise, whisper, speech):
    async with supervise(whisper) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        assert engine.facts.skills == ("transcribe",)
        assert "seccomp" in supervisor.status()[0].sandbox
        work = await made(engine, TranscribeRequest(speech, words=True))
        result = work.result
        assert len(heard(result)) >= 6, result.text
        assert result.language == "en"
        assert result.seconds == pytest.approx((len(speech) - FRAMES_AT) / 2 / RATE_HZ, abs=0.01)
        words = [word for segment in result.segments for word in segment.words]
        assert len(words) == len(result.text.split())
        times = [time for word in words for time in (word.start_seconds, word.end_seconds)]
        assert times == sorted(times)
        assert 1.5 < times[-1] <= result.seconds
        assert work.steps[-1].done == work.steps[-1].total == 3
        plain = (await made(engine, TranscribeRequest(speech, language="en"))).result
        assert heard(plain) == heard(result)
        assert not any(segment.words for segment in plain.segments)
        warm = (await made(engine, TranscribeRequest(speech, temperature=0.4))).result
        assert len(heard(warm)) >= 4, warm.text
        packed = (await made(engine, TranscribeRequest(ogg(speech), prompt="A fox. " * 200))).result
        assert len(heard(packed)) >= 6, packed.text


async def test_a_sound_of_several_windows_is_heard_to_its_end(supervise, whisper, speech):
    frames = frames_of(speech) + bytes(2 * 9 * RATE_HZ)  # nine seconds of silence: no window repeats itself
    long = wav(frames * 3 + frames_of(speech), RATE_HZ)
    async with supervise(whisper) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        work = await made(engine, TranscribeRequest(long))
        assert work.result.seconds > 34
        assert work.result.text.lower().count("fox") >= 3
        starts = [segment.start_seconds for segment in work.result.segments]
        assert starts == sorted(starts)
        assert work.result.segments[-1].end_seconds > 31
        assert [step.done for step in work.steps] == sorted(step.done for step in work.steps)
        with trio.fail_after(120):
            async with engine.make(TranscribeRequest(long)) as events:
                async for event in events:
                    if isinstance(event, Step):
                        break
            assert heard((await made(engine, TranscribeRequest(speech))).result)


async def test_what_cannot_be_heard_is_refused_and_costs_nothing(supervise, whisper, speech):
    three_hours = bytearray(wav(bytes(100), 8000))
    struct.pack_into("<I", three_hours, FRAMES_AT - 4, 3 * 3600 * 8000 * 2)
    assert AUDIO_SECONDS_MAX < 3 * 3600
    async with supervise(whisper) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        for request, code in (
            (TranscribeRequest(bytes(three_hours)), "TOO_LARGE"),
            (TranscribeRequest(b"no sound at all"), "BAD_REQUEST"),
            (TranscribeRequest(b"#EXTM3U\n/etc/passwd\n"), "BAD_REQUEST"),
            (TranscribeRequest(ogg(speech)[:200]), "BAD_REQUEST"),
            (TranscribeRequest(speech, language="de"), "UNSUPPORTED"),
            (EmbedRequest(("a",)), "UNSUPPORTED"),
        ):
            with pytest.raises(OctonodeError) as caught:
                await made(engine, request)
            assert caught.value.code == code, caught.value
        silent = (await made(engine, TranscribeRequest(wav(b"", 16_000)))).result
        assert (silent.text, silent.segments) == ("", ())
        assert heard((await made(engine, TranscribeRequest(speech))).result)
