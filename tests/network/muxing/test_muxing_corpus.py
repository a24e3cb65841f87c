"""The fuzzer's corpus runs clean, and the fuzzer finds what is put there to be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from octonode.network.libp2p.muxing.frames import MuxerError
from octonode.network.libp2p.muxing.outbox import Outbox
from octonode.network.libp2p.muxing.session import Session
from octonode.network.libp2p.muxing.streams import YamuxStream
from octonode.network.libp2p.negotiation import Selection
from scripts import fuzz_muxer, fuzz_targets

CORPUS = Path(__file__).parent / "corpus"


def campaign(tmp_path: Path, executions: int) -> fuzz_muxer.Fuzzer:
    fuzzer = fuzz_muxer.Fuzzer(1, fuzz_muxer.load(CORPUS))
    while fuzzer.executions < executions and not fuzzer.crashes:
        fuzzer.execute(fuzzer.next_input())
    return fuzzer


def essential(inputs: list[bytes]) -> set[fuzz_targets.Feature]:
    features = set[fuzz_targets.Feature]().union(*map(fuzz_targets.run, inputs))
    return {feature for feature in features if feature[0] != fuzz_targets.SHAPE}


def test_the_corpus_is_small() -> None:
    inputs = fuzz_muxer.load(CORPUS)
    assert 20 < len(inputs) < 60
    assert sum(map(len, inputs)) < 64 * 1024


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_an_input_of_the_corpus(path: Path) -> None:
    data = path.read_bytes()
    assert fuzz_targets.run(data)
    # The same steps under every other setting.
    for settings in range(16):
        fuzz_targets.run(bytes([settings]) + data[1:])


def test_the_corpus_reaches_most_of_what_there_is() -> None:
    features = essential(fuzz_muxer.load(CORPUS))
    kinds = {feature[1] for feature in features if feature[0] == "fault"}
    assert len(kinds) == 7, "a fault of the peer that no input of the corpus makes"
    assert {"Pong", "WentAway", "changed", "refused", "negotiation"} <= {feature[0] for feature in features}


def test_a_short_campaign_finds_nothing(tmp_path: Path) -> None:
    assert campaign(tmp_path, 2500).crashes == {}


def break_bookkeeping(patch: pytest.MonkeyPatch) -> None:
    def take(self: Session, stream: YamuxStream, size_max: int, now: float) -> bytes:
        data = bytes(stream.received[:size_max])
        del stream.received[:size_max]
        return data

    patch.setattr(Session, "take", take)


def break_limits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "_reset_fullest", lambda self: None)


def break_bounds_of_control(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "check_room", lambda self: None)


def break_withdrawal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "withdraw", lambda self, stream: None)


def break_faults(patch: pytest.MonkeyPatch) -> None:
    def receive(self: Session, data: bytes, now: float) -> list[object]:
        try:
            return list(original(self, data, now))
        except MuxerError as fault:
            raise KeyError("of another kind") from fault

    original = Session.receive
    patch.setattr(Session, "receive", receive)


def break_splits(patch: pytest.MonkeyPatch) -> None:
    def greeting(self: Selection) -> bytes:
        unsaid, self._unsaid = self._unsaid, b""
        return unsaid if self._has_header else b""

    patch.setattr(Selection, "greeting", greeting)


@pytest.mark.parametrize(
    "fault",
    [break_bookkeeping, break_limits, break_bounds_of_control, break_withdrawal, break_faults, break_splits],
)
def test_the_fuzzer_can_find(fault: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fault(monkeypatch)  # type: ignore[operator]
    fuzzer = campaign(tmp_path, 5000)
    assert len(fuzzer.crashes) >= 1
    saved = fuzz_muxer.save(tmp_path / "crashes", next(iter(fuzzer.crashes.values())))
    with pytest.raises((AssertionError, KeyError)):
        fuzz_targets.run(saved.read_bytes())


def test_any_bytes_are_an_input() -> None:
    for data in (b"", b"\0", b"\xff", bytes(range(256)), b"\4P\xff\xff", b"\4D\1\1"):
        fuzz_targets.run(data)


def test_what_reaches_something_new_is_distilled(tmp_path: Path) -> None:
    inputs = [*fuzz_muxer.SEEDS, *fuzz_muxer.load(CORPUS)[:20]]
    distilled = fuzz_muxer.distil([], [*inputs, *inputs])
    assert len(distilled) <= len(inputs)
    assert essential(distilled) == essential(inputs)
    assert fuzz_muxer.distil(inputs, inputs) == inputs
