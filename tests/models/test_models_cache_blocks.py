"""Blocks out of many models: one look-up finds the model, whoever added or removed it, and few indexes are open."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from octonode.ipfs.cid import RAW, Cid
from octonode.ipfs.layout import FileLayout, Layout, Leaf
from octonode.ipfs.unixfs import LEAF_BYTES, TreeBuilder
from octonode.models import bitmap, store
from octonode.models.adding import describe
from octonode.models.held import HeldModel
from octonode.models.library import Library
from octonode.models.sources.store import held_elsewhere
from octonode.models.staging import guard, write_index
from octonode.models.store import ModelStore

Make = Callable[..., Library]
MIB = 1024 * 1024


def imagined(leaves: int, seed: int) -> Layout:
    """A layout whose leaves nobody ever made: their digests are dice."""
    dice, builder = random.Random(seed), TreeBuilder()
    for _ in range(leaves):
        builder.add(dice.randbytes(32), LEAF_BYTES)
    made = builder.finish()
    found = tuple(Leaf(i, 0, i * LEAF_BYTES, LEAF_BYTES, digest) for i, digest in enumerate(made.leaves))
    return Layout(made.root, (FileLayout("", made.root, made.size_bytes, 0, leaves),), found, dict(made.nodes))


def sparse(models: ModelStore, layout: Layout) -> HeldModel:
    """A model of `layout` that takes no disk."""
    with models.staging.fresh(layout.root) as new:
        with open(new / "data" / "model", "wb") as file:
            file.truncate(layout.size_bytes)
        have = bitmap.full(len(layout.leaves))
        guard(write_index(new, layout, ["model"], have=have, public=True, now_ms=1))
        return models._publish(new, layout.root)


def found(models: ModelStore, cid: Cid) -> bool:
    body = models.block(cid)
    if body is not None:
        body.close()
    return body is not None


def test_a_block_is_found_without_opening_the_other_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = [imagined(8, seed) for seed in range(40)]
    first = ModelStore(home)
    for layout in layouts:
        sparse(first, layout)
    models = ModelStore(home)
    opened: list[Path] = []
    init = HeldModel.__init__

    def counted(self: HeldModel, directory: Path) -> None:
        opened.append(directory)
        init(self, directory)

    monkeypatch.setattr(HeldModel, "__init__", counted)
    assert found(models, layouts[7].leaves[3].cid)
    assert [each.name for each in opened] == [layouts[7].root.text]
    assert not found(models, Cid(RAW, bytes(32)))
    (node,) = layouts[9].nodes
    assert found(models, node)
    assert models.run(layouts[11].root, 0, None, nodes=False) is not None
    assert len(opened) == 3


def test_few_connections_are_open_and_all_models_are_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "OPEN_MAX", 4)
    layouts = [imagined(2, seed) for seed in range(30)]
    models = ModelStore(home)
    for layout in layouts:
        sparse(models, layout)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for layout in layouts:
            model = models.require(layout.root)
            assert len(model.layout().leaves) == 2
            assert model.row.complete
        for layout in layouts:
            assert found(models, layout.leaves[1].cid)
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    models.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_another_process_adds_and_removes_is_seen(make_library: Make, model_file: Path) -> None:
    one, two = make_library("a"), make_library("a")
    leaf = describe(model_file).layout.leaves[2].cid
    assert not found(two.store, leaf)
    entry = one.add(model_file)
    assert found(two.store, leaf)
    assert entry.manifest is not None
    assert found(two.store, entry.manifest.cid), "the manifest is a block too"
    two.remove("tiny")
    assert not found(one.store, leaf)
    one.add(model_file)
    assert found(two.store, leaf)


def test_private_models_are_not_told_of(make_library: Make, model_file: Path) -> None:
    library = make_library("a")
    library.add(model_file, public=False)
    leaf = describe(model_file).layout.leaves[0].cid
    assert not found(library.store, leaf)
    assert library.store.read_block(leaf) == model_file.read_bytes()[:MIB], "for the node itself it is there"
    library.publish("tiny")
    assert found(library.store, leaf)


def test_a_block_of_two_models_is_found_while_one_of_them_has_it(
    make_library: Make, model_file: Path, gguf: Callable[..., bytes], tmp_path: Path
) -> None:
    library = make_library("a")
    data = model_file.read_bytes()
    longer = tmp_path / "longer.gguf"
    longer.write_bytes(data[: 10 * MIB] + bytes(5000))
    one, two = library.add(model_file), library.add(longer)
    leaf = describe(model_file).layout.leaves[4].cid
    assert library.store.sharing(describe(model_file).layout) == [library.store.require(two.root)]
    library.remove(f"cid:{one.root}")
    assert library.store.read_block(leaf) == data[4 * MIB : 5 * MIB]
    source = held_elsewhere(library.store, describe(model_file).layout)
    assert source is not None
    library.remove(f"cid:{two.root}")
    assert library.store.read_block(leaf) is None
    assert held_elsewhere(library.store, describe(model_file).layout) is None


def test_an_index_of_blocks_that_says_too_much_only_costs_a_look(make_library: Make, model_file: Path) -> None:
    library = make_library("a")
    entry = library.add(model_file)
    lost = Cid(RAW, bytes(range(32)))
    library.store._blocks.add(entry.root, [lost.digest])
    assert not found(library.store, lost)
    assert library.store.read_block(lost) is None


def test_rows_are_remembered_and_never_stale(home: Path, make_library: Make, model_file: Path) -> None:
    one, two = make_library("a"), make_library("a")
    root = one.add(model_file).root
    index = two.store.directory / root.text / "index.sqlite"
    os.utime(index, (1, 1))  # long ago: from now on it is remembered
    assert not two.store.require(root).row.pinned
    one.pin("tiny")
    assert two.store.require(root).row.pinned
    two.pin("tiny", False)
    assert not one.store.require(root).row.pinned


def test_a_fault_of_the_index_of_blocks_costs_one_look_up_at_most(make_library: Make, model_file: Path) -> None:
    library = make_library("a")
    library.add(model_file)
    os.utime(library.store.directory, (1, 1))  # long ago: from now on the directory is not read again
    leaf = describe(model_file).layout.leaves[0].cid
    assert found(library.store, leaf)
    library.store._blocks._start_in_memory(sqlite3.OperationalError("disk I/O error"))
    assert found(library.store, leaf)
