"""Settings of outside services that cannot be are told at the start, not at the first fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from octonode import config
from octonode.errors import ConfigError
from octonode.identity import NodeKey
from octonode.node.composition import build
from octonode.node.events import Events


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("gateways", ["ipfs.example"], "models.gateways"),
        ("kubo_rpc", "127.0.0.1:5001", "models.kubo_rpc"),
        ("hub_endpoint", "huggingface.co", "models.hub_endpoint"),
    ],
)
async def test_what_is_no_url_keeps_the_node_from_starting(
    tmp_path: Path, setting: str, value: Any, words: str
) -> None:
    found = config.load(home=tmp_path, environ={}, flags={"models": {setting: value}})
    with pytest.raises(ConfigError, match=words):
        build(found, NodeKey(b"n" * 32), events=Events(), stopping=trio.Event())
