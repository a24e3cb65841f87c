"""The transport phase of Noise, for connections on which the library's handshake is done.

The library reads each message by two small reads of the socket under locks, and writes each under a lock of its own.
Here one read takes what the socket has, every whole message in it is decrypted at hand, and one send carries what is
to be sent. A message is `length 16, big endian | ciphertext`, at most 65,535 bytes
(https://github.com/libp2p/specs/blob/master/noise/README.md).

Whoever writes hands over whole messages: `send_now` never waits, and what the kernel does not take at once is kept and
goes before anything else. So no cancellation can come between encrypting and sending, where the nonces would part ways.
"""

from __future__ import annotations

import os
from typing import Any

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.security.secure_session import SecureSession

LENGTH_BYTES = 2
TAG_BYTES = 16
CIPHERTEXT_BYTES_MAX = 65_535
PLAINTEXT_BYTES_MAX = CIPHERTEXT_BYTES_MAX - TAG_BYTES
NONCES_MAX = 2**64 - 1
"""By the Noise specification; the connection ends before."""
PIECES_MAX = 1024
"""In one call of the kernel, IOV_MAX of Linux."""
BUFFER_FIRST_BYTES = 8 * 1024
BUFFER_BYTES_MAX = 256 * 1024
"""The receive buffer of a connection grows when a read fills it; it holds a whole message at least once one comes."""


class Cipher:
    """One direction: a key, and a counter that is the nonce."""

    __slots__ = ("_aead", "_count")

    def __init__(self, state: Any) -> None:
        """`state` is a CipherState of the noiseprotocol library, after the handshake."""
        self._aead = ChaCha20Poly1305(state.k)
        self._count: int = state.n

    def _nonce(self) -> bytes:
        count = self._count
        if count >= NONCES_MAX:
            raise ConnectionClosedError("this connection has used all its nonces")
        self._count = count + 1
        return b"\0\0\0\0" + count.to_bytes(8, "little")

    def encrypt(self, plaintext: bytes | memoryview) -> bytes:
        sealed: bytes = self._aead.encrypt(self._nonce(), plaintext, None)
        return sealed

    def decrypt(self, ciphertext: memoryview) -> bytes:
        """Raises ConnectionClosedError for what the peer did not send."""
        try:
            plain: bytes = self._aead.decrypt(self._nonce(), ciphertext, None)
        except InvalidTag:
            raise ConnectionClosedError("bytes came that the peer has not sent") from None
        return plain


class NoiseChannel(SecureSession):  # type: ignore[misc]
    """Replaces a `SecureSession` of the library. One task reads and one writes at a time."""

    def __init__(self, session: Any) -> None:
        """`session` is the library's, fresh from the handshake; nothing was sent or read through it since."""
        super().__init__(
            local_peer=session.local_peer,
            local_private_key=session.local_private_key,
            remote_peer=session.remote_peer,
            remote_permanent_pubkey=session.remote_permanent_pubkey,
            is_initiator=session.is_initiator,
            conn=session.conn,
        )
        states = session.conn.noise_state.noise_protocol
        self._encrypt, self._decrypt = Cipher(states.cipher_state_encrypt), Cipher(states.cipher_state_decrypt)
        self._raw = session.conn.read_writer.read_write_closer
        self._socket = _socket_under(self._raw)
        self._buffer = bytearray(BUFFER_FIRST_BYTES)
        self._start = self._end = 0
        self._is_drained = False
        """The last read of the socket took all that there was."""
        self._plain: list[bytes] = []
        """Decrypted and not yet given, for `read`, which takes less than a message."""
        self._tail = b""
        """Encrypted and not yet taken by the kernel."""
        self.sent_bytes = 0
        """What the kernel has taken, sealed; shows whether the peer takes anything."""

    @property
    def has_tail(self) -> bool:
        return bool(self._tail)

    # Sending.

    def seal(self, plaintext: bytes) -> bytes:
        """The messages that carry `plaintext`; they must be sent in this order."""
        return b"".join(self._seal(plaintext))

    def _seal(self, plaintext: bytes) -> list[bytes]:
        """The same in pieces."""
        pieces: list[bytes] = []
        for start in range(0, len(plaintext), PLAINTEXT_BYTES_MAX):
            whole = len(plaintext) <= PLAINTEXT_BYTES_MAX
            part = plaintext if whole else memoryview(plaintext)[start : start + PLAINTEXT_BYTES_MAX]
            sealed = self._encrypt.encrypt(part)
            pieces += (len(sealed).to_bytes(LENGTH_BYTES, "big"), sealed)
        return pieces

    def send_now(self, plaintext: bytes) -> bool:
        """Give what the kernel takes without waiting; False when something is left for `flush`.

        Raises OSError when the connection is broken.
        """
        sealed = self.seal(plaintext)
        if self._socket is None or self._tail:
            self._tail += sealed
            return False
        try:
            sent = os.write(self._socket.fileno(), sealed)
        except BlockingIOError:
            sent = 0
        self.sent_bytes += sent
        self._tail = sealed[sent:] if sent < len(sealed) else b""
        return not self._tail

    async def flush(self, *plaintexts: bytes) -> None:
        """Send what is left, then these. Cancelled in here the connection is of no more use: close it."""
        pieces: list[bytes | memoryview] = [self._tail] if self._tail else []
        self._tail = b""
        for plaintext in plaintexts:
            pieces += self._seal(plaintext)
        if self._socket is None:
            if pieces:
                await self._raw.write(b"".join(pieces))
                self.sent_bytes += sum(map(len, pieces))
            return
        while pieces:
            try:
                sent = os.writev(self._socket.fileno(), pieces[:PIECES_MAX])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
                continue
            self.sent_bytes += sent
            pieces = _without(pieces, sent)
        await trio.lowlevel.checkpoint()

    async def write(self, data: bytes) -> None:
        """As the library calls it, before there is a muxer."""
        await self.flush(data)

    async def close(self) -> None:
        """Close the connection below. What was received and not given is dropped."""
        # A connection that is over is part of cycles, which Python collects late; its buffer is most of what it holds.
        self._buffer = bytearray()
        self._start = self._end = 0
        self._tail = b""
        await super().close()

    # Receiving.

    async def receive(self) -> list[bytes]:
        """The plaintext of every whole message at hand, at least one; empty at the end of the connection.

        Raises ConnectionClosedError for an end within a message or for bytes that do not decrypt, OSError and trio's
        BrokenResourceError or ClosedResourceError as the socket does.
        """
        while not self._plain:
            if not await self._fill():
                if self._end > self._start:
                    raise ConnectionClosedError("the connection ended within a message")
                return []
            self._open_messages()
        messages, self._plain = self._plain, []
        return messages

    async def _fill(self) -> int:
        """One read of the socket; 0 at its end."""
        if self._socket is None:
            data = await self._raw.read(len(self._buffer) - self._end) or b""
            self._buffer[self._end : self._end + len(data)] = data
            size = len(data)
        else:
            size = await self._read_socket(self._socket)
        self._end += size
        return size

    async def _read_socket(self, sock: Any) -> int:
        """As trio's `recv_into`, without its first try where the last read left nothing in the kernel."""
        while True:
            if self._is_drained:
                await trio.lowlevel.wait_readable(sock)
            else:
                await trio.lowlevel.checkpoint()
            with memoryview(self._buffer) as whole, whole[self._end :] as free:
                try:
                    size = os.readv(sock.fileno(), [free])
                except BlockingIOError:
                    self._is_drained = True
                    continue
                self._is_drained = size < len(free)
                return size

    def _open_messages(self) -> None:
        """Decrypt what is whole, and make room for what is to come."""
        buffer, start, end = self._buffer, self._start, self._end
        with memoryview(buffer) as view:
            while end - start >= LENGTH_BYTES:
                size = (buffer[start] << 8) | buffer[start + 1]
                if end - start - LENGTH_BYTES < size:
                    break
                first = start + LENGTH_BYTES
                with view[first : first + size] as ciphertext:
                    if plain := self._decrypt.decrypt(ciphertext):
                        self._plain.append(plain)
                start = first + size
        if end == len(buffer) < BUFFER_BYTES_MAX:
            self._buffer = bytearray(min(4 * len(buffer), BUFFER_BYTES_MAX))
            self._buffer[: end - start] = buffer[start:end]
        elif start:
            buffer[: end - start] = buffer[start:end]
        self._start, self._end = 0, end - start

    async def read(self, n: int | None = None) -> bytes:
        """As the library calls it, before there is a muxer: exactly `n` bytes, fewer only at the end of the connection;
        without `n` one message."""
        if n == 0:
            return b""
        data = b""
        while not data or (n is not None and len(data) < n):
            messages = await self.receive()
            if not messages:
                break
            data += b"".join(messages)
        if not data:
            raise ConnectionClosedError("the connection is closed")
        if n is not None and len(data) > n:
            self._plain.insert(0, data[n:])
            data = data[:n]
        return data


def _without(pieces: list[bytes | memoryview], sent_bytes: int) -> list[bytes | memoryview]:
    """What is left of `pieces` once so many of their bytes have gone."""
    for index, piece in enumerate(pieces):
        if sent_bytes < len(piece):
            return [memoryview(piece)[sent_bytes:], *pieces[index + 1 :]]
        sent_bytes -= len(piece)
    return []


def _socket_under(raw: Any) -> Any:
    """trio's socket below a raw connection over TCP, else None: websockets and relays are read by their own `read`."""
    stream = getattr(raw, "stream", None)
    if isinstance(stream, TrioTCPStream) and isinstance(stream.stream, trio.SocketStream):
        return stream.stream.socket
    return None
