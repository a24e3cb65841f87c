"""What strangers announce, as the faces list it."""

from __future__ import annotations

from octonode.identity import NodeKey
from octonode.node.models import NETWORK_MODELS_MAX, most_announced
from octonode.node.view import plain
from octonode.protocol.announcement import Announcement, Holding, Serving, sign_announcement


def announcement(number: int, *roots: str, holding: tuple[str, ...] = ()) -> Announcement:
    peer_id = NodeKey(number.to_bytes(32, "big")).peer_id
    serving = tuple(Serving(root) for root in roots)
    return Announcement(peer_id, 1, 0, 1, serving=serving, holding=tuple(Holding(root) for root in holding))


def test_invented_models_do_not_push_out_what_several_peers_have() -> None:
    """128 invented roots an announcement, from as many identities as an attacker likes."""
    flood = [announcement(number, *(f"{number}-{each}" for each in range(64))) for number in range(100, 200)]
    true = [announcement(1, "both"), announcement(2, holding=("both",)), announcement(3, "ours", holding=("ours",))]
    listed = most_announced([*flood, *true], without=("ours",))
    assert listed[0] == "both"
    assert "ours" not in listed
    assert len(listed) == NETWORK_MODELS_MAX


def test_one_peer_counts_once_for_a_model() -> None:
    loud = announcement(1, "loud", "loud", "loud", holding=("loud",))
    assert most_announced([loud, announcement(2, "true"), announcement(3, "true")], ()) == ["true", "loud"]


def test_what_a_model_file_says_does_not_keep_us_from_announcing() -> None:
    """A worker reports what stands in a stranger's file; an announcement that cannot be signed says nothing at all."""
    key = NodeKey(bytes(32))
    for text in ("Q4_K_M", "x" * 5000, "\x1b[2J\n", "\N{SNOWMAN}" * 100):
        serving = (Serving("root", quantization=plain(text)),)
        assert sign_announcement(key, Announcement(key.peer_id, 1, 0, 1, serving=serving))
    assert plain("Q4_K_M") == "Q4_K_M"
