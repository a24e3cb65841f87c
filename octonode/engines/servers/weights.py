"""What the files of a model say to whoever starts a server on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

CONFIG_BYTES_MAX: Final = 4 * 1024 * 1024
QUANTIZATION_CHARACTERS_MAX: Final = 64


def quantization_in(folder: Path) -> str:
    """What the model's config.json says of its quantization, else of its numbers; empty when it says nothing."""
    try:
        with (folder / "config.json").open("rb") as file:
            document: Any = json.loads(file.read(CONFIG_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    quantized = document.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    return str(method or document.get("dtype") or document.get("torch_dtype") or "")[:QUANTIZATION_CHARACTERS_MAX]
