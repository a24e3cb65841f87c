"""The verbs of `octonode models` on real files and real stores."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from octonode.errors import NotFound, OctonodeError, Refused, VerificationFailed
from octonode.identity import NodeKey
from octonode.ipfs.cid import dag_cbor_cid
from octonode.models.formats import FormatRefused
from octonode.models.library import Library
from octonode.models.manifest import sign
from octonode.models.reference import BadReference
from octonode.models.trust import NotTrusted

Make = Callable[..., Library]
MIB = 1024 * 1024


def test_add_signs_what_the_file_is(make_library: Make, model_file: Path) -> None:
    library = make_library("a")
    seen: list[tuple[int, int]] = []
    entry = library.add(model_file, licence="apache-2.0", progress=lambda done, whole: seen.append((done, whole)))
    assert entry.complete
    assert entry.root == Library.cid(model_file)
    assert entry.manifest is not None
    manifest = entry.manifest.manifest
    assert (manifest.name, manifest.version, manifest.seq, manifest.previous) == ("tiny", "1.0.0", 1, None)
    assert (manifest.architecture, manifest.quantization, manifest.context_tokens) == ("llama", "Q4_1", 2048)
    assert manifest.files[0].sha256 == hashlib.sha256(model_file.read_bytes()).digest()
    assert manifest.files[0].size_bytes == model_file.stat().st_size
    assert seen[-1] == (model_file.stat().st_size,) * 2
    assert entry.path.read_bytes() == model_file.read_bytes()
    assert library.list() == [entry] == [library.show("tiny")]


def test_cid_imports_nothing(make_library: Make, tmp_path: Path) -> None:
    library = make_library("a")
    path = tmp_path / "any.txt"
    path.write_bytes(b"hello world")
    assert str(library.cid(path)) == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    assert library.list() == []


def test_add_takes_no_second_copy(make_library: Make, model_file: Path) -> None:
    entry = make_library("a").add(model_file)
    assert entry.path.stat().st_ino == model_file.stat().st_ino or entry.path.stat().st_nlink == 1  # link, or reflink
    if entry.path.stat().st_ino == model_file.stat().st_ino:
        assert os.access(model_file, os.W_OK)  # the user's file keeps its mode


@pytest.mark.parametrize("placement", ["copy", "reference"])
def test_copy_and_reference(make_library: Make, model_file: Path, placement: str) -> None:
    library = make_library("a")
    entry = library.add(model_file, placement=placement)  # type: ignore[arg-type]
    assert (entry.path == model_file) == (placement == "reference")
    assert entry.path.read_bytes() == model_file.read_bytes()
    if placement == "copy":
        assert entry.path.stat().st_mode & 0o777 == 0o444
    assert library.verify("tiny").ok
    library.remove("tiny")
    assert model_file.exists()
    assert library.list() == []


def test_versions_grow_and_are_never_changed(make_library: Make, model_file: Path, gguf: Callable[..., bytes]) -> None:
    library = make_library("a")
    first = library.add(model_file)
    assert library.add(model_file).manifest == first.manifest  # again: the same
    model_file.unlink()
    model_file.write_bytes(gguf(3 * MIB, seed=2))
    with pytest.raises(Refused, match=r"1\.0\.1"):
        library.add(model_file)
    second = library.add(model_file, version="1.1.0")
    assert first.manifest is not None
    assert second.manifest is not None
    assert second.manifest.manifest.seq == 2
    assert second.manifest.manifest.previous == first.manifest.cid
    assert library.resolve("tiny").root == second.root
    assert library.resolve("tiny@1.0.0").root == first.root
    assert library.resolve("tiny@^1.0.0").entry == second
    assert library.resolve("tiny@^2.0.0").root is None


def test_a_directory_of_files(make_library: Make, tmp_path: Path, gguf: Callable[..., bytes]) -> None:
    folder = tmp_path / "My Model"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "part.gguf").write_bytes(gguf(2 * MIB + 5))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "empty.txt").write_bytes(b"")
    (folder / ".hidden").write_text("no")
    library = make_library("a")
    entry = library.add(folder)
    assert entry.manifest is not None
    manifest = entry.manifest.manifest
    assert [f.path for f in manifest.files] == ["empty.txt", "tokenizer.json", "weights/part.gguf"]
    assert [f.format for f in manifest.files] == ["other", "other", "gguf"]
    assert manifest.name == "my-model"
    assert manifest.root == library.cid(folder)
    assert library.verify("my-model").ok
    assert entry.path.is_dir()


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "pytorch_model.bin"])
def test_a_pickle_is_refused_whatever_its_name(make_library: Make, tmp_path: Path, name: str) -> None:
    library = make_library("a")
    alone = tmp_path / name
    alone.write_bytes(pickle.dumps({"w": [1.0] * 99}))
    with pytest.raises(FormatRefused, match="pickle"):
        library.add(alone)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_bytes(pickle.dumps({"w": [1.0] * 99}))
    (folder / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(FormatRefused):
        library.add(folder)
    assert library.list() == []
    assert not list(library.store.directory.glob("*"))


def test_missing_files(make_library: Make, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        make_library("a").add(tmp_path / "nothing.gguf")


def test_pins_the_last_copy_and_removal(make_library: Make, model_file: Path) -> None:
    library = make_library("a")
    entry = library.add(model_file)
    library.pin("tiny")
    with pytest.raises(Refused, match="--force"):
        library.remove("tiny")
    library.pin("tiny", False)
    with pytest.raises(Refused, match="last copy"):
        library.remove("tiny", other_holders=0)
    assert library.remove("tiny", other_holders=1) == entry.row.size_bytes
    with pytest.raises(NotFound):
        library.show("tiny")
    assert library.resolve("tiny").root == entry.root  # the manifest stays known


def test_private_models_are_not_served_nor_answered(make_library: Make, model_file: Path) -> None:
    library = make_library("a")
    entry = library.add(model_file, public=False)
    assert entry.manifest is not None
    manifest = entry.manifest.manifest
    assert library.store.have(entry.root) is None
    assert library.store.block(entry.root) is None
    assert library.store.run(entry.root, 0, 10, nodes=True) is None
    assert library.manifest(manifest.publisher, "tiny") is None
    library.publish("tiny")
    assert library.manifest(manifest.publisher, "tiny") == entry.manifest.encode()
    body = library.store.block(entry.manifest.cid)
    assert body is not None
    assert entry.manifest.cid.matches(body.read())


# -- what comes from others -----------------------------------------------------------------------------------------


def _published(make_library: Make, model_file: Path, name: str = "a") -> tuple[str, bytes]:
    entry = make_library(name).add(model_file)
    assert entry.manifest is not None
    return entry.manifest.manifest.publisher, entry.manifest.encode()


def test_an_unknown_publisher_is_shown_and_asked_for(make_library: Make, model_file: Path) -> None:
    publisher, data = _published(make_library, model_file)
    library = make_library("b")
    with pytest.raises(NotTrusted, match="models trust") as caught:
        library.accept(data)
    assert caught.value.detail["publisher"] == publisher
    assert len(caught.value.detail["public_key"]) == 64
    assert publisher in caught.value.message
    assert library.resolve(f"{publisher}/tiny").root is None
    library.accept(data, trust=True)
    assert library.resolve(f"{publisher}/tiny").root is not None
    assert make_library("b").resolve("tiny").manifest is not None  # on disk


def test_bad_signatures_and_rollbacks_are_refused(make_library: Make, model_file: Path) -> None:
    publisher, data = _published(make_library, model_file)
    library = make_library("b")
    library.trust(publisher, "alice")
    old = library.accept(data)
    key = NodeKey(b"a".ljust(32, b"."))
    import dataclasses

    newer = sign(dataclasses.replace(old.manifest, version="1.1.0", seq=2, previous=old.cid), key)
    library.accept(newer.encode())
    older = sign(dataclasses.replace(old.manifest, version="1.2.0", seq=1), key)
    with pytest.raises(VerificationFailed) as caught:
        library.accept(older.encode())
    assert caught.value.code == "ROLLBACK"
    assert library.accept(data).cid == old.cid  # known before: no rollback
    assert library.accept(older.encode(), expected=older.cid).cid == older.cid  # named by its hash
    with pytest.raises(VerificationFailed):
        library.accept(newer.encode(), expected=dag_cbor_cid(b"another"))
    tampered = bytearray(newer.encode())
    tampered[-1] ^= 1
    with pytest.raises(VerificationFailed) as caught:
        library.accept(bytes(tampered))
    assert caught.value.code == "BAD_SIGNATURE"


def test_bare_names_of_several_publishers_are_listed(make_library: Make, model_file: Path) -> None:
    one, two = _published(make_library, model_file), _published(make_library, model_file, "c")
    library = make_library("b")
    for publisher, data in (one, two):
        library.accept(data, trust=True)
        library.trust(publisher, "alice" if publisher == one[0] else "")
    with pytest.raises(BadReference) as caught:
        library.resolve("tiny")
    assert f"{one[0]}/tiny (alice)" in caught.value.message
    assert library.resolve("alice/tiny").publisher == one[0]
    library.distrust("alice")
    assert library.resolve("tiny").publisher == two[0]


def test_references_that_come_later_or_need_the_network(make_library: Make, tmp_path: Path) -> None:
    library = make_library("a")
    with pytest.raises(NotFound, match="octonode models fetch hf:org/repo") as caught:
        library.resolve("hf:org/repo")
    assert caught.value.code == "MODEL_NOT_FOUND"
    unknown = library.resolve(f"cid:{dag_cbor_cid(b'x')}")
    assert (unknown.root, unknown.manifest_cid) == (None, dag_cbor_cid(b"x"))
    assert library.resolve(f"file:{tmp_path}/x.gguf").path == tmp_path / "x.gguf"
    with pytest.raises(NotFound):
        library.resolve("nobody/has-this")
    with pytest.raises(NotFound):
        library.resolve("never-heard-of")


def test_the_trust_table_is_read_again_only_when_it_was_written(make_library: Make, home: Path) -> None:
    """Faces ask for each model of each request whether its publisher is trusted."""
    library, others = make_library("a"), make_library("a")
    publishers = [NodeKey(bytes([number]) * 32).peer_id for number in (1, 2)]
    assert library.publishers() == ()
    others.trust(publishers[0], "alice")
    assert library.trust_table.is_trusted(publishers[0])
    assert library.publishers() is library.publishers()
    others.trust(publishers[1], "bob")
    assert library.trust_table.is_trusted(publishers[1])
    others.distrust("alice")
    assert [each.alias for each in library.publishers()] == ["bob"]
    (library.store.directory.parent / "trust.json").unlink()
    assert not library.trust_table.is_trusted(publishers[1])


def test_a_damaged_trust_table_says_so(make_library: Make, home: Path) -> None:
    library = make_library("a")
    publisher = NodeKey(bytes(32)).peer_id
    library.trust(publisher, "alice")
    (library.store.directory.parent / "trust.json").write_text("{")
    with pytest.raises(OctonodeError, match="damaged"):
        library.publishers()


def test_aliases_are_unique_and_peer_ids_are_checked(make_library: Make) -> None:
    library = make_library("a")
    library.trust(NodeKey(bytes(32)).peer_id, "alice")
    for peer_id, alias in (
        (NodeKey(b"b" * 32).peer_id, "alice"),
        ("12D3nonsense", ""),
        (NodeKey(b"b" * 32).peer_id, "a/b"),
    ):
        with pytest.raises(BadReference):
            library.trust(peer_id, alias)
    assert [p.alias for p in library.publishers()] == ["alice"]
