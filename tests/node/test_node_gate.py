"""The gate before every load, and what fits: over a real store, with the content that peers may have sent."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from octonode.errors import NotFound, OctonodeError
from octonode.hardware.facts import Cpu, Gpu, Hardware
from octonode.identity import NodeKey
from octonode.models.formats import FormatRefused
from octonode.models.library import Library, ModelEntry
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.network.peerbook import Peerbook
from octonode.node.fitting import Fitting, engine_problems, fit_of_file, machine_of
from octonode.node.gate import Gate
from octonode.node.resolving import Resolver
from octonode.node.shelf import Shelf
from octonode.tasks.residency import ResolvedModel
from tests.models import samples

PAINTER = b'{"_class_name": "StableDiffusionPipeline"}'
US, STRANGER = (NodeKey(bytes([number]) * 32) for number in (1, 3))
KEYS: dict[str, object] = {
    "general.name": "Tiny",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 2048,
}


def tiny(data_bytes: int = 128) -> bytes:
    return samples.gguf(KEYS, [samples.tensor("a", [data_bytes // 4], 0)], data_bytes)


@dataclass
class World:
    """One store, looked at by two keys."""

    home: Path

    def __post_init__(self) -> None:
        self.store = ModelStore(self.home)
        self.trust = TrustTable(self.home, always=(US.peer_id,), trust_all=True)
        self.library = Library(self.store, self.trust, US)
        self.theirs = Library(self.store, self.trust, STRANGER)
        self.gate = Gate(self.library)
        self.shelf = Shelf(self.library)
        resolver = Resolver(self.library, self.shelf, Peerbook(US.peer_id))
        self.fitting = Fitting(
            home=self.home, library=self.library, shelf=self.shelf, resolver=resolver, gate=self.gate
        )

    def add(self, contents: dict[str, bytes], *, theirs: bool = False, vouched: bool = False) -> ModelEntry:
        name = f"m{len(self.library.list())}"
        folder = samples.write(self.home / "given" / name, contents)
        path = folder if len(contents) > 1 else folder / next(iter(contents))
        return (self.theirs if theirs else self.library).add(path, name=name, vouched=vouched)

    async def admit(self, entry: ModelEntry, model_format: str = "") -> tuple[ResolvedModel, Path, Path]:
        return await self.gate.admit(ResolvedModel(root=entry.root.text, format=model_format), entry.path)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_what_is_right_is_admitted_with_its_true_format(world: World) -> None:
    entry = world.add({"tiny.gguf": tiny()})
    model, path, _ = await world.admit(entry, "safetensors")
    assert (model.format, model.context_tokens, path) == ("gguf", 2048, entry.paths[0])


async def test_an_engine_opens_the_file_in_a_directory_and_the_first_of_a_split_set(world: World) -> None:
    one = world.add({"tiny.gguf": tiny(), "README.md": b"hello", "sub/tokenizer.json": b"{}"})
    split = world.add(samples.split_gguf(3))
    shards = world.add(samples.sharded())
    assert (await world.admit(one))[1].name == "tiny.gguf"
    assert (await world.admit(split))[1].name == "m-00001-of-00003.gguf"
    model, file, folder = await world.admit(shards)
    assert file == folder, "there is no one file to open"
    assert (await world.admit(one))[2] == (await world.admit(one))[1].parent
    assert model.format == "safetensors"
    assert (folder / "config.json").is_file()
    for entry, said in ((one, "gguf"), (split, "gguf"), (shards, "safetensors")):
        assert entry.manifest is not None
        assert entry.manifest.manifest.format == said


async def test_it_looks_once_and_again_when_the_file_changed(world: World) -> None:
    entry = world.add({"tiny.gguf": tiny()})
    for _ in range(3):
        await world.admit(entry)
    assert world.gate._inspector.looks == 1
    path = entry.paths[0]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b"GGUF", b"ggml", 1))
    with pytest.raises(FormatRefused, match="is not loaded") as caught:
        await world.admit(entry)
    assert caught.value.code == "FORMAT_REFUSED"


async def test_what_peers_sent_is_refused_before_an_engine_sees_it(world: World) -> None:
    """A publisher may sign anything; its bytes are what the root says, and still not taken."""
    entry = world.add({"tiny.gguf": tiny(), "notes.txt": b"fine"}, theirs=True)
    bad = (
        samples.gguf({**KEYS, "tokenizer.chat_template": "{{ x.__class__ }}"}),
        samples.gguf(KEYS, [samples.tensor("a", [64], 0), samples.tensor("b", [64], 0)], 512),
        b"\x80\x04" + bytes(200),
    )
    for data in bad:
        target = next(path for path in entry.paths if path.name == "tiny.gguf")
        target.unlink()
        target.write_bytes(data)
        with pytest.raises(FormatRefused, match=r"tiny\.gguf"):
            await world.admit(entry)


async def test_engines_of_tensorrt_come_from_publishers_that_are_named(world: World) -> None:
    with pytest.raises(FormatRefused, match="TensorRT engine"):
        world.add(samples.tensorrt())
    own = world.add(samples.tensorrt(), vouched=True)
    assert (await world.admit(own))[0].format == "tensorrt"
    theirs = world.add(samples.tensorrt(1), theirs=True, vouched=True)
    with pytest.raises(FormatRefused, match="octonode models trust"):
        await world.admit(theirs)  # `trust_all` of test networks is no trust in code
    world.trust.add(STRANGER.peer_id, now_ms=1)
    assert (await world.admit(theirs))[0].format == "tensorrt"


async def test_what_is_not_here_is_not_admitted(world: World) -> None:
    entry = world.add({"tiny.gguf": tiny()})
    world.store.remove(entry.root, force=True)
    with pytest.raises(NotFound):
        await world.admit(entry)


def test_the_manifest_says_what_the_model_needs(world: World) -> None:
    entry = world.add({"tiny.gguf": tiny()})
    assert entry.manifest is not None
    manifest = entry.manifest.manifest
    assert manifest.ext["shape"]["caches"] == [[2, 32, 32, 0]]
    cache_bytes, buffer_bytes = 2 * 2048 * 64 * 2, 64 * 4 * 64
    assert manifest.requirements.vram_bytes == 128 + cache_bytes + buffer_bytes + 500_000_000


async def test_all_models_and_one_and_what_is_refused(world: World) -> None:
    good, bad = world.add({"tiny.gguf": tiny()}), world.add({"tiny.gguf": tiny(256)})
    bad.paths[0].unlink()
    bad.paths[0].write_bytes(b"nothing known at all")
    gone = world.add({"tiny.gguf": tiny(512)})
    world.store.remove(gone.root, force=True)
    await world.shelf.refresh()
    found = await world.fitting.fit("", context_tokens=0, streams=1)
    by_root = {each.root: each for each in found.models}
    assert by_root[good.root.text].rows[0].machine == "this machine"
    assert [row.machine for row in by_root[good.root.text].rows[1:]] == ["edge", "consumer", "prosumer", "enterprise"]
    assert all(row.fits for row in by_root[good.root.text].rows[1:])
    assert "not GGUF" in by_root[bad.root.text].refused
    assert by_root[gone.root.text].exact  # from its manifest alone
    assert good.manifest is not None
    one = await world.fitting.fit(f"cid:{good.root}", context_tokens=4096, streams=2)
    assert [each.root for each in one.models] == [good.root.text]
    assert one.models[0].rows[0].cache_bytes == 2 * 2 * 4096 * 64 * 2
    assert "context" in one.models[0].rows[0].blocks


async def test_what_the_headers_say(world: World) -> None:
    entry = world.add({"tiny.gguf": tiny()})
    await world.shelf.refresh()
    found = await world.fitting.inspect(f"cid:{entry.root}")
    assert (found.format, found.layers, found.kv_heads, found.opens) == ("gguf", 2, 2, "tiny.gguf")
    assert found.files == {"tiny.gguf": "gguf"}
    entry.paths[0].unlink()
    entry.paths[0].write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0))
    with pytest.raises(OctonodeError) as caught:
        await world.fitting.inspect(f"cid:{entry.root}")
    assert caught.value.code == "FORMAT_REFUSED"


CPU = Cpu("c", 4, 8, ())


def test_this_machine_as_requirements_see_it() -> None:
    gpus = (
        Gpu("nvidia", 0, memory_bytes=12 * 10**9, memory_used_bytes=10**9, compute_capability=(8, 9)),
        Gpu("nvidia", 1, memory_bytes=12 * 10**9, memory_used_bytes=2 * 10**9, compute_capability=(8, 6)),
        Gpu("amd", 0, memory_bytes=8 * 10**9),
    )
    machine = machine_of(Hardware(CPU, 64, 32, 100, 50, gpus), {"gguf": ""})
    assert (machine.vram_bytes, machine.vram_free_bytes, machine.compute_capability) == (24 * 10**9, 21 * 10**9, (8, 6))
    bare = machine_of(Hardware(CPU, 64, 32, 100, 50), {})
    assert (bare.vram_bytes, bare.vram_free_bytes, bare.memory_bytes, bare.compute_capability) == (0, None, 64, None)


def test_engines_that_are_missing_say_what_to_do() -> None:
    problems = engine_problems()
    assert problems["scripted"] == ""
    assert problems["gguf"] == ""
    assert "pip install 'octonode[vllm]'" in problems["safetensors"], "the default engine for these is not installed"
    assert engine_problems(("diffusers=/opt/python",))["safetensors"] == "", "an interpreter of its own has one of them"


@pytest.mark.parametrize(
    ("index", "wanted"), [({}, "octonode[vllm]"), ({"model_index.json": PAINTER}, "octonode[diffusion]")]
)
async def test_the_engine_is_that_of_the_model_and_not_of_its_format(
    world: World, index: dict[str, bytes], wanted: str
) -> None:
    world.add({**samples.sharded(), **index})
    (model,) = (await world.fitting.fit("", context_tokens=0, streams=1)).models
    assert wanted in model.rows[0].words
    assert "need a GPU" not in model.rows[0].words
    assert ("context" in model.rows[0].words) == (not index), "pictures have none"


def test_a_file_without_a_daemon(tmp_path: Path) -> None:
    from octonode.models.inspecting import inspect_paths

    path = samples.write(tmp_path, {"m.safetensors": samples.shard("a")}) / "m.safetensors"
    info = inspect_paths([(path.name, path)])
    found = fit_of_file(info, path, path.stat().st_size, tmp_path, 0, 1)
    assert found.models[0].reference == "m.safetensors"
    assert "engine" in found.models[0].rows[0].blocks
    assert json.dumps(found.fitting) == "[]"
