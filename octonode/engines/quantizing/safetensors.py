"""SafeTensors to FP16, and FP8 where the hardware can. Imports torch; runs in the quantizing child alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from octonode.engines.quantizing.job import Job, Made, Quality, Tell
from octonode.errors import OctonodeError

FP8_CAPABILITY = (8, 9)


def quantize(job: Job, tell: Tell) -> Made:
    """Each shard after the other, so that one of them is in memory at a time. Raises UNSUPPORTED with the reason."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    kind = torch.float16 if job.kind == "FP16" else _fp8(torch)
    source, target = Path(job.source), Path(job.target)
    shards = sorted(source.glob("*.safetensors"))
    weights = size_bytes = parent_bytes = 0
    for number, shard in enumerate(shards):
        tell("weights", number, len(shards))
        tensors = {}
        with safe_open(shard, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                tensor = opened.get_tensor(name)
                weights += tensor.numel()
                tensors[name] = tensor.to(kind) if tensor.is_floating_point() and tensor.dim() > 1 else tensor
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
        parent_bytes += shard.stat().st_size
        size_bytes += (target / shard.name).stat().st_size
    tell("weights", len(shards), len(shards))
    for beside in source.iterdir():
        if beside.is_file() and beside.suffix != ".safetensors":
            shutil.copyfile(beside, target / beside.name)
    _note(target / "config.json", job.kind)
    quality = Quality(reason="rounding to 16 bits; not measured" if job.kind == "FP16" else "measured by serving it")
    return Made(str(target), parent_bytes, size_bytes, weights, quality)


def _fp8(torch: object) -> object:
    """The type. Raises UNSUPPORTED where no GPU here computes in it: nothing could be told of its quality."""
    cuda = torch.cuda  # type: ignore[attr-defined]
    if not cuda.is_available():
        raise OctonodeError(
            "FP8 needs an NVIDIA GPU of compute capability 8.9 or above, and there is no GPU here; try Q8_0 of the GGUF,"
            ' or serve it with vllm.quantization = "fp8" on a machine that has one',
            code="UNSUPPORTED",
        )
    capability = cuda.get_device_capability()
    if capability < FP8_CAPABILITY:
        has = ".".join(map(str, capability))
        raise OctonodeError(
            f"FP8 needs compute capability 8.9 or above, and the GPU here has {has}; try FP16", code="UNSUPPORTED"
        )
    return torch.float8_e4m3fn  # type: ignore[attr-defined]


def _note(config: Path, kind: str) -> None:
    if kind == "FP16" and config.is_file():
        said = json.loads(config.read_text(encoding="utf-8"))
        said["torch_dtype"] = said["dtype"] = "float16"
        config.write_text(json.dumps(said, indent=1), encoding="utf-8")
