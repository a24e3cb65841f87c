"""Speech both ways on ONNX Runtime: a real voice of Piper, and Silero VAD that hears where it speaks."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from octonode.engines.adapters import sounds, spoken_english
from octonode.engines.adapters.phonemes import EnglishLexicon, phonemizer_for
from octonode.engines.adapters.piper import PiperMaker, voice_of
from octonode.engines.adapters.silero_vad import SileroVadMaker, spans
from octonode.engines.contract import LoadRequest
from octonode.errors import ConfigError, OctonodeError
from octonode.protocol.work.audio import SpeakRequest, VoiceActivityRequest
from tests.engines.makers import ROOT, speech, tone, unheard, wav_of

pytestmark = pytest.mark.model


async def one(maker: Any, request: Any) -> Any:
    [outcome] = await maker.make([request], unheard)
    if isinstance(outcome, OctonodeError):
        raise outcome
    return outcome


# -- Who speaks when --------------------------------------------------------------------------------------------------


async def test_speech_is_found_between_silences(loaded, model_folder):
    maker = loaded(SileroVadMaker, "silero-vad")
    said = sounds.read_wav(speech(model_folder("piper-joe")), 16_000)
    silence = np.zeros(16_000, np.float32)
    sound = sounds.write_wav(np.concatenate([silence, said, silence, said]), 16_000)
    found = await one(maker, VoiceActivityRequest(sound, silence_seconds_least=0.5))
    seconds = len(said) / 16_000
    assert found.seconds == pytest.approx(2 + 2 * seconds, abs=0.01)
    assert len(found.spans) == 2
    for span, start in zip(found.spans, (1.0, 2.0 + seconds), strict=True):
        assert span.start_seconds == pytest.approx(start, abs=0.3)
        assert span.end_seconds == pytest.approx(start + seconds, abs=0.3)


async def test_what_is_no_speech_is_none_and_rates_and_channels_do_not_matter(loaded, model_folder):
    maker = loaded(SileroVadMaker, "silero-vad")
    assert (await one(maker, VoiceActivityRequest(tone(2.0)))).spans == ()
    noise = np.random.default_rng(1).normal(0, 3000, 32_000).astype("<i2").tobytes()
    assert (await one(maker, VoiceActivityRequest(wav_of(noise, 16_000)))).spans == ()
    said = sounds.read_wav(speech(model_folder("piper-joe")), 44_100)
    stereo = np.repeat((said * 32_000).astype("<i2"), 2).tobytes()
    plain = await one(maker, VoiceActivityRequest(speech(model_folder("piper-joe"))))
    wide = await one(maker, VoiceActivityRequest(wav_of(stereo, 44_100, channels=2)))
    assert len(wide.spans) == len(plain.spans) > 0
    assert wide.spans[0].start_seconds == pytest.approx(plain.spans[0].start_seconds, abs=0.05)


async def test_an_hour_is_refused_or_left_in_the_middle(loaded):
    maker = loaded(SileroVadMaker, "silero-vad")
    with pytest.raises(OctonodeError) as caught:
        await one(maker, VoiceActivityRequest(wav_of(bytes(3 * 3600 * 1000), 1000, bits=8)))
    assert caught.value.code == "TOO_LARGE"
    told: list[tuple[int, int]] = []
    scope = trio.CancelScope()
    token = trio.lowlevel.current_trio_token()

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        token.run_sync_soon(scope.cancel)

    with scope:
        await maker.make([VoiceActivityRequest(wav_of(bytes(8000 * 1500), 8000, bits=8))], tell)
    assert scope.cancelled_caught
    assert told[-1][0] < told[-1][1] == 1500


def test_probabilities_become_spans():
    window = 0.032
    heard = [0.1] * 10 + [0.9] * 20 + [0.4] * 3 + [0.9] * 10 + [0.1] * 10 + [0.9] * 2 + [0.1] * 20
    found = spans(heard, 0.5, 0.1, len(heard) * window)
    assert len(found) == 1, "a dip above the threshold less the hysteresis parts nothing, and two windows are a cough"
    assert found[0].start_seconds == pytest.approx(10 * window - 0.03)
    assert found[0].end_seconds == pytest.approx(43 * window + 0.03)
    assert len(spans([0.9] * 20 + [0.1] * 10 + [0.9] * 20, 0.5, 0.1, 50 * window)) == 2
    assert len(spans([0.9] * 20 + [0.1] * 10 + [0.9] * 20, 0.5, 0.5, 50 * window)) == 1
    assert spans([], 0.5, 0.1, 0.0) == []


@given(st.lists(st.floats(0, 1), max_size=200), st.floats(0, 1), st.floats(0, 2))
def test_spans_are_in_order_and_within_the_sound(heard, threshold, silence):
    seconds = len(heard) * 0.032
    found = spans(heard, threshold, silence, seconds)
    places = [place for span in found for place in (span.start_seconds, span.end_seconds)]
    assert places == sorted(places)
    assert all(0 <= place <= seconds for place in places)


# -- Speaking ---------------------------------------------------------------------------------------------------------


async def test_what_is_said_is_heard_as_speech_and_as_long_as_its_words(loaded):
    voice, ear = loaded(PiperMaker, "piper-joe"), loaded(SileroVadMaker, "silero-vad")
    said = await one(voice, SpeakRequest("The harbour lies still. Twelve boats come home!"))
    assert (said.sample_rate_hz, said.media_type) == (22_050, "audio/wav")
    assert len(sounds.read_wav(said.audio, 22_050)) / 22_050 == pytest.approx(said.seconds, abs=0.001)
    assert 1.5 < said.seconds < 6
    found = await one(ear, VoiceActivityRequest(said.audio))
    heard = sum(span.end_seconds - span.start_seconds for span in found.spans)
    assert heard > 0.6 * said.seconds
    slow = await one(voice, SpeakRequest("The harbour lies still. Twelve boats come home!", speed=0.5))
    assert slow.seconds > 1.5 * said.seconds


async def test_texts_without_a_sound_and_voices_that_are_not_there(loaded):
    maker = loaded(PiperMaker, "piper-joe")
    for text in ("...", "Привет", " \n "):
        with pytest.raises(OctonodeError) as caught:
            await one(maker, SpeakRequest(text))
        assert caught.value.code == "BAD_REQUEST"
    assert maker.key(SpeakRequest("hi", voice="joe")) == maker.key(SpeakRequest("hi"))
    with pytest.raises(OctonodeError) as caught:
        maker.key(SpeakRequest("hi", voice="alloy"))
    assert caught.value.code == "BAD_REQUEST"
    assert "joe" in caught.value.message


def test_numbers_money_and_signs_are_words():
    assert spoken_english.cardinal(1_234_567) == (
        "one million two hundred thirty four thousand five hundred sixty seven"
    )
    said = {
        "It is 12% of $1,200.50": "It is twelve percent of one thousand two hundred point five zero dollars",
        "the 3rd and 21st, 40th": "the third and twenty first , fortieth",
        "in 2026, 1905 and 2000": "in twenty twenty six , nineteen oh five and two thousand",
        "Dr. Smith & Mrs. Jones": "doctor Smith and missus Jones",
        "B2B": "B two B",
        "0.5": "zero point five",
        "9" * 16: " ".join(["nine"] * 16),
    }
    for text, words in said.items():
        assert " ".join(spoken_english.spoken(text).split()) == words


@given(st.text(max_size=400))
def test_any_text_is_cut_into_sentences_of_bounded_length(text):
    found = list(spoken_english.sentences(text))
    assert all(0 < len(each) <= spoken_english.SENTENCE_CHARACTERS_MAX for each in found)
    assert not any(each.isdecimal() and each.isascii() for sentence in found for each in sentence)


def test_words_have_their_sounds_and_strange_ones_are_guessed(model_folder):
    lexicon = EnglishLexicon()
    assert list(lexicon.phonemes("Hello, world!")) == ["həlˈoʊ, wˈɜːld!"]
    assert list(lexicon.phonemes("The boat's red.")) == ["ðə bˈoʊts ɹˈɛd."]
    [strange] = lexicon.phonemes("Flibbertigork naïve")
    assert len(strange) > 12
    known = voice_of(json.loads((model_folder("piper-joe") / "model.onnx.json").read_text("utf-8"))).ids
    assert set(strange) <= set(known), "the voice knows each of them"
    assert list(lexicon.phonemes("日本")) == []


def test_a_voice_of_another_language_says_what_it_needs():
    with pytest.raises(ConfigError) as caught:
        phonemizer_for("de")
    assert "octonode[piper-espeak]" in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"phoneme_type": "pinyin"},
        {"audio": {"sample_rate": 1}},
        {"audio": {}},
        {"phoneme_id_map": {"a": [1]}},
        {"phoneme_id_map": 7},
        {"inference": {"noise_scale": "loud"}},
    ],
)
async def test_a_json_that_is_no_voice_is_refused(tmp_path, model_folder, change):
    folder = tmp_path / "voice"
    shutil.copytree(model_folder("piper-joe"), folder, ignore=shutil.ignore_patterns("*.onnx"))
    (folder / "model.onnx").touch()
    said = json.loads((folder / "model.onnx.json").read_text("utf-8"))
    (folder / "model.onnx.json").write_text(json.dumps({**said, **change}), "utf-8")
    with pytest.raises(OctonodeError) as caught:
        await PiperMaker().load(LoadRequest("piper", folder, ROOT), tmp_path)
    assert caught.value.code == "FORMAT_REFUSED"


def test_voices_of_letters_and_of_several_speakers():
    config = {
        "audio": {"sample_rate": 16_000},
        "phoneme_type": "text",
        "phoneme_id_map": {"_": [0], "^": [1], "$": [2], "a": [3, 4]},
        "num_speakers": 2,
        "speaker_id_map": {"ann": 0, "bob": 1},
    }
    voice = voice_of(config)
    assert voice.numbers("aza") == [1, 0, 3, 4, 0, 3, 4, 0, 2]
    assert (voice.letters, dict(voice.speakers)) == (True, {"ann": 0, "bob": 1})
