"""Skills besides chat: a record is read as it was written, all else is a RecordError; the page and its vectors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import OctonodeError
from octonode.protocol.codec import pack, unpack
from octonode.protocol.limits import DEFAULT_LIMITS
from octonode.protocol.work import audio, image, text, vision
from octonode.protocol.work.records import RecordError, read, write
from octonode.protocol.work.skills import SKILLS, join, read_request, read_result, split
from octonode.tasks.results import piece_of, unpack_result

ROOT = Path(__file__).parents[2]
VECTORS: dict[str, Any] = json.loads((ROOT / "protocols/vectors/skills.json").read_text(encoding="utf-8"))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def plain(packed: str) -> dict[str, Any]:
    value: dict[str, Any] = unpack(bytes.fromhex(packed), DEFAULT_LIMITS)
    return value


@pytest.mark.parametrize("row", VECTORS["requests"], ids=lambda row: row["skill"])
def test_the_requests_of_the_vectors_are_taken_and_made(row: dict[str, Any]) -> None:
    request = join(row["skill"], plain(row["input"]), plain(row["params"]))
    assert type(request) is SKILLS[row["skill"]].request
    inputs, parameters = split(request)
    assert (pack(inputs).hex(), pack(parameters).hex()) == (row["input"], row["params"])


@pytest.mark.parametrize("row", VECTORS["results"], ids=lambda row: row["skill"])
def test_the_results_of_the_vectors_are_taken(row: dict[str, Any]) -> None:
    data = bytes.fromhex(row["bytes"])
    result = unpack_result(row["skill"], data)
    assert pack(write(result)) == data
    assert piece_of(data) == row["piece"]


@pytest.mark.parametrize("row", VECTORS["invalid"], ids=lambda row: row["why"])
def test_the_invalid_requests_of_the_vectors_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(OctonodeError) as caught:
        join(row["skill"], plain(row["input"]), plain(row["params"]))
    assert caught.value.code == row["code"]


@pytest.mark.parametrize("skill", SKILLS.values(), ids=lambda skill: skill.name)
def test_the_page_names_every_field(skill: Any) -> None:
    page = (ROOT / "protocols/skills.md").read_text(encoding="utf-8")
    assert f"### `{skill.name}`" in page
    for kind in (skill.request, skill.result):
        _, _, section = page.partition(f"\n`{kind.__name__}`\n")
        table = section.partition("\n\n`")[0].partition("\n\n#")[0]
        for field in dataclasses.fields(kind):
            assert f"| `{field.name}`" in table, f"{kind.__name__}.{field.name}"


@given(st.sampled_from(sorted(SKILLS)), st.dictionaries(st.sampled_from(["image", "texts", "seed", "x"]), ANYTHING))
def test_any_map_is_a_request_or_a_record_error(skill: str, fields: dict[str, Any]) -> None:
    for reader in (read_request, read_result):
        try:
            record = reader(skill, fields)
        except RecordError:
            continue
        assert reader(skill, write(record)) == record


@pytest.mark.parametrize(
    ("kind", "fields", "word"),
    [
        (vision.Box, {"left": float("nan"), "top": 0, "right": 0, "bottom": 0}, "left"),
        (vision.Box, {"left": 10**400, "top": 0, "right": 0, "bottom": 0}, "left"),
        (image.ImageRequest, {"prompt": "a", "seed": 10**400}, "seed"),
        (vision.Box, {"left": True, "top": 0, "right": 0, "bottom": 0}, "left"),
        (vision.Box, [], "map"),
        (text.EmbedRequest, {"texts": "one"}, "texts"),
        (text.EmbedRequest, {"texts": ["\ud800"]}, "surrogate"),
        (text.EmbedRequest, {"texts": ["a"] * 2049}, "2049"),
        (text.EmbedRequest, {}, "missing"),
        (image.ImageRequest, {"prompt": "a", "seed": 2**63}, "seed"),
        (image.ImageRequest, {"prompt": "a", "count": 99}, "count"),
        (audio.Sound, {"audio": b"", "sample_rate_hz": 1, "seconds": 0, "media_type": "audio/mp3"}, "media_type"),
    ],
)
def test_the_field_at_fault_is_named(kind: type, fields: Any, word: str) -> None:
    with pytest.raises(RecordError, match=word):
        read(kind, fields)


def test_whole_numbers_are_taken_where_a_number_is_due_and_no_seed_stays_none() -> None:
    assert read(audio.SpeakRequest, {"text": "a", "speed": 2}).speed == 2.0
    assert read(image.ImageRequest, {"prompt": "a", "seed": None}).seed is None
    assert "seed" not in write(image.ImageRequest("a"))
