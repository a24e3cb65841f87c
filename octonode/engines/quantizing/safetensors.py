"""SafeTensors to FP16, and to FP8 where the hardware can. Imports torch; runs in the quantizing child alone.

FP8 is the scheme "FP8 dynamic" in the format `compressed-tensors`, which vLLM and transformers read: the matrices of a
language model's layers in E4M3 with a scale for each row, activations rounded when it runs, nothing calibrated.
Source: https://docs.vllm.ai/en/latest/features/quantization/fp8.html
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from octonode.engines.quantizing import needs, safetensors_quality
from octonode.engines.quantizing.job import Job, Made, Quality, Tell
from octonode.errors import OctonodeError

SUFFIX: Final = ".safetensors"
SCALE: Final = "_scale"
"""Behind the name of a weight: where its scales are."""
FP8_LAYERS: Final = re.compile(
    r"\.layers\.\d+\..*\.(?:[qkvo]_proj|qkv_proj|(?:gate|up|down|gate_up)_proj|w[123])\.weight\Z"
)
"""Matrices by which layers multiply; embeddings, the head and routers stay as they are."""

Convert = Callable[[str, Any], Mapping[str, Any]]
"""(name, tensor) -> the tensors that stand in its place."""


def quantize(job: Job, tell: Tell) -> Made:
    """Each shard after the other, so that one of them is in memory at a time. Raises UNSUPPORTED with the reason."""
    source, target = Path(job.source), Path(job.target)
    shards = [name for name in job.files if name.endswith(SUFFIX)] if job.files else [source.name]
    folder = source if job.files else source.parent
    if job.kind == "FP8":
        _require_fp8(folder, job)
    convert = to_fp8 if job.kind == "FP8" else to_fp16
    written, weights, parent_bytes = _convert_all(folder, target, shards, convert, tell)
    for name in job.files:
        if name not in shards:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)
    _correct(target, job, written)
    tell("quality", len(shards), len(shards) + 1)
    quality = safetensors_quality.measured(job, target) if job.measure else Quality(reason="not asked for")
    tell("quality", len(shards) + 1, len(shards) + 1)
    size_bytes = sum((target / name).stat().st_size for name in shards)
    return Made(str(target if job.files else target / source.name), parent_bytes, size_bytes, weights, quality)


def _convert_all(
    folder: Path, target: Path, shards: list[str], convert: Convert, tell: Tell
) -> tuple[dict[str, dict[str, int]], int, int]:
    """(shard -> tensor -> its bytes, number of weights, bytes of the parent's shards)."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    written: dict[str, dict[str, int]] = {}
    weights = parent_bytes = 0
    for number, shard in enumerate(shards):
        tell("weights", number, len(shards) + 1)
        tensors: dict[str, Any] = {}
        with safe_open(folder / shard, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                tensor = opened.get_tensor(name)
                weights += tensor.numel()
                tensors |= convert(name, tensor)
        (target / shard).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, target / shard, metadata={"format": "pt"})
        written[shard] = {name: each.numel() * each.element_size() for name, each in tensors.items()}
        parent_bytes += (folder / shard).stat().st_size
    return written, weights, parent_bytes


def to_fp16(name: str, tensor: Any) -> Mapping[str, Any]:
    """Every tensor of numbers with a point. Raises UNSUPPORTED for numbers that 16 bits do not hold."""
    import torch

    if not tensor.is_floating_point():
        return {name: tensor}
    rounded = tensor.to(torch.float16)
    if not torch.isfinite(rounded).all():
        text = f"{name} has numbers beyond 65504, which FP16 does not hold; keep the model as it is (BF16 does)"
        raise OctonodeError(text, code="UNSUPPORTED")
    return {name: rounded.contiguous()}


def to_fp8(name: str, tensor: Any) -> Mapping[str, Any]:
    """A matrix of a layer as E4M3 [out, in] and its scales [out, 1]: weight = number x scale. Others as they are."""
    import torch

    if not is_fp8(name, tensor.dim(), tensor.is_floating_point()):
        return {name: tensor}
    largest = torch.finfo(torch.float8_e4m3fn).max
    numbers = tensor.to(torch.float32)
    scales = numbers.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
    rounded = (numbers / scales).clamp(-largest, largest).to(torch.float8_e4m3fn)
    return {name: rounded.contiguous(), f"{name}{SCALE}": scales.to(tensor.dtype).contiguous()}


def is_fp8(name: str, dimensions: int, numbers: bool) -> bool:
    return dimensions == 2 and numbers and FP8_LAYERS.search(name) is not None


def _require_fp8(folder: Path, job: Job) -> None:
    """Raises UNSUPPORTED where no GPU here computes in it, and for models other than language models."""
    import torch

    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    code, words = needs.problem("safetensors", "FP8", python="here", capability=capability)
    if code:
        raise OctonodeError(words, code=code)
    if job.category != "llm" or not (folder / "config.json").is_file():
        text = "language models with a config.json are made FP8; take FP16 for others"
        raise OctonodeError(text, code="UNSUPPORTED")


def _correct(target: Path, job: Job, written: Mapping[str, Mapping[str, int]]) -> None:
    """What the files beside the weights say of them: types, scheme, and where each tensor lies."""
    for index in target.rglob("*.index.json"):
        _rewrite(index, partial(_indexed, folder=index.parent.relative_to(target), written=written))
    config = target / "config.json"
    if not config.is_file():
        return
    if job.kind == "FP16":
        _rewrite(config, lambda said: {**said, **{key: "float16" for key in ("torch_dtype", "dtype") if key in said}})
        return
    names = {name for tensors in written.values() for name in tensors}
    made = [name for name in names if f"{name}{SCALE}" in names]
    if not made:
        text = "no matrix of a layer was found by its name; FP8 knows models like Llama, Mistral and Qwen: take FP16"
        raise OctonodeError(text, code="UNSUPPORTED")
    _rewrite(config, lambda said: {**said, "quantization_config": scheme(names)})


def _rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    said = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(change(said), indent=2), encoding="utf-8")


def _indexed(said: dict[str, Any], folder: Path, written: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    shards = {shard: written[str(folder / shard)] for shard in set(said.get("weight_map", {}).values())}
    places = {name: shard for shard, tensors in sorted(shards.items()) for name in tensors}
    total = sum(size for tensors in shards.values() for size in tensors.values())
    return {**said, "metadata": {**said.get("metadata", {}), "total_size": total}, "weight_map": places}


def scheme(names: set[str]) -> dict[str, Any]:
    """`quantization_config` of compressed-tensors for these tensors: what is no FP8 among the layers is ignored."""
    ignored = {
        name.removesuffix(".weight")
        for name in names
        if name.endswith(".weight") and f"{name}{SCALE}" not in names and "norm" not in name and "embed" not in name
    }
    symmetric = {"num_bits": 8, "type": "float", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**symmetric, "strategy": "channel", "dynamic": False},
                "input_activations": {**symmetric, "strategy": "token", "dynamic": True},
            }
        },
        "ignore": sorted(ignored | {"lm_head"}),
    }
