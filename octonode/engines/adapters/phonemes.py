"""From text to the sounds of a language, as the voices of Piper were trained on: IPA as eSpeak writes it.

Two ways, by what is installed: a dictionary of English made with eSpeak and a model that guesses the rest
(`gruut-lang-en`, MIT), or eSpeak NG itself for every language (`espeakng-loader`, whose library is GPL-3.0, and
therefore an extra of its own). Why: `protocols/decisions/0020-onnx-engines.md`.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import os
import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Protocol

from octonode.engines.adapters.onnx_session import library
from octonode.engines.adapters.spoken_english import SENTENCE_CHARACTERS_MAX, sentences
from octonode.errors import ConfigError, OctonodeError

PUNCTUATION: Final = ".,;:!?"
WORD_CHARACTERS_MAX: Final = 64
"""Longer ones are no words, and are guessed at from their beginning."""
_TOKENS: Final = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|[.,;:!?]")
_NEIGHBOURS: Final = 3
"""Letters on each side that the guessing model looks at."""


class Phonemizer(Protocol):
    name: str

    def phonemes(self, text: str) -> Iterator[str]:
        """Of one sentence after the other, its punctuation kept; nothing for what has no sound."""
        ...


def phonemizer_for(language: str) -> Phonemizer:
    """`language` as eSpeak names it, such as `en-us`. Raises ConfigError that says what to install."""
    if importlib.util.find_spec("espeakng_loader") is not None:
        return Espeak(language)
    if not language.startswith("en"):
        raise ConfigError(
            f"a voice of {language!r} needs eSpeak NG (GPL-3.0); run: pip install 'octonode[piper-espeak]'"
        )
    return EnglishLexicon()


class EnglishLexicon:
    """The dictionary; words that are not in it are guessed letter by letter."""

    name = "gruut-lang-en"

    def __init__(self) -> None:
        module, crfsuite = library("gruut_lang_en", "piper"), library("pycrfsuite", "piper")
        folder = Path(str(module.__file__)).parent / "espeak"
        # immutable: no lock and no journal beside a file that a worker may only read
        address = f"file:{folder / 'lexicon.db'}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as database:
            # its table has no index; in memory it is 25 MB, and a word is found at once
            rows = database.execute("SELECT word, phonemes FROM word_phonemes ORDER BY pron_order DESC")
            self._words = {str(word): str(sounds).replace(" ", "") for word, sounds in rows}
        self._guess = crfsuite.Tagger()
        self._guess.open(os.fspath(folder / "g2p" / "model.crf"))

    def phonemes(self, text: str) -> Iterator[str]:
        for sentence in sentences(unicodedata.normalize("NFC", text)):
            said = ""
            for token in _TOKENS.findall(sentence):
                if token in PUNCTUATION:
                    said += token if said and said[-1] not in PUNCTUATION else ""
                elif word := self._word(token):
                    said += f" {word}" if said else word
            if said.strip(PUNCTUATION + " "):
                yield said

    def _word(self, token: str) -> str:
        lower = token.lower()[:WORD_CHARACTERS_MAX]
        found = self._words.get(lower)
        if found is not None:
            return found
        stem, apostrophe, ending = lower.rpartition("'")
        if apostrophe and ending == "s" and (known := self._words.get(stem)) is not None:
            return known + _plural(known)
        if token.isupper() and len(token) <= 5:  # letters of an abbreviation
            return " ".join(filter(None, map(self._words.get, lower)))
        plain = "".join(each for each in unicodedata.normalize("NFD", lower) if "a" <= each <= "z")
        return self._words.get(plain) or self._guessed(plain)

    def _guessed(self, word: str) -> str:
        labels = self._guess.tag([_features(word, index) for index in range(len(word))]) if word else []
        parts = [part for label in labels for part in base64.b64decode(label).decode().split("|")]
        return "".join(part for part in parts if part != "_")


def _features(word: str, index: int) -> dict[str, Any]:
    """What the model was trained on (gruut's g2p): the letter and its neighbours, each in base64."""
    found: dict[str, Any] = {"bias": 1.0, "grapheme": _coded(word[index])}
    if index == 0:
        found["begin"] = True
    for step in range(1, _NEIGHBOURS + 1):
        if index >= step:
            found[f"grapheme-{step}"] = _coded(word[index - step])
        if index + step < len(word):
            found[f"grapheme+{step}"] = _coded(word[index + step])
    if index == len(word) - 1:
        found["end"] = True
    return found


def _coded(letter: str) -> str:
    return base64.b64encode(letter.encode()).decode()


def _plural(word: str) -> str:
    if word.endswith(("s", "z", "ʃ", "ʒ")):
        return "ɪz"
    return "s" if word.endswith(("p", "t", "k", "f", "θ")) else "z"


class Espeak:
    """eSpeak NG's own library, called through ctypes: one voice a process, which is what a worker has."""

    name = "espeak-ng"
    _RETRIEVAL, _DONT_EXIT, _UTF8, _IPA = 1, 0x8000, 1, 0x02

    def __init__(self, language: str) -> None:
        """Raises ConfigError, OctonodeError FORMAT_REFUSED for a language that it does not know."""
        loader = library("espeakng_loader", "piper-espeak")
        try:
            self._library = ctypes.CDLL(loader.get_library_path())
        except OSError as error:
            raise ConfigError(f"eSpeak NG cannot be loaded ({error}); install espeakng-loader again") from None
        started = self._library.espeak_Initialize(
            self._RETRIEVAL, 0, loader.get_data_path().encode(), ctypes.c_int(self._DONT_EXIT)
        )
        if started < 0 or self._library.espeak_SetVoiceByName(language.encode()) != 0:
            raise OctonodeError(f"eSpeak NG has no voice {language[:32]!r}", code="FORMAT_REFUSED")
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def phonemes(self, text: str) -> Iterator[str]:
        for sentence in re.split(r"(?<=[.!?;:])\s+|\n+", unicodedata.normalize("NFC", text)):
            for first in range(0, len(sentence), SENTENCE_CHARACTERS_MAX):
                said = "".join(self._clauses(sentence[first : first + SENTENCE_CHARACTERS_MAX]))
                if said.strip(PUNCTUATION + " "):
                    yield said

    def _clauses(self, sentence: str) -> Iterator[str]:
        """eSpeak leaves punctuation out, and the voices need it for their melody."""
        for part in re.split(r"([.,;:!?]+(?=\s|$))", sentence):
            if part and part[0] in PUNCTUATION:
                yield part[0] + " "
            elif part.strip():
                yield self._say(part)

    def _say(self, text: str) -> str:
        buffer = ctypes.create_string_buffer(text.encode())
        place = ctypes.c_void_p(ctypes.addressof(buffer))
        said: list[str] = []
        while place.value:
            found = self._library.espeak_TextToPhonemes(ctypes.byref(place), self._UTF8, self._IPA)
            if found:
                said.append(found.decode("utf-8", errors="replace").strip())
        # "(en)" around words of another language are remarks, not sounds
        return re.sub(r"\([a-z-]+\)", "", " ".join(said))
