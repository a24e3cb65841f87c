from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import RemoteProtocolError
from octonode.identity import NodeKey
from octonode.ids import MessageId, PeerId
from octonode.protocol.limits import Limits
from octonode.protocol.messages import Header
from octonode.protocol.replay import ReplayWindow, Verdict

SMALL = Limits(replay_peers_max=3, replay_messages_per_peer_max=4)
PEER = NodeKey(b"a" * 32).peer_id


def header(number: int, *, sender: PeerId = PEER, sent_at_ms: int = 100, expires_at_ms: int = 1000) -> Header:
    id = MessageId(number.to_bytes(16, "big"))
    return Header("TASK_REQUEST", id, b"", id, sender, sender, 0, sent_at_ms, expires_at_ms, bytes(32), 0)  # type: ignore[arg-type]


def refused(window: ReplayWindow, *arguments: Any) -> bool:
    with pytest.raises(RemoteProtocolError) as caught:
        window.admit(*arguments)
    assert caught.value.code == "REPLAY"
    return True


def test_same_bytes_attach_again_and_other_bytes_are_refused() -> None:
    window = ReplayWindow(SMALL)
    assert window.admit(header(1), b"bytes", 200) is Verdict.NEW
    assert window.admit(header(1), b"bytes", 201) is Verdict.AGAIN
    assert refused(window, header(1), b"other", 202)
    assert window.admit(header(1), b"bytes", 203) is Verdict.AGAIN


def test_ids_are_each_senders_own() -> None:
    window = ReplayWindow(SMALL)
    other = NodeKey(b"b" * 32).peer_id
    assert window.admit(header(1), b"bytes", 200) is Verdict.NEW
    assert window.admit(header(1, sender=other), b"other", 200) is Verdict.NEW


def test_an_id_is_free_again_after_its_expiry() -> None:
    window = ReplayWindow(SMALL)
    window.admit(header(1, expires_at_ms=300), b"bytes", 200)
    assert window.admit(header(1, sent_at_ms=300), b"other", 300) is Verdict.NEW


def test_at_the_bound_the_oldest_is_forgotten_and_still_cannot_run_twice() -> None:
    window = ReplayWindow(SMALL)
    for number in range(5):
        window.admit(header(number, sent_at_ms=100 + number), b"bytes", 200)
    assert window.messages(PEER) == 4
    assert refused(window, header(0, sent_at_ms=100), b"bytes", 201)
    assert refused(window, header(9, sent_at_ms=100), b"bytes", 201)
    assert window.admit(header(9, sent_at_ms=105), b"bytes", 201) is Verdict.NEW


def test_expired_requests_make_room_without_a_floor() -> None:
    window = ReplayWindow(SMALL)
    for number in range(4):
        window.admit(header(number, expires_at_ms=250), b"bytes", 200)
    assert window.admit(header(9, sent_at_ms=100), b"bytes", 300) is Verdict.NEW
    assert window.messages(PEER) == 1


def test_the_floor_never_sinks() -> None:
    window = ReplayWindow(SMALL)
    for number, sent_at_ms in enumerate((150, 100, 151, 152, 153, 154)):
        window.admit(header(number, sent_at_ms=sent_at_ms), b"bytes", 200)
    assert refused(window, header(0, sent_at_ms=150), b"bytes", 201)


def test_an_id_used_again_after_its_expiry_counts_as_young() -> None:
    window = ReplayWindow(SMALL)
    window.admit(header(0, expires_at_ms=5000), b"bytes", 100)
    window.admit(header(1, expires_at_ms=250), b"bytes", 200)
    window.admit(header(2, sent_at_ms=101), b"bytes", 200)
    window.admit(header(1, sent_at_ms=300), b"other", 300)
    window.admit(header(3, sent_at_ms=301), b"bytes", 301)
    window.admit(header(4, sent_at_ms=302), b"bytes", 302)
    window.admit(header(5, sent_at_ms=303), b"bytes", 303)
    assert window.admit(header(1, sent_at_ms=300), b"other", 304) is Verdict.AGAIN


def test_at_the_bound_of_peers_the_quietest_is_forgotten() -> None:
    window = ReplayWindow(SMALL)
    peers = [NodeKey(bytes([number]) * 32).peer_id for number in range(4)]
    for peer in peers[:3]:
        window.admit(header(1, sender=peer), b"bytes", 200)
    window.admit(header(2, sender=peers[0]), b"bytes", 201)
    window.admit(header(1, sender=peers[3]), b"bytes", 202)
    assert window.peers == 3
    assert [window.messages(peer) for peer in peers] == [2, 0, 1, 1]
    window.forget(peers[0])
    assert window.messages(peers[0]) == 0


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(1, 300), st.integers(0, 50)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_nothing_runs_twice_within_its_life_and_memory_is_bounded(asked: list[tuple[int, int, int, int]]) -> None:
    """Against a model that remembers everything: whatever the order, sizes and times, NEW comes once per live id."""
    window, live, now_ms = ReplayWindow(SMALL), {}, 1000
    for id, bytes_number, life_ms, pause_ms in asked:
        now_ms += pause_ms
        request = header(id, sent_at_ms=now_ms - 20, expires_at_ms=now_ms + life_ms)
        known = live.get(id)
        if known is not None and known[1] > now_ms:
            request = dataclasses.replace(request, sent_at_ms=known[2], expires_at_ms=known[1])
        try:
            verdict = window.admit(request, bytes([bytes_number]), now_ms)
        except RemoteProtocolError:
            continue
        if verdict is Verdict.NEW:
            assert known is None or known[1] <= now_ms
            live[id] = (bytes_number, request.expires_at_ms, request.sent_at_ms)
        else:
            assert known is not None
            assert known[0] == bytes_number
        assert window.messages(PEER) <= 4
