"""Name records on disk, what ours say, how versions are followed, and lists of trust."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from octonode.errors import NotFound, OctonodeError, Refused
from octonode.identity import NodeKey
from octonode.ids import public_key_from_peer_id
from octonode.ipfs.cid import raw_cid
from octonode.models import naming
from octonode.models.following import Following
from octonode.models.library import Library
from octonode.models.manifest import ModelFile, ModelManifest, SignedManifest, sign
from octonode.models.names import NameBook
from octonode.models.reference import BadReference
from octonode.models.trust import TrustTable
from octonode.protocol.name_record import NAME_RECORD_LIFE_MS_MAX, NameRecord, sign_name_record

KEY, OTHER = NodeKey(b"k" * 32), NodeKey(b"o" * 32)
NOW_MS = 1_764_000_000_000
DAY_MS = 24 * 3600 * 1000


def manifest(version: str, seq: int, content: bytes = b"") -> SignedManifest:
    root = raw_cid(content or version.encode())
    file = ModelFile("m.gguf", 1, root, bytes(32), "gguf")
    return sign(ModelManifest(KEY.peer_id, "m", version, (file,), root, seq=seq), KEY)


def said(before: NameRecord | None, *manifests: SignedManifest, now_ms: int = NOW_MS) -> NameRecord | None:
    seqs = {each.cid.raw: each.manifest.seq for each in ALL}
    return naming.published(KEY.peer_id, "m", before, manifests, now_ms, seqs=seqs)


ALL = [manifest(f"1.{number}.0", number + 1) for number in range(90)]


def first() -> NameRecord:
    record = said(None, ALL[0])
    assert record is not None
    return record


def data(record: NameRecord) -> bytes:
    return sign_name_record(KEY, record)


def test_a_record_is_signed_anew_only_when_it_says_something_new_or_grows_old() -> None:
    one = first()
    assert (one.seq, [each.version for each in one.versions]) == (1, ["1.0.0"])
    assert said(one, ALL[0]) is None
    assert said(one) is None  # what is no longer held is still published
    two = said(one, ALL[0], ALL[1])
    assert two is not None
    assert (two.seq, [each.version for each in two.versions]) == (2, ["1.0.0", "1.1.0"])
    assert said(two, now_ms=NOW_MS + 3 * DAY_MS) is None
    renewed = said(two, now_ms=NOW_MS + 4 * DAY_MS)
    assert renewed is not None
    assert (renewed.seq, renewed.versions) == (3, two.versions)
    assert said(None) is None


def test_what_did_not_fit_is_not_listed_again_and_again() -> None:
    record = said(None, *ALL)
    assert record is not None
    assert record.trimmed
    assert record.versions[-1].version == "1.89.0"
    assert said(record, *ALL) is None
    more = said(record, *ALL, manifest("2.0.0", 91))
    assert more is not None
    assert more.versions[-1].version == "2.0.0"


def test_deprecation_and_its_undoing() -> None:
    record = first()
    bad = naming.deprecated(record, "m@1.0.0", "1.0.0", reason="old", replaced_by="1.1.0", undo=False, now_ms=NOW_MS)
    assert bad.seq == 2
    assert naming.avoided(bad) == {"1.0.0"}
    assert naming.advice(bad, "1.0.0") == "1.0.0 is deprecated by its publisher: old; take 1.1.0 instead"
    assert naming.advice(bad, "1.1.0") == naming.advice(None, "1.0.0") == ""
    again = said(bad, ALL[0], ALL[1])  # publishing something else takes nothing back
    assert again is not None
    assert naming.avoided(again) == {"1.0.0"}
    good = naming.deprecated(again, "m@1.0.0", "1.0.0", reason="", replaced_by="", undo=True, now_ms=NOW_MS)
    assert (good.seq, naming.avoided(good)) == (4, frozenset())
    for change in ({"replaced_by": "next"}, {"replaced_by": "1.0.0"}, {"reason": "x" * 201}, {"reason": "\n"}):
        plain = {"reason": "", "replaced_by": "", "undo": False, "now_ms": NOW_MS}
        with pytest.raises(Refused):
            naming.deprecated(record, "m@1.0.0", "1.0.0", **{**plain, **change})  # type: ignore[arg-type]
    with pytest.raises(Refused, match="not deprecated"):
        naming.deprecated(good, "m@1.0.0", "1.0.0", reason="", replaced_by="", undo=True, now_ms=NOW_MS)
    for before in (record, None):
        with pytest.raises(NotFound, match="publish it first"):
            naming.deprecated(before, "m@9.0.0", "9.0.0", reason="", replaced_by="", undo=False, now_ms=NOW_MS)


def test_the_book_remembers_the_newest_over_a_restart_and_refuses_older_ones(home: Path) -> None:
    book = NameBook(home)
    old = first()
    new = replace(old, seq=5)
    assert book.keep(data(new), NOW_MS) == new
    assert book.keep(data(new), NOW_MS) == new
    for each in (old, replace(new, expires_at_ms=new.expires_at_ms - 1), replace(new, seq=4)):
        with pytest.raises(OctonodeError) as caught:
            NameBook(home).keep(data(each), NOW_MS)
        assert caught.value.code == "ROLLBACK"
    late = NOW_MS + NAME_RECORD_LIFE_MS_MAX
    with pytest.raises(OctonodeError) as caught:
        book.keep(data(replace(new, seq=6)), late)
    assert caught.value.code == "EXPIRED"
    again = NameBook(home)
    assert again.record(KEY.peer_id, "m") == new  # seq counts when it has expired, too
    assert again.data(KEY.peer_id, "m") == data(new)
    assert again.all() == (new,)
    assert again.record(OTHER.peer_id, "m") is None


def test_damaged_and_misplaced_files_are_passed_over(home: Path) -> None:
    book = NameBook(home)
    book.keep(data(first()), NOW_MS)
    file = next(book.directory.glob("*/*"))
    file.with_name("other.cbor").write_bytes(file.read_bytes())
    file.with_name("junk.cbor").write_bytes(b"\xff" * 100_000)
    assert [record.name for record in NameBook(home).all()] == ["m"]
    file.write_bytes(file.read_bytes()[:-1])
    assert NameBook(home).all() == ()


def test_following(home: Path) -> None:
    following = Following(home)
    following.asked("one", "p/m@^1")
    following.succeeded("one", "two", "p/m@^1")
    assert following.is_previous("one")
    assert following.of("two").reference == "p/m@^1"
    following.went_back("two", "one", "p/m@^1")
    again = Following(home)
    assert (again.is_previous("one"), again.of("two").rolled_back) == (False, True)
    again.succeeded("one", "two", "p/m@^1")
    assert (again.is_previous("one"), again.of("two").rolled_back) == (True, False)
    again.let_go("one")
    again.forget("two")
    again.forget("three")
    assert not Following(home).is_previous("one")
    assert Following(home).of("two").reference == ""
    (home / "versions.json").write_text('{"one": {"colour": 3}}')
    assert Following(home).of("one").reference == ""


def test_a_removed_model_is_followed_no_more(make_library: Callable[..., Library], model_file: Path) -> None:
    library = make_library("a")
    root = library.add(model_file).root.text
    library.following.succeeded(root, "new", "p/m")
    library.trust_table.allow_unsigned(root)
    library.pin("tiny", False)
    assert not library.following.is_previous(root)
    library.remove("tiny")
    assert library.following.of(root).reference == ""
    assert library.trust_table.unsigned() == ()


def test_roots_allowed_without_a_signature(home: Path) -> None:
    table = TrustTable(home)
    table.add(KEY.peer_id, "alice", now_ms=1)
    table.allow_unsigned("bafy1")
    table.allow_unsigned("bafy2")
    table.allow_unsigned("bafy1")
    again = TrustTable(home)
    assert again.unsigned() == ("bafy1", "bafy2")
    again.add(OTHER.peer_id, now_ms=2)  # both parts of the file stay
    again.disallow_unsigned("bafy1")
    assert (TrustTable(home).unsigned(), len(TrustTable(home).publishers())) == (("bafy2",), 2)


def test_a_list_of_trust_is_taken_whole_or_not_at_all(home: Path) -> None:
    table = TrustTable(home)
    table.add(KEY.peer_id, "alice", now_ms=1)
    third = NodeKey(b"t" * 32).peer_id
    assert table.add_all([(KEY.peer_id, "bob"), (OTHER.peer_id, "alice"), (third, "carol")], now_ms=2) == (
        2, 1, (OTHER.peer_id,),
    )  # fmt: skip
    assert {row.peer_id: row.alias for row in table.publishers()} == {
        KEY.peer_id: "alice", OTHER.peer_id: "", third: "carol",
    }  # fmt: skip
    for bad in (
        [(NodeKey(b"n" * 32).peer_id, "dave"), ("nobody", "")],
        [(OTHER.peer_id, "a/b")],
        [(OTHER.peer_id, "é")],
    ):
        with pytest.raises(BadReference):
            table.add_all(bad, now_ms=3)
    assert len(table.publishers()) == 3


def test_fingerprints_are_of_the_key(home: Path) -> None:
    row = TrustTable(home).add(KEY.peer_id, now_ms=1)
    assert row.public_key == public_key_from_peer_id(KEY.peer_id).hex()
    assert row.fingerprint.startswith("SHA256:")
    assert len(row.fingerprint) == 7 + 43
