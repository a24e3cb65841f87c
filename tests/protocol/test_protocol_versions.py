from __future__ import annotations

import pytest

from octonode.protocol.versions import SUPPORTED, ProtocolId, choose, parse_protocol_id


def test_our_ids_parse_and_come_back() -> None:
    for text in SUPPORTED:
        parsed = parse_protocol_id(text)
        assert parsed is not None
        assert parsed.text == text
        assert parsed.understands(parsed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ipfs/kad/1.0.0",
        "/cipherocto/agent/1.0",
        "/cipherocto/agent/1.0.0/",
        "/cipherocto/agent/01.0.0",
        "/cipherocto/agent/1.0.0\n",
        "/cipherocto/Agent/1.0.0",
        "/cipherocto/agent/1.0.x",
        "/cipherocto/agent/١.0.0",
        "/cipherocto/agent/999999.0.0",
    ],
)
def test_what_is_not_an_id_of_ours(text: str) -> None:
    assert parse_protocol_id(text) is None


def test_the_major_number_decides() -> None:
    ours = ProtocolId("agent", 1, 0, 0)
    assert ours.understands(ProtocolId("agent", 1, 7, 3))
    assert not ours.understands(ProtocolId("agent", 2, 0, 0))
    assert not ours.understands(ProtocolId("hello", 1, 0, 0))


def test_the_first_of_ours_that_they_understand_is_chosen() -> None:
    ours = ["/cipherocto/agent/2.0.0", "/cipherocto/agent/1.1.0"]
    assert choose(ours, ["/x", "/cipherocto/agent/1.0.0"]) == "/cipherocto/agent/1.1.0"
    assert choose(ours, ["/cipherocto/agent/1.0.0", "/cipherocto/agent/2.9.9"]) == "/cipherocto/agent/2.0.0"
    assert choose(ours, ["/cipherocto/agent/3.0.0", "/cipherocto/hello/1.0.0"]) is None
