"""The node's key: made once and whole, private, refused when it is not what it should be."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from octonode import identity
from octonode.errors import ConfigError
from octonode.ids import peer_id_from_public_key, public_key_from_peer_id

# RFC 8032, section 7.1, test 1
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


def test_the_key_signs_as_the_standard_says() -> None:
    key = identity.NodeKey(SEED)
    assert key.sign(b"") == SIGNATURE
    assert key.peer_id == peer_id_from_public_key(PUBLIC)
    assert key.transport_seed() == SEED


def test_the_first_call_makes_a_private_key_and_later_ones_find_it(home: Path) -> None:
    first = identity.load_or_create(home)
    assert identity.load_or_create(home).peer_id == first.peer_id
    assert stat.S_IMODE((home / "node.key").stat().st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == ["node.key"]


def test_two_nodes_have_two_keys(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in "ab"]
    for each in homes:
        each.mkdir()
    assert len({identity.load_or_create(each).peer_id for each in homes}) == 2


def test_processes_that_make_the_key_at_the_same_moment_get_the_same(home: Path) -> None:
    together = threading.Barrier(8)
    found: list[str] = []

    def make() -> None:
        together.wait()
        found.append(identity.load_or_create(home).peer_id)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in home.iterdir()] == ["node.key"]


def test_a_crash_while_the_key_is_made_leaves_no_half_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="No space"):
            identity.load_or_create(home)
    assert list(home.iterdir()) == []
    assert identity.load_or_create(home).peer_id


def test_a_key_that_others_can_read_is_refused_with_the_command_that_mends_it(home: Path) -> None:
    identity.load_or_create(home)
    (home / "node.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"chmod 600 .*node\.key"):
        identity.load_or_create(home)


@pytest.mark.parametrize("size_bytes", [0, 31, 33])
def test_a_file_that_is_no_key_is_refused_and_left_alone(home: Path, size_bytes: int) -> None:
    path = home / "node.key"
    path.write_bytes(b"k" * size_bytes)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"holds {size_bytes} bytes"):
        identity.load_or_create(home)
    assert path.read_bytes() == b"k" * size_bytes


def test_verify_tells_true_from_false_and_never_raises() -> None:
    key = identity.NodeKey(SEED)
    good = key.sign(b"octonode/test/1\0message")
    assert identity.verify(key.peer_id, b"octonode/test/1\0message", good)
    assert not identity.verify(key.peer_id, b"octonode/test/2\0message", good)
    assert not identity.verify(identity.NodeKey(bytes(32)).peer_id, b"octonode/test/1\0message", good)
    for peer_id, signature in (
        ("", good),
        ("12D3KooW", good),
        ("0OIl", good),
        (key.peer_id, b""),
        (key.peer_id, b"x" * 64),
    ):
        assert not identity.verify(peer_id, b"octonode/test/1\0message", signature)


def test_a_peer_id_holds_its_key() -> None:
    assert public_key_from_peer_id(peer_id_from_public_key(PUBLIC)) == PUBLIC
    assert peer_id_from_public_key(PUBLIC).startswith("12D3KooW")


@pytest.mark.parametrize("text", ["", "12D3KooW", "Qm" * 22, "Qm" * 100, "12D3KooW-not-base58", "1" * 52])
def test_what_is_no_peer_id_of_an_ed25519_key_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        public_key_from_peer_id(text)
