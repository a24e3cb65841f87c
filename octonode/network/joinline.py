"""The join line: all that a friend must paste to reach a node and to be let in. Pure. Spec: protocols/join.md.

`octonode:1` + base64url (no padding) of `body + sha256(body)[:4]`; the body is a msgpack map with `p`, the 32 bytes of
the node's public key, `a`, its addresses without the /p2p part, and `t`, 32 bytes of access token or none.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, replace

from octonode.errors import OctonodeError, RemoteProtocolError
from octonode.ids import PeerId, peer_id_from_public_key, public_key_from_peer_id
from octonode.network.addresses import AddressError, parse, parse_peer
from octonode.protocol import codec, fields
from octonode.protocol.limits import DEFAULT_LIMITS

PREFIX = "octonode:"
VERSION = "1"
LINE_CHARACTERS_MAX = 2048
ADDRESSES_MAX = 8
TOKEN_BYTES = 32
_CHECK_BYTES = 4


class JoinLineError(OctonodeError, ValueError):
    """The text is not a join line."""

    code = "BAD_REQUEST"


@dataclass(frozen=True, slots=True)
class JoinLine:
    peer_id: PeerId
    addresses: tuple[str, ...]
    """Multiaddrs; all that were read from a line end in /p2p/<peer_id>."""
    token: str = ""
    """64 hex digits, or empty where the node lets everybody in or none by token."""


def encode(line: JoinLine) -> str:
    """The line as text, without spaces or characters that a shell would touch. Raises JoinLineError."""
    if not 1 <= len(line.addresses) <= ADDRESSES_MAX:
        raise JoinLineError(f"a join line holds 1 to {ADDRESSES_MAX} addresses, not {len(line.addresses)}")
    plain = []
    for text in line.addresses:
        address = parse(text)
        if address.peer_id not in (None, line.peer_id):
            raise JoinLineError(f"{text} is an address of another peer")
        plain.append(replace(address, peer_id=None).text)
    body = codec.pack({"p": public_key_from_peer_id(line.peer_id), "a": plain, "t": bytes.fromhex(line.token)})
    check = hashlib.sha256(body).digest()[:_CHECK_BYTES]
    return PREFIX + VERSION + base64.urlsafe_b64encode(body + check).decode().rstrip("=")


def parse_line(text: str) -> JoinLine:
    """The line in `text`; a plain multiaddr with /p2p/<id> is taken too, and white space around or inside is ignored.

    Raises JoinLineError that says whether it was cut, misspelt or of a later version.
    """
    text = "".join(text[: 2 * LINE_CHARACTERS_MAX].split())
    if text.startswith("/"):
        address = parse_peer(text)
        assert address.peer_id is not None
        return JoinLine(address.peer_id, (address.text,))
    if not text.startswith(PREFIX) or len(text) > LINE_CHARACTERS_MAX:
        raise JoinLineError(f"a join line begins with {PREFIX} and has at most {LINE_CHARACTERS_MAX} characters")
    if text[len(PREFIX) : len(PREFIX) + 1] != VERSION:
        raise JoinLineError("this join line is of a version that is not known here; update octonode")
    return _read(_body(text[len(PREFIX) + 1 :]))


def _body(encoded: str) -> bytes:
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise JoinLineError("this join line was cut or misspelt; copy it again, whole") from None
    body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if hashlib.sha256(body).digest()[:_CHECK_BYTES] != check:
        raise JoinLineError("this join line was cut or misspelt; copy it again, whole")
    return body


def _read(body: bytes) -> JoinLine:
    try:
        value = fields.as_map(codec.unpack(body, DEFAULT_LIMITS), "join line")
        peer_id = peer_id_from_public_key(fields.exact_bytes(value, "p", 32))
        plain = fields.texts(value, "a", most=ADDRESSES_MAX)
        token = fields.raw(value, "t", b"", bytes_max=TOKEN_BYTES)
        addresses = tuple(replace(parse(text), peer_id=peer_id).text for text in plain)
    except (RemoteProtocolError, AddressError) as error:
        raise JoinLineError(f"this is not a join line: {error.message}") from None
    if not addresses or len(token) not in (0, TOKEN_BYTES):
        raise JoinLineError("this is not a join line: it has no address, or a token of the wrong size")
    return JoinLine(peer_id, addresses, token.hex())
