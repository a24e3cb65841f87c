"""Join lines and who is let in."""

from __future__ import annotations

import contextlib
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import ConfigError
from octonode.ids import PeerId
from octonode.network.access import (
    SHOWN_CHARACTERS_MAX,
    TOKENS_MAX,
    Access,
    Policy,
    TokenFiles,
    admits,
    proof,
    proves,
    show,
)
from octonode.network.addresses import AddressError
from octonode.network.joinline import LINE_CHARACTERS_MAX, JoinLine, JoinLineError, encode, parse_line
from tests.network.peers.world import key_of

A, B, C = (key_of(name).peer_id for name in "abc")
T1, T2 = "11" * 32, "22" * 32
ADDRESSES = (f"/ip4/203.0.113.7/tcp/4808/p2p/{A}", f"/dns4/n.example/tcp/4809/ws/p2p/{A}")
tokens = st.sampled_from(["", T1, T2])


@given(st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=8), tokens)
def test_a_line_is_read_as_it_was_written(addresses: list[str], token: str) -> None:
    line = JoinLine(A, tuple(addresses), token)
    text = encode(line)
    assert parse_line(text) == line
    assert parse_line(f"  {text[:20]}\n{text[20:]} ") == line, "as mail programs break it"
    assert len(text) <= LINE_CHARACTERS_MAX
    assert text.replace(":", "").replace("-", "").replace("_", "").isalnum(), "nothing that a shell would touch"


@given(st.integers(0, 300), st.characters(codec="ascii"))
def test_a_line_with_one_wrong_character_is_refused(at: int, character: str) -> None:
    line = JoinLine(A, ADDRESSES, T1)
    text = encode(line)
    at %= len(text)
    if text[at] != character and not character.isspace():
        with contextlib.suppress(JoinLineError, AddressError):
            assert parse_line(text[:at] + character + text[at + 1 :]) == line  # spare bits of the last character


@given(st.text(max_size=100) | st.text(max_size=60).map(lambda t: "octonode:1" + t))
def test_any_text_is_a_line_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(JoinLineError, AddressError):
        parse_line(text)


def test_a_plain_address_is_taken_and_a_later_version_is_named() -> None:
    assert parse_line(ADDRESSES[0]) == JoinLine(A, ADDRESSES[:1])
    with pytest.raises(JoinLineError, match="update"):
        parse_line("octonode:2AAAA")
    with pytest.raises(JoinLineError, match="begins with"):
        parse_line("hello")
    with pytest.raises(JoinLineError, match="cut or misspelt"):
        parse_line(encode(JoinLine(A, ADDRESSES))[:-5])
    with pytest.raises(JoinLineError, match="another peer"):
        encode(JoinLine(B, ADDRESSES))
    with pytest.raises(JoinLineError):
        encode(JoinLine(A, ()))


def test_a_proof_is_good_for_one_asker_at_one_provider() -> None:
    shown = proof(T1, A, B)
    assert proves(shown, [T1], A, B)
    assert not proves(shown, [T1], C, B), "another asker cannot use what it saw"
    assert not proves(shown, [T1], A, C), "nor can the provider show it to others"
    assert not proves(shown, [T2], A, B)
    assert T1 not in show([T1, T2], A, B), "the token does not travel"
    assert proves(show([T1, T2], A, B), [T2], A, B)
    assert proves(T1, [T1], A, B), "a client without proofs may show the token itself"
    assert not proves("", [T1], A, B)
    assert not proves("é" * 32, [T1], A, B)
    assert not proves("x" * (SHOWN_CHARACTERS_MAX + 1), [T1], A, B)


@pytest.mark.parametrize(
    ("policy", "peer", "proven", "let_in"),
    [
        ("open", C, False, True),
        ("token", C, False, False),
        ("token", C, True, True),
        ("token", A, False, True),
        ("peers", A, False, True),
        ("peers", C, True, False),
        ("peers", B, False, True),
    ],
)
def test_the_rule(policy: Policy, peer: PeerId, proven: bool, let_in: bool) -> None:
    assert admits(policy, peer, own=B, allowed=[A], proven=proven) is let_in


def test_a_wrong_token_opens_nothing() -> None:
    access = Access("token", B, [T1])
    for shown in ("", T2, proof(T2, C, B), proof(T1, A, B), proof(T1, C, A), T1[:-1], "." * 7):
        assert not access.allows(C, shown)
    assert access.allows(C, f"{'0' * 32}.{proof(T1, C, B)}")
    assert not Access("token", B, []).allows(C, "")


def test_access_knows_who_has_shown_a_right_token() -> None:
    access = Access("token", B, [T1], [A])
    asker = Access("token", C, [T2, T1])
    assert access.known(A)
    assert not access.known(C)
    assert not access.allows(C, "")
    assert access.allows(C, asker.show(B))
    assert access.known(C)
    access.use([T2])
    assert access.allows(C, Access("token", C, [T2]).show(B))
    assert not access.allows(C, Access("token", C, [T1]).show(B))


def test_the_token_file_is_made_once_and_is_private(home: Path) -> None:
    files = TokenFiles(home)
    token = files.own()
    assert len(bytes.fromhex(token)) == 32
    assert TokenFiles(home).own() == token
    assert stat.S_IMODE((home / "token").stat().st_mode) == 0o600
    (home / "token").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        files.own()
    (home / "token").chmod(0o600)
    (home / "token").write_text("not a token")
    with pytest.raises(ConfigError, match="64 hex digits"):
        files.own()


def test_the_token_appears_whole_or_not_at_all(home: Path) -> None:
    """Whoever reads it while it is made, `status` beside a daemon that starts, finds the whole token."""
    start, found = threading.Barrier(16), []

    def read() -> None:
        start.wait()
        found.append(TokenFiles(home).own())

    with ThreadPoolExecutor(16) as pool:
        for made in [pool.submit(read) for _ in range(16)]:
            made.result()
    assert len(set(found)) == 1
    assert [path.name for path in home.iterdir()] == ["token"]


def test_joined_tokens_are_kept_latest_first_and_bounded(home: Path) -> None:
    files = TokenFiles(home)
    assert files.joined() == ()
    for index in range(20):
        files.adopt(f"{index:064x}")
    files.adopt(f"{18:064x}")
    kept = TokenFiles(home).joined()
    assert [int(token, 16) for token in kept[:3]] == [18, 19, 17]
    assert len(kept) == TOKENS_MAX - 1
    assert stat.S_IMODE((home / "joined_tokens").stat().st_mode) == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["joined_tokens"], "no temporary file is left"
