"""eSpeak NG as the source of a voice's phonemes: every language, by a library that only ring 2 installs."""

from __future__ import annotations

import json

import pytest

from octonode.engines.adapters.phonemes import Espeak, phonemizer_for
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import SpeakRequest, VoiceActivityRequest
from tests.engines_heavy.working import ROOT, load, made

pytestmark = pytest.mark.process


def test_languages_sound_as_they_are_spoken():
    english = Espeak("en-us")
    [first, second] = english.phonemes("Hello, world! It is 12 o'clock.")
    assert first.replace(" ", "").startswith("həlˈoʊ,wˈɜːld!")
    assert "twˈɛlv" in second
    assert list(english.phonemes("... \n !")) == []
    assert "ˈaɪn" in "".join(Espeak("de").phonemes("eins"))
    assert len(list(Espeak("en-us").phonemes("word " * 400))) > 1, "a long sentence is cut"
    with pytest.raises(OctonodeError) as caught:
        Espeak("a language of nobody")
    assert caught.value.code == "FORMAT_REFUSED"


async def test_a_voice_speaks_by_espeak_in_its_sandbox(supervise, model_folder):
    folder = model_folder("piper-joe")
    assert phonemizer_for("en-us").name == "espeak-ng", "it comes first where it is installed"
    known = json.loads((folder / "model.onnx.json").read_text("utf-8"))["phoneme_id_map"]
    said = "".join(Espeak("en-us").phonemes("The quick brown fox jumps over the lazy dog."))
    assert set(said) <= set(known)
    async with supervise(load("piper", folder, "audio")) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        assert engine.facts.flags["phonemes"] == "espeak-ng"
        sound = (await made(engine, SpeakRequest("The quick brown fox jumps over the lazy dog."))).result
    async with supervise(load("silero-vad", model_folder("silero-vad"), "audio")) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        heard = (await made(engine, VoiceActivityRequest(sound.audio))).result
    assert sum(span.end_seconds - span.start_seconds for span in heard.spans) > 0.6 * sound.seconds
