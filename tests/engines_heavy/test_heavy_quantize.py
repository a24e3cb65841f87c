"""The quantizing child with llama.cpp and torch: SmolLM2 in each kind of GGUF, FP16 and FP8 of SafeTensors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
import trio
from safetensors.torch import load_file, save_file

from octonode.engines.quantizing import child, safetensors
from octonode.engines.quantizing.job import Job, Made, ratios
from octonode.errors import OctonodeError
from octonode.models.adding import collect
from octonode.models.inspecting import inspect_paths

PATIENCE_SECONDS = 600
"""Two perplexities on one thread take half a minute on a quiet machine."""
pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.timeout(PATIENCE_SECONDS + 60)]

WEIGHTS = 134_515_008
"""Of SmolLM2 135M."""
BuiltModel = Callable[[str], Path]


def job_for(source: Path, target: Path, model_format: str, kind: str, category: str = "llm", **more: object) -> Job:
    target.mkdir(parents=True)
    files = tuple(name for name, _ in collect(source)) if source.is_dir() else ()
    return Job(
        model_format, kind, str(source), str(target), category, files=files, file_bytes_max=2**30, parent=os.getpid(),
        **more,
    )  # fmt: skip


def run(job: Job) -> Made:
    """In the child, sandboxed as the daemon starts it."""

    async def make() -> Made:
        with trio.fail_after(PATIENCE_SECONDS):
            return await child.make(
                job, python="", directory=Path(job.target).with_name("work"), threads=1, memory_bytes_max=0,
                tell=lambda said: None,
            )  # fmt: skip

    return trio.run(make)


@pytest.fixture(scope="module")
def f16(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return run(job_for(smollm2, tmp_path_factory.mktemp("f16") / "made", "gguf", "F16", measure=False))


def test_gguf_is_unpacked_to_16_bits(f16: Made) -> None:
    assert f16.weights == WEIGHTS
    assert ratios(f16.bytes, f16.weights)[1] == pytest.approx(1.0, abs=0.01)
    assert f16.quality.reason == "not asked for"
    assert inspect_paths(collect(Path(f16.path))).quantization == "F16"


def test_gguf_becomes_smaller_and_its_perplexity_is_measured(smollm2: Path, tmp_path: Path) -> None:
    """A small model has much in its table of words, which keeps more bits, and Q4_K wants rows of 256."""
    made = run(job_for(smollm2, tmp_path / "made", "gguf", "Q4_K_M"))
    assert ratios(made.bytes, made.weights)[1] == pytest.approx(0.39, abs=0.01)
    assert inspect_paths(collect(Path(made.path))).quantization == "Q4_K_M"
    quality = made.quality
    assert quality.measure == "perplexity"
    assert 5 < quality.parent < 50
    assert math.isfinite(quality.value)
    assert 0 < quality.value / quality.parent - 1 < 0.15, "20.5 -> 21.9"


def test_gguf_of_8_bits(smollm2: Path, tmp_path: Path) -> None:
    made = run(job_for(smollm2, tmp_path / "made", "gguf", "Q8_0", measure=False))
    assert ratios(made.bytes, made.weights)[1] == pytest.approx(0.54, abs=0.01)
    assert inspect_paths(collect(Path(made.path))).quantization == "Q8_0"


def test_gguf_of_16_bits_becomes_one_of_4(f16: Made, tmp_path: Path) -> None:
    made = run(job_for(Path(f16.path), tmp_path / "made", "gguf", "Q4_0", measure=False))
    assert (made.parent_bytes, made.weights) == (f16.bytes, WEIGHTS)
    assert ratios(made.bytes, made.weights)[1] == pytest.approx(0.34, abs=0.02)


def test_safetensors_of_a_language_model_become_fp16(built_model: BuiltModel, tmp_path: Path) -> None:
    folder = built_model("smollm2-safetensors")
    made = run(job_for(folder, tmp_path / "made", "safetensors", "FP16"))
    assert ratios(made.bytes, made.weights)[1] == pytest.approx(1.0, abs=0.01), "the parent has 16 bits as well"
    assert abs(made.quality.value / made.quality.parent - 1) < 0.001
    info = inspect_paths(collect(tmp_path / "made"))
    assert (info.quantization, info.category) == ("F16", "llm")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert "float16" in (config.get("dtype"), config.get("torch_dtype"))


def test_safetensors_of_embeddings_become_half_as_large(built_model: BuiltModel, tmp_path: Path) -> None:
    made = run(job_for(built_model("minilm-safetensors"), tmp_path / "made", "safetensors", "FP16", "embeddings"))
    assert made.bytes / made.parent_bytes == pytest.approx(0.5, abs=0.01)
    assert made.quality.measure == "cosine"
    assert made.quality.value > 0.9999


def test_fp8_is_refused_where_nothing_computes_in_it(built_model: BuiltModel, tmp_path: Path) -> None:
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9):
        made = run(job_for(built_model("smollm2-safetensors"), tmp_path / "made", "safetensors", "FP8"))
        assert made.quality.value / made.quality.parent - 1 < 0.1
        return
    with pytest.raises(OctonodeError, match="FP8 is computed by NVIDIA GPUs") as caught:
        run(job_for(built_model("smollm2-safetensors"), tmp_path / "made", "safetensors", "FP8"))
    assert caught.value.code == "UNSUPPORTED"


def test_fp8_has_a_scale_for_each_row_in_the_format_that_vllm_reads(
    built_model: BuiltModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arithmetic on a processor, past the check of the hardware; how a GPU computes with it is not run here."""
    monkeypatch.setattr(safetensors, "_require_fp8", lambda folder, job: None)
    folder = built_model("smollm2-safetensors")
    made = safetensors.quantize(
        job_for(folder, tmp_path / "made", "safetensors", "FP8", threads=1), lambda stage, done, total: None
    )
    (shard,) = (tmp_path / "made").glob("*.safetensors")
    tensors, before = load_file(shard), load_file(folder / shard.name)
    name = "model.layers.0.self_attn.q_proj.weight"
    weight, scale = tensors[name], tensors[f"{name}_scale"]
    assert weight.dtype == torch.float8_e4m3fn
    assert scale.shape == (weight.shape[0], 1)
    assert torch.allclose(weight.float() * scale.float(), before[name].float(), rtol=0.07, atol=1e-3)
    assert "model.embed_tokens.weight_scale" not in tensors
    config = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"], config["ignore"]) == (
        "compressed-tensors", "float-quantized", ["lm_head"],
    )  # fmt: skip
    assert ratios(made.bytes, made.weights)[1] < 0.65
    assert abs(made.quality.value / made.quality.parent - 1) < 0.1
    info = inspect_paths(collect(tmp_path / "made"))
    assert (info.quantization, info.compute_capability) == ("fp8 compressed-tensors", "8.9")
    assert "Paris" in said_by(tmp_path / "made"), "another library reads it as it is meant"


def said_by(folder: Path) -> str:
    """The answer of a model that transformers and compressed-tensors open."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.float8_e4m3fn
    question = [{"role": "user", "content": "What is the capital of France?"}]
    given = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        answer = model.generate(**given, max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(answer[0][given["input_ids"].shape[1] :]))


def test_shards_and_their_index_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    parts = {f"model-0000{n}-of-00002.safetensors": {f"t{n}": torch.full((4, 4), float(n))} for n in (1, 2)}
    for name, tensors in parts.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 128}, "weight_map": {"t1": next(iter(parts)), "t2": list(parts)[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    run(job_for(folder, tmp_path / "made", "safetensors", "FP16", "other"))
    said = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())
    assert said == {"metadata": {"total_size": 64}, "weight_map": index["weight_map"]}
    inspect_paths(collect(tmp_path / "made"))


def test_numbers_that_16_bits_do_not_hold_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    save_file({"t": torch.tensor([[1.0, 1e6]])}, file, metadata={"format": "pt"})
    with pytest.raises(OctonodeError, match="beyond 65504") as caught:
        run(job_for(file, tmp_path / "made", "safetensors", "FP16", "other"))
    assert caught.value.code == "UNSUPPORTED"
