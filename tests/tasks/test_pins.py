"""Which pins are taken, what they count for, and when they end: the rules alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.ids import PeerId
from octonode.protocol.pins import PINS_PER_PEER_MAX, PinRequest
from octonode.tasks import pins
from octonode.tasks.pins import DAY_MS, Pin, PinBook, Quotas, Released

OWNER, ANNA, BERT = (PeerId(name) for name in ("owner", "anna", "bert"))
NOW = 1_800_000_000_000
PLENTY = 10**15


def book(*kept: Pin, released: tuple[Released, ...] = (), **quotas: int) -> PinBook:
    return PinBook(Quotas(**quotas), OWNER, kept, released)


def pin(root: str, asker: PeerId = ANNA, size_bytes: int = 10, until_ms: int = 0, brought: bool = False) -> Pin:
    return Pin(root, asker, until_ms, NOW, size_bytes, brought)


def code(found: PinBook, root: str, size_bytes: int, asker: PeerId = ANNA, *, until_ms: int = 0, disk: int = PLENTY,
         have: int = 0) -> str:  # fmt: skip
    request = PinRequest("pin", root, until_ms, size_bytes)
    refusal = found.decide(request, asker, have_bytes=have, disk_free_bytes=disk, now_ms=NOW)
    return refusal.code if refusal else ""


def test_the_share_of_one_asker() -> None:
    found = book(pin("a", size_bytes=60), pin("b", BERT, 90), bytes_per_peer_max=100)
    assert code(found, "c", 40) == ""
    assert code(found, "c", 41) == "DISK_FULL"
    assert code(found, "c", 101) == "TOO_LARGE"
    assert code(found, "a", 100) == ""  # the same model again counts once
    assert code(found, "c", 41, BERT) == "DISK_FULL"
    assert code(found, "c", 1000, OWNER) == ""


def test_the_share_of_all() -> None:
    found = book(pin("a", size_bytes=60), pin("a", BERT, 60), pin("mine", OWNER, 1000), bytes_max=100)
    assert found.bytes_all() == 60  # each model once, the owner's not
    assert code(found, "c", 40, BERT) == ""
    assert code(found, "c", 41, BERT) == "DISK_FULL"
    assert code(found, "c", 101, BERT) == "TOO_LARGE"
    assert code(found, "c", 41, OWNER) == ""


def test_the_disk_and_what_may_be_removed_for_it() -> None:
    found = book(released=(Released("old", 50, NOW),))
    assert code(found, "c", 100, disk=50) == ""
    assert code(found, "c", 101, disk=50) == "DISK_FULL"
    assert code(found, "c", 101, disk=50, have=1) == ""
    assert code(found, "old", 60, disk=5, have=50) == "DISK_FULL"  # its own bytes make no room for itself


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code(book(), "c", 1, until_ms=NOW) == "EXPIRED"
    assert code(book(), "c", 1, until_ms=NOW + 1) == ""
    found = book(days_max=30)
    for asked, granted in ((NOW + 5, NOW + 5), (0, NOW + 30 * DAY_MS), (NOW + 40 * DAY_MS, NOW + 30 * DAY_MS)):
        given = found.granted(PinRequest("pin", "c", asked), ANNA, brought=True, now_ms=NOW)
        assert (given.until_ms, given.since_ms, given.brought) == (granted, NOW, True)
    assert found.granted(PinRequest("pin", "c"), OWNER, brought=False, now_ms=NOW).until_ms == 0
    assert book(days_max=0).granted(PinRequest("pin", "c"), ANNA, brought=False, now_ms=NOW).until_ms == 0
    found = book(pin("a", until_ms=NOW + 9), pin("b", until_ms=NOW + 5), pin("c"))
    assert found.next_end_ms() == NOW + 5
    assert [each.root for each in found.ended(NOW + 5)] == ["b"]
    assert book(pin("c")).next_end_ms() == 0


def test_the_same_pin_again_changes_its_end_alone() -> None:
    found = book(pin("a", until_ms=NOW + 9, size_bytes=7, brought=True))
    again = found.granted(PinRequest("pin", "a", NOW + 99, 12345), ANNA, brought=False, now_ms=NOW + 3)
    assert again == pin("a", until_ms=NOW + 99, size_bytes=7, brought=True)
    other = found.granted(PinRequest("pin", "a", NOW + 99), BERT, brought=False, now_ms=NOW + 3)
    assert (other.size_bytes, other.brought) == (7, True)  # what is known of the model


def test_a_released_model_that_is_pinned_again_goes_with_its_pins_again() -> None:
    found = book(released=(Released("a", 5, NOW),))
    again = found.granted(PinRequest("pin", "a", 0, 5), ANNA, brought=False, now_ms=NOW)
    assert again.brought
    found.put(again)
    assert found.released == {}


def test_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    found = book(*(pin(str(number), size_bytes=0) for number in range(PINS_PER_PEER_MAX)))
    assert code(found, "one more", 0) == "OVERLOADED"
    assert code(found, "0", 0) == ""
    assert code(found, "one more", 0, BERT) == ""
    monkeypatch.setattr(pins, "PINS_MAX", PINS_PER_PEER_MAX)
    assert code(found, "one more", 0, BERT) == "OVERLOADED"


def test_room() -> None:
    found = book(pin("a", size_bytes=60), pin("b", BERT, 10), released=(Released("old", 5, NOW),), bytes_max=100)
    room = found.room(ANNA, 1000)
    assert (room.total_bytes, room.used_bytes, room.free_bytes, room.peer_bytes) == (100, 70, 30, 60)
    assert found.room(ANNA, 7).free_bytes == 12
    found = book(pin("a", size_bytes=60), bytes_per_peer_max=80)
    room = found.room(ANNA, 40)
    assert (room.total_bytes, room.free_bytes, room.peer_bytes_max) == (100, 40, 80)


ASKS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([OWNER, ANNA, BERT]), st.integers(0, 60), st.booleans()),
    max_size=40,
)


@given(ASKS)
def test_shares_hold_whatever_is_asked_in_whatever_order(asks: list[tuple[str, PeerId, int, bool]]) -> None:
    """Models have one size each; every taken pin is within both shares, and unpinning gives the bytes back."""
    found, sizes = book(bytes_max=100, bytes_per_peer_max=70), dict[str, int]()
    for root, asker, size, undo in asks:
        request = PinRequest("pin", root, 0, sizes.setdefault(root, size))
        if undo:
            found.drop(root, asker)
        elif found.decide(request, asker, have_bytes=0, disk_free_bytes=PLENTY, now_ms=NOW) is None:
            found.put(found.granted(request, asker, brought=True, now_ms=NOW))
        assert found.bytes_all() <= 100
        assert max(found.bytes_of(ANNA), found.bytes_of(BERT)) <= 70
    for each in found.all():
        found.drop(each.root, each.asker)
    assert (found.bytes_all(), len(found), found.roots()) == (0, 0, ())
