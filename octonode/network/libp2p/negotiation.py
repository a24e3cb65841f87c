"""Choosing the protocol of a stream: multistream-select 1.0, both sides, as machines without I/O.

A message is `uvarint length | text | "\\n"`. Both sides open with HEADER; the opener then proposes protocols one by
one, and the other side repeats the one it takes or answers `na`
(https://github.com/multiformats/multistream-select). Each machine asks for bytes that surely belong to the negotiation
(`wanted_bytes`), so nothing is read that would have to be put back.

The opener sends header and proposal in one write. Where it knows that the peer takes the protocol, it goes on at once
with what it has to say, and checks the answer before the first byte it reads (`Proposal`, 0-RTT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from octonode.errors import RemoteProtocolError

TEXT_BYTES_MAX = 1024
PROPOSALS_MAX = 64
"""Refused on one stream, listings included, before it is given up."""
REFUSAL = "na"
LISTING = "ls"


class NegotiationError(RemoteProtocolError):
    """The peer does not speak multistream-select, or not to an end."""


class NotSupported(NegotiationError):
    """The peer takes none of the protocols."""

    code = "UNSUPPORTED"


def encode(text: str) -> bytes:
    body = text.encode() + b"\n"
    assert len(body) <= TEXT_BYTES_MAX
    return _uvarint(len(body)) + body


def _uvarint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80, value >> 7])


HEADER_TEXT = "/multistream/1.0.0"
HEADER = encode(HEADER_TEXT)


class _Texts:
    """Messages out of bytes, one at a time. `wanted_bytes` is what the next message needs for sure."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.wanted_bytes = len(HEADER)

    def feed(self, data: bytes) -> str | None:
        """A whole message without its end, or None. Raises NegotiationError."""
        self._data += data
        size, length_bytes = self._length()
        missing = length_bytes + size - len(self._data)
        if missing > 0:
            self.wanted_bytes = missing
            return None
        if missing < 0:
            raise NegotiationError("the peer does not speak multistream-select 1.0")
        body = bytes(self._data[length_bytes:])
        self._data.clear()
        self.wanted_bytes = 1
        if not body.endswith(b"\n"):
            raise NegotiationError("a message of multistream-select does not end its line")
        try:
            return body[:-1].decode()
        except UnicodeDecodeError:
            raise NegotiationError("a message of multistream-select is not text") from None

    def _length(self) -> tuple[int, int]:
        """(bytes of the body, bytes of the length); one more byte is asked for while the length is not whole."""
        data = self._data
        if not data or (data[0] & 0x80 and len(data) == 1):
            return 1, len(data)
        if data[0] < 0x80:
            size, length_bytes = data[0], 1
        elif data[1] < 0x80:
            size, length_bytes = data[0] & 0x7F | data[1] << 7, 2
        else:
            size, length_bytes = TEXT_BYTES_MAX + 1, 2
        if not 1 <= size <= TEXT_BYTES_MAX:
            raise NegotiationError(f"a message of multistream-select of {size} bytes; 1 to {TEXT_BYTES_MAX} are taken")
        return size, length_bytes


class Proposal:
    """The opener's side: proposes `protocols` in order. `first` goes before anything else."""

    def __init__(self, protocols: Sequence[str]) -> None:
        assert protocols
        self.first = HEADER + encode(protocols[0])
        self.chosen: str | None = None
        self._protocols = list(protocols)
        self._texts = _Texts()
        self._has_header = False

    @property
    def wanted_bytes(self) -> int:
        return self._texts.wanted_bytes

    def receive(self, data: bytes) -> bytes:
        """What to send in return; `chosen` is set at the end. Raises NotSupported or NegotiationError."""
        text = self._texts.feed(data)
        if text is None:
            return b""
        if text == HEADER_TEXT and not self._has_header:
            self._has_header = True
            return b""
        if not self._has_header:
            raise NegotiationError("the peer does not speak multistream-select 1.0")
        if text == self._protocols[0]:
            self.chosen = text
            return b""
        if text != REFUSAL:
            raise NegotiationError("the peer answers what was not proposed")
        del self._protocols[0]
        if not self._protocols:
            raise NotSupported("the peer takes none of the protocols")
        return encode(self._protocols[0])


class Selection:
    """The other side: takes the first proposal that `supports` says yes to."""

    def __init__(self, supports: Callable[[str], bool], listing: Callable[[], Iterable[str]]) -> None:
        self.chosen: str | None = None
        self._supports = supports
        self._listing = listing
        self._texts = _Texts()
        self._has_header = False
        self._refused = 0
        self._unsaid = HEADER
        """Our header goes with the first answer; alone if the opener waits for it."""

    @property
    def wanted_bytes(self) -> int:
        return self._texts.wanted_bytes

    def receive(self, data: bytes) -> bytes:
        """What to send in return; `chosen` is set at the end. Raises NegotiationError."""
        text = self._texts.feed(data)
        if text is None:
            return b""
        if not self._has_header:
            if text != HEADER_TEXT:
                raise NegotiationError("the peer does not speak multistream-select 1.0")
            self._has_header = True
            return b""
        if text != LISTING and self._supports(text):
            self.chosen = text
            return self.greeting() + encode(text)
        self._refused += 1
        if self._refused > PROPOSALS_MAX:
            raise NegotiationError(f"more than {PROPOSALS_MAX} proposals on one stream")
        return self.greeting() + (_encode_listing(self._listing()) if text == LISTING else encode(REFUSAL))

    def greeting(self) -> bytes:
        """Our header if it has not gone yet, for an opener that sends its own and waits."""
        if not self._has_header:
            return b""
        unsaid, self._unsaid = self._unsaid, b""
        return unsaid


def _encode_listing(protocols: Iterable[str]) -> bytes:
    """As many as fit one message."""
    body = b""
    for protocol in protocols:
        if len(body) + len(encode(protocol)) < TEXT_BYTES_MAX:
            body += encode(protocol)
    return _uvarint(len(body) + 1) + body + b"\n"


class Pipe(Protocol):
    """A stream to propose on: reads at most `n` bytes at a time."""

    async def read(self, n: int) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


async def propose(pipe: Pipe, protocols: Sequence[str]) -> str:
    """The protocol that the peer takes. Raises NotSupported, NegotiationError, and what the pipe raises."""
    proposal = Proposal(protocols)
    await pipe.write(proposal.first)
    return await conclude(pipe, proposal)


async def conclude(pipe: Pipe, proposal: Proposal) -> str:
    """The same, where `proposal.first` has gone before."""
    while proposal.chosen is None:
        if answer := proposal.receive(await pipe.read(proposal.wanted_bytes)):
            await pipe.write(answer)
    return proposal.chosen
