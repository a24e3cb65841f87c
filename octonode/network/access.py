"""Who may send tasks: holders of a token, a list of peers, or everybody. Spec: protocols/join.md.

A token is 32 random bytes in `OCTONODE_HOME/token`, made at the first start and handed out in the join line. Who joined
by a line keeps its token (`OCTONODE_HOME/joined_tokens`): all nodes that joined by one line let each other in. The
token itself never travels: an asker shows, for each token it has, a proof bound to both peers, so a provider that does
not know the token learns nothing of use elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from octonode.errors import ConfigError
from octonode.identity import create_private
from octonode.ids import PeerId

Policy = Literal["token", "peers", "open"]
TOKEN_BYTES = 32
TOKENS_MAX = 8
"""Tokens kept and shown; the oldest joined one is forgotten beyond it."""
PROOF_CHARACTERS = 32
"""128 bits of the HMAC, in hex."""
SHOWN_CHARACTERS_MAX = TOKENS_MAX * (PROOF_CHARACTERS + 1)
KNOWN_PEERS_MAX = 4096
_PROOF_DOMAIN = b"octonode/access/1\0"


def proof(token: str, asker: PeerId, provider: PeerId) -> str:
    """What `asker` shows to `provider` for a token: 32 hex digits, worthless to and from anybody else."""
    message = _PROOF_DOMAIN + asker.encode() + b"\0" + provider.encode()
    return hmac.new(bytes.fromhex(token), message, hashlib.sha256).hexdigest()[:PROOF_CHARACTERS]


def show(tokens: Sequence[str], asker: PeerId, provider: PeerId) -> str:
    """The text for the request's `token` field: a proof for each token, joined by dots; empty without tokens."""
    return ".".join(proof(token, asker, provider) for token in tokens[:TOKENS_MAX])


def proves(shown: str, tokens: Collection[str], asker: PeerId, provider: PeerId) -> bool:
    """Whether `shown` holds a proof for one of `tokens`, or a token itself. Time does not depend on the contents."""
    if len(shown) > SHOWN_CHARACTERS_MAX or not shown.isascii():
        return False
    right = [*(proof(token, asker, provider) for token in tokens), *tokens]
    found = False
    for part in shown.split(".")[:TOKENS_MAX]:
        for each in right:
            found |= hmac.compare_digest(part, each)
    return found


def admits(policy: Policy, peer_id: PeerId, *, own: PeerId, allowed: Collection[PeerId], proven: bool) -> bool:
    """The one rule: ourselves and listed peers always; under `token` whoever has `proven` one; under `open` all."""
    return peer_id == own or peer_id in allowed or policy == "open" or (policy == "token" and proven)


class TokenFiles:
    """Our token and those of the lines we joined by, in two files that their owner alone can read (0600)."""

    def __init__(self, home: Path) -> None:
        self._own_path = home / "token"
        self._joined_path = home / "joined_tokens"

    def own(self) -> str:
        """64 hex digits, made at the first call. Raises ConfigError when the file is no token or others can read it."""
        create_private(self._own_path, secrets.token_hex(TOKEN_BYTES).encode() + b"\n")
        return _only(_read_private(self._own_path), self._own_path)

    def joined(self) -> tuple[str, ...]:
        """Tokens of other nodes' join lines, the latest first."""
        return tuple(_read_private(self._joined_path)) if self._joined_path.exists() else ()

    def adopt(self, token: str) -> tuple[str, ...]:
        """Keep the token of a join line; all joined tokens, the latest first."""
        assert _is_token(token)
        kept = [token, *(other for other in self.joined() if other != token)][: TOKENS_MAX - 1]
        temporary = self._joined_path.with_name(f".joined_tokens.{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write("\n".join(kept) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._joined_path)
        return tuple(kept)


def _is_token(text: str) -> bool:
    return len(text) == 2 * TOKEN_BYTES and all(c in "0123456789abcdef" for c in text)


def _read_private(path: Path) -> list[str]:
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
    tokens = path.read_text(encoding="ascii", errors="replace").split()
    if not all(_is_token(token) for token in tokens):
        raise ConfigError(f"{path} is not made of tokens of 64 hex digits; move it away and start again")
    return tokens[:TOKENS_MAX]


def _only(tokens: list[str], path: Path) -> str:
    if len(tokens) != 1:
        raise ConfigError(f"{path} holds {len(tokens)} tokens, not one; move it away and start again")
    return tokens[0]


class Access:
    """The rule with a node's settings in it. `tasks.provider` asks it, the dispatcher shows with it."""

    def __init__(
        self, policy: Policy, own: PeerId, tokens: Sequence[str] = (), allowed: Collection[PeerId] = ()
    ) -> None:
        assert all(_is_token(token) for token in tokens)
        self.policy: Policy = policy
        self._own = own
        self._tokens = tuple(tokens)[:TOKENS_MAX]
        self._allowed = frozenset(allowed)
        # Peers that have shown a right token, the latest last; the first is forgotten at the bound.
        self._proven: dict[PeerId, None] = {}

    def allows(self, peer_id: PeerId, token: str) -> bool:
        """Whether a task of `peer_id` that shows `token` is taken."""
        proven = bool(token) and proves(token, self._tokens, peer_id, self._own)
        if proven:
            self._proven.pop(peer_id, None)
            self._proven[peer_id] = None
            if len(self._proven) > KNOWN_PEERS_MAX:
                del self._proven[next(iter(self._proven))]
        return admits(self.policy, peer_id, own=self._own, allowed=self._allowed, proven=proven)

    def known(self, peer_id: PeerId) -> bool:
        """Listed, or it has shown a right token since we started: larger rates."""
        return peer_id in self._allowed or peer_id in self._proven

    def show(self, provider: PeerId) -> str:
        """What we show to a provider: the `TokenFor` of the dispatcher."""
        return show(self._tokens, self._own, provider)

    def use(self, tokens: Sequence[str]) -> None:
        """Take other tokens from now on, after `octonode join`."""
        assert all(_is_token(token) for token in tokens)
        self._tokens = tuple(tokens)[:TOKENS_MAX]
