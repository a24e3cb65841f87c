"""English text as it is read aloud: numbers, money, abbreviations and signs become words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

SENTENCE_CHARACTERS_MAX: Final = 300
"""Longer ones are cut at a comma or a space: a voice's work and memory grow with the square of what it says at once."""
_ONES: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS: Final = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES: Final = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_ORDINALS: Final = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_WHOLE: Final = 10**15
"""Numbers from here on are read digit by digit."""
_SHORT: Final = {
    "mr": "mister", "mrs": "missus", "ms": "miss", "dr": "doctor", "st": "saint", "prof": "professor", "jr": "junior",
    "vs": "versus", "etc": "et cetera", "approx": "approximately", "no": "number", "sr": "senior",
}  # fmt: skip
_SIGNS: Final = {
    "&": " and ", "%": " percent ", "+": " plus ", "=": " equals ", "@": " at ", "#": " number ", "°": " degrees ",
    "/": " slash ", "_": " ", "*": " ", "\u2019": "'", "\u2018": "'", "\u2014": ", ", "\u2013": ", ", "\u2026": ".",
}  # fmt: skip
_MONEY: Final = {"$": "dollars", "€": "euros", "£": "pounds", "¥": "yen"}
_NUMBER: Final = re.compile(r"([$€£¥]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(st|nd|rd|th)?(?![\w])|(\d)")
_SHORTENED: Final = re.compile(r"\b(" + "|".join(_SHORT) + r")\.(?=\s)", re.IGNORECASE)
_ENDS: Final = re.compile(r"(?<=[.!?;:])\s+|\n+")


def sentences(text: str) -> Iterator[str]:
    """Pieces to be said one after the other, with their punctuation, words only."""
    for part in _ENDS.split(spoken(text)):
        rest = " ".join(part.split())
        while len(rest) > SENTENCE_CHARACTERS_MAX:
            window = rest[:SENTENCE_CHARACTERS_MAX]
            comma, space = window.rfind(",") + 1, window.rfind(" ")
            cut = next(each for each in (comma, space, len(window)) if each > len(window) // 4)
            yield rest[:cut].strip()
            rest = rest[cut:].strip()
        if rest:
            yield rest


def spoken(text: str) -> str:
    """The text with words in place of digits and signs."""
    text = _SHORTENED.sub(lambda match: _SHORT[match[1].lower()], text)
    text = _NUMBER.sub(_say_match, text)
    return "".join(_SIGNS.get(each, each) for each in text)


def _say_match(match: re.Match[str]) -> str:
    money, whole, fraction, ordinal, digit = match.groups()
    if digit:  # inside of a word, such as B2
        return f" {_ONES[int(digit)]} "
    digits = whole.replace(",", "")
    number = int(digits) if len(digits) <= 15 else _WHOLE
    words = cardinal(number) if number < _WHOLE else " ".join(_ONES[int(each)] for each in digits)
    if ordinal and not fraction:
        words = _ordinal(words)
    elif not money and not fraction and re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", whole):
        words = f"{cardinal(number // 100)} {_pair(number % 100)}"  # a year, as most such numbers are
    if fraction:
        words += " point " + " ".join(_ONES[int(each)] for each in fraction[1:])
    return f" {words} {_MONEY[money]} " if money else f" {words} "


def cardinal(number: int) -> str:
    """Words of a whole number from 0 to 10^15."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")
    scale, name = next(each for each in _SCALES if number >= each[0])
    rest = number % scale
    return f"{cardinal(number // scale)} {name}" + (f" {cardinal(rest)}" if rest else "")


def _pair(number: int) -> str:
    if number == 0:
        return "hundred"
    return f"oh {_ONES[number]}" if number < 10 else cardinal(number)


def _ordinal(words: str) -> str:
    head, _, last = words.rpartition(" ")
    ending = _ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return f"{head} {ending}".strip()
