"""GGUF files made for tests: a LoRA adapter of random numbers for SmolLM2, and a copy of it that computes NaN."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, RANK = 576, (0, 15, 29), 2


def write_lora(path: Path) -> Path:
    """Small changes to the attention of three layers; enough to change what the model says."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    random = np.random.default_rng(1)
    for layer in LAYERS:
        for name in ("attn_q", "attn_output"):
            left = random.standard_normal((RANK, WIDTH)) / np.sqrt(WIDTH)
            right = random.standard_normal((WIDTH, RANK))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", left.astype(np.float32))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", right.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_nan(model: Path, path: Path) -> Path:
    """A copy whose last scale is NaN, and with it all that the model computes."""
    data = bytearray(model.read_bytes())
    tensor = next(each for each in gguf.GGUFReader(model).tensors if each.name == "output_norm.weight")
    data[tensor.data_offset : tensor.data_offset + tensor.n_bytes] = np.full(WIDTH, np.nan, np.float32).tobytes()
    path.write_bytes(data)
    return path
