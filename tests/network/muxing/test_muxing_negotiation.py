"""Choosing a protocol: golden bytes, both machines against each other and against the library's, and any bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.custom_types import TProtocol
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from octonode.network.libp2p.negotiation import (
    HEADER,
    PROPOSALS_MAX,
    TEXT_BYTES_MAX,
    NegotiationError,
    NotSupported,
    Proposal,
    Selection,
    encode,
    propose,
)

GOLDEN_HEADER = bytes.fromhex("13 2f6d756c746973747265616d2f312e302e30 0a")  # 19, "/multistream/1.0.0", line feed
ECHO = bytes.fromhex("0b 2f746573742f6563686f 0a")  # 11, "/test/echo"
OTHER = bytes.fromhex("0c 2f746573742f6f74686572 0a")
NA = bytes.fromhex("03 6e61 0a")
LS = bytes.fromhex("03 6c73 0a")
SPOKEN = ("/test/echo", "/test/other")


def selection(spoken: Sequence[str] = SPOKEN) -> Selection:
    return Selection(lambda protocol: protocol in spoken, lambda: spoken)


class Side:
    """Feeds a machine from what has come, never more than it wants and never more than `step` bytes at a time."""

    def __init__(self, machine: Proposal | Selection, step: int = 10_000) -> None:
        self.machine = machine
        self.step = step
        self.inbox = bytearray()
        self.asked = 0

    def turn(self) -> bytes:
        """Take what is at hand; what to send for it."""
        said = b""
        while self.inbox and self.machine.chosen is None:
            assert self.machine.wanted_bytes >= 1
            size = min(self.machine.wanted_bytes, self.step)
            piece = bytes(self.inbox[:size])
            del self.inbox[: len(piece)]
            self.asked += len(piece)
            said += self.machine.receive(piece)
        return said + (self.machine.greeting() if isinstance(self.machine, Selection) else b"")


def talk(proposal: Proposal, chooser: Selection, steps: tuple[int, int] = (10_000, 10_000)) -> tuple[bytes, bytes]:
    """Everything that the two say to each other, to the end."""
    opener, server = Side(proposal, steps[0]), Side(chooser, steps[1])
    opener_said, server_said = proposal.first, b""
    server.inbox += proposal.first
    while proposal.chosen is None:
        answer = server.turn()
        server_said += answer
        opener.inbox += answer
        more = opener.turn()
        opener_said += more
        server.inbox += more
        assert answer or more or proposal.chosen, "both wait for each other"
    assert not opener.inbox
    assert not server.inbox
    return opener_said, server_said


def test_golden_bytes() -> None:
    assert HEADER == GOLDEN_HEADER
    assert Proposal(["/test/echo"]).first == GOLDEN_HEADER + ECHO
    assert talk(Proposal(["/test/echo"]), selection()) == (GOLDEN_HEADER + ECHO, GOLDEN_HEADER + ECHO)


def test_proposals_go_on_until_one_is_taken() -> None:
    proposal, chooser = Proposal(["/a", "/test/other", "/test/echo"]), selection()
    said = talk(proposal, chooser)
    assert proposal.chosen == chooser.chosen == "/test/other"
    assert said == (GOLDEN_HEADER + bytes.fromhex("03 2f61 0a") + OTHER, GOLDEN_HEADER + NA + OTHER)


def test_none_is_taken() -> None:
    with pytest.raises(NotSupported) as caught:
        talk(Proposal(["/a", "/b"]), selection())
    assert caught.value.code == "UNSUPPORTED"


def test_the_header_goes_alone_to_an_opener_that_waits_for_it() -> None:
    chooser = selection()
    assert chooser.greeting() == b"", "it speaks first"
    assert chooser.receive(GOLDEN_HEADER) == b""
    assert chooser.greeting() == GOLDEN_HEADER
    assert chooser.greeting() == b""
    assert chooser.receive(b"\x03") == b""
    assert chooser.receive(b"/a\n") == NA
    assert Side(chooser).machine.wanted_bytes == 1
    assert [chooser.receive(ECHO[at : at + 1]) for at in range(len(ECHO))][-1] == ECHO


@pytest.mark.parametrize("cut", range(1, len(GOLDEN_HEADER)))
def test_the_header_is_answered_however_it_was_cut(cut: int) -> None:
    """Whoever finds nothing at hand asks for our greeting, which must not be spent before the header is whole."""
    chooser = selection()
    said = chooser.greeting() + chooser.receive(GOLDEN_HEADER[:cut]) + chooser.greeting()
    assert said == b""
    said = chooser.receive(GOLDEN_HEADER[cut:]) + chooser.greeting() + chooser.receive(ECHO[:1])
    assert said + chooser.receive(ECHO[1:]) == GOLDEN_HEADER + ECHO


def test_a_listing() -> None:
    chooser = selection()
    chooser.receive(HEADER)
    assert chooser.receive(LS[:1]) + chooser.receive(LS[1:]) == GOLDEN_HEADER + bytes([26]) + ECHO + OTHER + b"\n"
    assert chooser.chosen is None
    assert chooser.receive(ECHO[:1]) + chooser.receive(ECHO[1:]) == ECHO


def test_a_listing_fits_one_message_whatever_is_spoken() -> None:
    chooser = selection([f"/{number:0200}" for number in range(50)])
    chooser.receive(HEADER)
    chooser.receive(LS[:1])
    answer = chooser.receive(LS[1:])[len(HEADER) :]
    size = answer[0] & 0x7F | answer[1] << 7
    assert size <= TEXT_BYTES_MAX
    assert len(answer) == size + 2


@pytest.mark.parametrize("asked", ["/a", "ls"])
def test_a_peer_does_not_ask_for_ever(asked: str) -> None:
    chooser = selection()
    chooser.receive(HEADER)
    side = Side(chooser)
    side.inbox += PROPOSALS_MAX * encode(asked)
    side.turn()
    side.inbox += encode(asked)
    with pytest.raises(NegotiationError):
        side.turn()
    assert chooser.chosen is None


@pytest.mark.parametrize("steps", [(1, 1), (1, 10_000), (10_000, 1), (2, 3), (7, 5)])
@pytest.mark.parametrize("protocols", [["/test/echo"], ["/a", "/b", "/test/other"], ["/" + "n" * 200, "/test/echo"]])
def test_every_split(steps: tuple[int, int], protocols: list[str]) -> None:
    whole = talk(Proposal(protocols), selection())
    assert talk(Proposal(protocols), selection(), steps) == whole


@pytest.mark.parametrize("first", [b"\x00", b"\x81\x10", b"\x80\x80", b"\xff\xff\xff\xff", b"\x00" * 20, b"\x01\n"])
@pytest.mark.parametrize("who", ["proposal", "selection"])
def test_lengths_that_are_no_lengths(who: str, first: bytes) -> None:
    side = Side(Proposal(["/a"]) if who == "proposal" else selection(), step=1)
    side.inbox += first + bytes(20)
    with pytest.raises(NegotiationError):
        side.turn()


@pytest.mark.parametrize("body", [b"no end of line", b"\xff\xfe\n", b"/multistream/2.0.0\n", b"\n"])
def test_messages_that_are_no_header(body: bytes) -> None:
    for machine in (Proposal(["/a"]), selection()):
        side = Side(machine)
        side.inbox += bytes([len(body)]) + body
        with pytest.raises(NegotiationError):
            side.turn()


def test_an_answer_that_was_not_asked_for() -> None:
    side = Side(Proposal(["/a"]))
    side.inbox += HEADER + encode("/b")
    with pytest.raises(NegotiationError):
        side.turn()


def owed(wire: bytes, ends_with: Iterable[str]) -> int:
    """How many bytes of a wire belong to the negotiation at most: up to the message that ends it."""
    at = 0
    while at < len(wire):
        if wire[at] < 0x80:
            size, start = wire[at], at + 1
        elif at + 1 < len(wire):
            size, start = wire[at] & 0x7F | wire[at + 1] << 7, at + 2
        else:
            return len(wire)
        body = wire[start : start + size]
        at = start + size
        if body[:-1].decode(errors="replace") in ends_with:
            return at
    return len(wire)


texts = st.sampled_from(["/multistream/1.0.0", "/test/echo", "/test/other", "na", "ls", "/x", "", "/" + "y" * 300])
wires = st.one_of(
    st.binary(max_size=120),
    st.lists(st.one_of(texts.map(encode), st.binary(max_size=3)), max_size=8).map(b"".join),
    st.lists(texts.map(encode), max_size=6).map(lambda parts: HEADER + b"".join(parts)),
)


@given(wires, st.integers(1, 30), st.sampled_from(["proposal", "selection"]))
@settings(max_examples=400, deadline=None)
def test_any_bytes_end_in_a_choice_or_a_fault_and_nothing_is_read_over(wire: bytes, step: int, who: str) -> None:
    def run(step: int) -> tuple[str | None, bytes, str, int]:
        machine = Proposal(["/test/other", "/test/echo"]) if who == "proposal" else selection()
        side = Side(machine, step)
        side.inbox += wire + b"what follows belongs to the protocol"
        said, fault = b"", ""
        try:
            said = side.turn()
        except NegotiationError as error:
            fault = type(error).__name__
        if machine.chosen is not None:
            assert machine.chosen in SPOKEN
            assert side.asked <= owed(wire, SPOKEN), "it read what belongs to the protocol"
        return machine.chosen, said, fault, 0 if fault else side.asked

    assert run(step) == run(1) == run(10_000)


# Against the library.


class MemoryPipe:
    """A stream of the library over trio's memory."""

    def __init__(self, stream: trio.StapledStream[Any, Any], step: int) -> None:
        self.stream, self.step = stream, step

    async def read(self, n: int | None = None) -> bytes:
        assert n
        return bytes(await self.stream.receive_some(min(n, self.step)))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)


def pipes(step: int) -> tuple[MemoryPipe, MemoryPipe]:
    one, two = trio.testing.memory_stream_pair()
    return MemoryPipe(one, step), MemoryPipe(two, step)


async def choose(pipe: MemoryPipe, chooser: Selection) -> str:
    while chooser.chosen is None:
        answer = chooser.receive(await pipe.read(chooser.wanted_bytes)) + chooser.greeting()
        if answer:
            await pipe.write(answer)
    return chooser.chosen


@pytest.mark.parametrize("step", [1, 5, 10_000])
async def test_we_propose_to_the_library(step: int) -> None:
    ours, theirs = pipes(step)
    library: Any = Multiselect({TProtocol("/test/echo"): None})
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(library.negotiate, MultiselectCommunicator(theirs))  # type: ignore[arg-type]
            assert await propose(ours, ["/a", "/test/echo"]) == "/test/echo"
            await theirs.write(b"protocol")
            assert await ours.stream.receive_some(100) == b"protocol"


async def test_the_library_takes_none_of_ours() -> None:
    ours, theirs = pipes(10_000)
    library: Any = Multiselect({TProtocol("/test/echo"): None})
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(library.negotiate, MultiselectCommunicator(theirs))  # type: ignore[arg-type]
            with pytest.raises(NotSupported):
                await propose(ours, ["/a", "/b"])
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("step", [1, 5, 10_000])
async def test_the_library_proposes_to_us(step: int) -> None:
    ours, theirs = pipes(step)
    chosen: list[str] = []
    wanted = [TProtocol("/a"), TProtocol("/test/other")]

    async def library() -> None:
        chosen.append(await MultiselectClient().select_one_of(wanted, MultiselectCommunicator(theirs)))  # type: ignore[arg-type]

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(library)
            assert await choose(ours, selection()) == "/test/other"
    assert chosen == ["/test/other"]


async def test_the_library_hears_that_we_take_none() -> None:
    ours, theirs = pipes(10_000)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(choose, ours, selection())
            with pytest.raises(MultiselectClientError):
                await MultiselectClient().select_one_of([TProtocol("/a")], MultiselectCommunicator(theirs))  # type: ignore[arg-type]
            nursery.cancel_scope.cancel()


async def test_the_library_lists_what_we_speak() -> None:
    ours, theirs = pipes(10_000)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(choose, ours, selection())
            listed = await MultiselectClient().query_multistream_command(MultiselectCommunicator(theirs), "ls")  # type: ignore[arg-type]
            nursery.cancel_scope.cancel()
    # It splits the listing at line ends, between which the specification puts a length before each.
    assert [each.lstrip("\x0b\x0c") for each in listed if each.strip("\x0b\x0c")] == list(SPOKEN)
