"""What models need: exact caches from shapes, what blocks a machine and what would fit; and a real model against it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from octonode.config import EnginesConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.supervisor import Supervisor
from octonode.models.claims import ext_of, requirements_of, shape_from
from octonode.models.formats import CacheGroup, FormatInfo, Shape, sniff
from octonode.models.requirements import (
    EDGE_MEMORY_BYTES,
    GIGABYTE,
    Machine,
    Subject,
    cache_bytes,
    default_context,
    gigabytes,
    in_words,
    judge,
    need_of,
    subject_of,
    tier_machines,
    tokens,
)

LLAMA3_8B = Subject(
    "llama", "gguf", 4_920_734_272, 4_920_734_272, 8192, "Q4_K_M",
    shape=Shape(
        parameters=8_030_261_248, layers=32, heads=32, kv_heads=8, head_dim=128, embedding=4096, vocab=128256,
        caches=(CacheGroup(32, 1024, 1024),),
    ),
)  # fmt: skip
GEMMA3_12B = replace(
    LLAMA3_8B,
    context_tokens=131072,
    shape=replace(LLAMA3_8B.shape, caches=(CacheGroup(8, 2048, 2048), CacheGroup(40, 2048, 2048, 1024))),
)


def test_the_cache_of_grouped_queries_is_exact() -> None:
    assert cache_bytes(LLAMA3_8B, 8192) == 8192 * 32 * 2048 * 2  # 1 GiB, as llama.cpp prints it
    assert cache_bytes(LLAMA3_8B, 8192, cache_type="q8_0") == 8192 * 32 * 2048 * 34 // 32
    assert cache_bytes(LLAMA3_8B, 8192, parallel=4) == 4 * cache_bytes(LLAMA3_8B, 8192)
    assert cache_bytes(LLAMA3_8B, 1) == cache_bytes(LLAMA3_8B, 256)  # cells come in 256


def test_the_cache_of_sliding_windows() -> None:
    """As llama.cpp logs it for such a model: a window of 1024 and a batch of 512 keep 1536 cells."""
    full = 8 * 4096 * 2 * 8192
    assert cache_bytes(GEMMA3_12B, 8192, batch_tokens=512) == full + 40 * 4096 * 2 * 1536
    assert cache_bytes(GEMMA3_12B, 8192, batch_tokens=64) == full + 40 * 4096 * 2 * 1280
    assert cache_bytes(GEMMA3_12B, 512, batch_tokens=64) == 48 * 4096 * 2 * 512


def test_states_embeddings_and_what_is_guessed() -> None:
    recurrent = replace(LLAMA3_8B, shape=Shape(state_bytes=1000))
    assert recurrent.exact
    assert cache_bytes(recurrent, 100_000, parallel=3) == 3000
    assert cache_bytes(replace(LLAMA3_8B, category="embeddings"), 8192) == 0
    unknown = replace(LLAMA3_8B, shape=Shape(parameters=8_030_261_248))
    assert not unknown.exact
    assert 1 <= cache_bytes(unknown, 8192) / cache_bytes(LLAMA3_8B, 8192) <= 2


def test_the_batch_buffer_is_what_llama_cpp_reserves() -> None:
    """It logs 258.50 MiB for Llama 3 8B at a batch of 512."""
    need = need_of(LLAMA3_8B, 8192, place="ram", batch_tokens=512)
    without = need_of(
        replace(LLAMA3_8B, shape=Shape(caches=LLAMA3_8B.shape.caches)), 8192, place="ram", batch_tokens=512
    )
    assert need.overhead_bytes - without.overhead_bytes == 258.5 * 2**20


def test_tiers_in_words() -> None:
    words = [in_words(judge(LLAMA3_8B, machine)) for machine in tier_machines()]
    assert words == [
        "needs 6.1 GB of 8 GB of RAM at 8k context",
        "needs 6.5 GB of 8 GB at 8k context",
        "needs 6.5 GB of 24 GB at 8k context",
        "needs 6.5 GB of 80 GB at 8k context",
    ]
    large = replace(LLAMA3_8B, context_tokens=131072, weights_bytes=16_060_522_496, quantization="F16")
    fit = judge(large, tier_machines()[1], 131072)
    assert not fit.fits
    assert fit.smaller == ()
    assert in_words(fit) == "needs 33.8 GB of 8 GB at 128k context; too little VRAM"
    fit = judge(large, tier_machines()[1])
    assert fit.smaller == ("Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
    assert in_words(fit) == "needs 17.7 GB of 8 GB at 8k context; too little VRAM; Q5_K_M would fit"


def test_the_largest_context_that_fits() -> None:
    machine = Machine("m", vram_bytes=8 * GIGABYTE)
    long = replace(LLAMA3_8B, context_tokens=131072)
    fit = judge(long, machine, 65536)
    most = fit.largest_context_tokens
    assert most % 256 == 0
    assert need_of(long, most, place="vram").total_bytes <= machine.vram_bytes
    assert need_of(long, most + 256, place="vram").total_bytes > machine.vram_bytes
    assert in_words(fit) == "needs 14 GB of 8 GB at 64k context; too little VRAM; 18k of context would fit"
    assert judge(LLAMA3_8B, machine).largest_context_tokens == 8192  # its own limit


HERE = Machine(
    "this machine", 24 * GIGABYTE, 64 * GIGABYTE, 20 * GIGABYTE, 30 * GIGABYTE, 100 * GIGABYTE, (8, 0), {"gguf": ""}
)


@pytest.mark.parametrize(
    ("subject", "machine", "kinds"),
    [
        (LLAMA3_8B, HERE, []),
        (LLAMA3_8B, replace(HERE, vram_free_bytes=GIGABYTE), ["free"]),
        (LLAMA3_8B, replace(HERE, runs={"gguf": "pip install 'octonode[llama]'"}), ["engine"]),
        (replace(LLAMA3_8B, format="safetensors"), HERE, ["engine"]),
        (replace(LLAMA3_8B, compute_capability="8.9"), HERE, ["compute_capability"]),
        (replace(LLAMA3_8B, compute_capability="8.0"), HERE, []),
        (replace(LLAMA3_8B, compute_capability="odd"), HERE, []),
        (replace(LLAMA3_8B, missing_bytes=200 * GIGABYTE), HERE, ["disk"]),
        (replace(LLAMA3_8B, known=False), HERE, ["unknown"]),
        (replace(LLAMA3_8B, weights_bytes=500 * GIGABYTE), HERE, ["vram"]),
        (replace(LLAMA3_8B, weights_bytes=500 * GIGABYTE), replace(HERE, vram_bytes=0), ["ram"]),
        (replace(LLAMA3_8B, format="tensorrt"), replace(HERE, vram_bytes=0, runs=None), ["vram"]),
        (replace(LLAMA3_8B, format="safetensors"), replace(HERE, vram_bytes=0, runs=None), []),
        (replace(LLAMA3_8B, format="ctranslate2"), replace(HERE, vram_bytes=0, runs=None), []),
    ],
)
def test_what_blocks_is_named(subject: Subject, machine: Machine, kinds: list[str]) -> None:
    fit = judge(subject, machine)
    assert [block.kind for block in fit.blocks] == kinds
    assert fit.fits == (not kinds)
    assert all(block.words in in_words(fit) for block in fit.blocks)


def test_too_much_context_and_a_fall_back_to_the_processor() -> None:
    assert [block.kind for block in judge(LLAMA3_8B, HERE, 16384).blocks] == ["context"]
    slow = judge(replace(LLAMA3_8B, weights_bytes=25 * GIGABYTE), HERE)
    assert (slow.place, slow.fits, slow.of_bytes) == ("ram", True, 64 * GIGABYTE)


def test_the_edge_tier_is_judged_by_its_memory() -> None:
    edge = tier_machines()[0]
    assert (edge.name, edge.vram_bytes, edge.memory_bytes) == ("edge", 0, EDGE_MEMORY_BYTES)


def test_words_for_sizes() -> None:
    assert [gigabytes(n) for n in (5_100_000_000, 8 * 10**9, 123_456_000_000, 50_000_000)] == [
        "5.1 GB",
        "8 GB",
        "123 GB",
        "0.1 GB",
    ]
    assert [tokens(n) for n in (8192, 131072, 2000, 200_000, 40_960)] == ["8k", "128k", "2000", "195k", "40k"]
    assert (default_context(0), default_context(2048), default_context(131072)) == (8192, 2048, 8192)


SHAPES = st.builds(
    Shape,
    parameters=st.integers(0, 10**12),
    layers=st.integers(0, 200),
    vocab=st.integers(0, 300_000),
    embedding=st.integers(0, 20_000),
    state_bytes=st.integers(0, 10**9),
    caches=st.lists(
        st.builds(
            CacheGroup, st.integers(1, 200), st.integers(0, 8192), st.integers(0, 8192), st.sampled_from([0, 128, 4096])
        ),
        max_size=3,
    ).map(tuple),
)


@given(
    SHAPES, st.integers(1, 10**12), st.integers(1, 2**20), st.sampled_from(["gguf", "safetensors", "onnx", "tensorrt"])
)
def test_more_context_never_needs_less_and_every_answer_has_words(
    shape: Shape, weights_bytes: int, context: int, model_format: str
) -> None:
    subject = Subject("m", model_format, weights_bytes, weights_bytes, 2**20, shape=shape)
    assert cache_bytes(subject, context) <= cache_bytes(subject, context + 4096)
    for machine in (HERE, *tier_machines()):
        fit = judge(subject, machine, context)
        assert in_words(fit).startswith("needs ")
        assert 0 <= fit.largest_context_tokens <= 2**20
        if fit.need.total_bytes > fit.of_bytes:
            assert fit.blocks
            assert fit.largest_context_tokens < context + 256


@given(SHAPES, st.integers(0, 2**47))
def test_claims_survive_the_manifest(shape: Shape, weights_bytes: int) -> None:
    info = FormatInfo("gguf", shape=shape, weights_bytes=weights_bytes)
    assert shape_from(ext_of(info)) == (shape, weights_bytes)
    assert requirements_of(info).vram_bytes >= weights_bytes


def test_the_golden_vectors() -> None:
    path = Path(__file__).parents[2] / "protocols" / "vectors" / "needs.json"
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        shape, weights_bytes = shape_from(case["ext"])
        subject = Subject("m", "gguf", weights_bytes, weights_bytes, shape=shape)
        options = {"parallel": case["parallel"], "cache_type": case["cache_type"]}
        for place, overhead_bytes in case["overhead_bytes"].items():
            need = need_of(subject, case["context_tokens"], place=place, **options)
            found = (need.weights_bytes, need.cache_bytes, need.overhead_bytes)
            assert found == (case["weights_bytes"], case["cache_bytes"], overhead_bytes), case["name"]
        assert subject.exact == case["exact"]


# -- a real model -------------------------------------------------------------------------------------------------


def _smollm2(path: Path) -> Subject:
    with open(path, "rb") as file:
        return subject_of(sniff(file), "smollm2", path.stat().st_size)


@pytest.mark.model
def test_the_real_model_needs_what_is_computed(smollm2: Path) -> None:
    subject = _smollm2(smollm2)
    assert subject.weights_bytes == 96_576_768
    assert cache_bytes(subject, 2048) == 2048 * 30 * 2 * 192 * 2
    assert need_of(subject, 2048, place="ram").total_bytes == 220_493_056
    assert need_of(subject, 8192, place="ram").total_bytes == 362_050_816


@pytest.mark.model
@pytest.mark.slow
async def test_a_loaded_worker_takes_what_is_computed(smollm2: Path, tmp_path: Path) -> None:
    """Resident memory of the worker at two contexts, within a quarter; and what the longer one adds, within a tenth."""
    subject = _smollm2(smollm2)
    measured = {}
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(EnginesConfig(), directory=tmp_path / "workers")
        await nursery.start(supervisor.run)
        for context in (1024, 8192):
            root = f"root-{context}"
            request = LoadRequest("llama", smollm2, root, context, 1, 1, {"prefill_chunk_tokens": 64})
            supervisor.set_desired({root: request})
            await supervisor.wait_ready(root)
            (status,) = [each for each in supervisor.status() if each.model_root == root]
            measured[context] = psutil.Process(status.pid).memory_info().rss
        nursery.cancel_scope.cancel()
    computed = {context: need_of(subject, context, place="ram").total_bytes for context in measured}
    print(f"computed {computed}, measured {measured}")
    for context, resident in measured.items():
        assert 0.75 <= resident / computed[context] <= 1.25
    added = cache_bytes(subject, 8192) - cache_bytes(subject, 1024)
    assert 0.9 <= (measured[8192] - measured[1024]) / added <= 1.1


@pytest.mark.parametrize(("category", "said"), [("diffusion", False), ("audio", False), ("llm", True)])
def test_a_context_is_spoken_of_where_there_is_one(category: str, said: bool) -> None:
    fit = judge(replace(LLAMA3_8B, category=category), HERE, 4096)
    assert ("context" in in_words(fit)) == said
    assert (fit.context_tokens == 4096) == said
