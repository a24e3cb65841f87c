"""`octonode models gc` and `verify` on a node that is played: what they ask, show, and end with."""

from __future__ import annotations

import pytest

from octonode.api.schema import ModelFacts
from octonode.cli.models_cache import ago, kept_lines, parse_size
from octonode.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("5GB", 5 * 10**9),
        ("500 MiB", 500 * 2**20),
        ("1.5k", 1500),
        ("7", 7),
        ("2tb", 2 * 10**12),
        (" 1 GiB ", 2**30),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "lots", "-5GB", "5 XB", "GB", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="write for example 5GB"):
        parse_size(text)


def test_how_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octonode.cli.models_cache.time.time", lambda: 10 * 86400.0)
    day_ms = 86400_000
    assert ago(0) == "-"
    assert ago(7 * day_ms) == "3 d ago"
    assert ago(10 * day_ms - 7200_000) == "2 h ago"
    assert ago(10 * day_ms - 120_000) == "2 min ago"
    assert ago(10 * day_ms + 5) == "just now", "clocks differ"


def test_how_a_model_is_kept() -> None:
    assert kept_lines(ModelFacts("cid:x", "x")) == []
    lines = kept_lines(ModelFacts("us/x", "x", last_used_at_ms=1, pinned=True, damaged_blocks=2))
    assert lines[0].endswith(", pinned")
    assert "2 blocks damaged: octonode models verify us/x --repair" in lines[1]
