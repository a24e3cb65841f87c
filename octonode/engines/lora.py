"""LoRA adapters of the settings: which of them a model gets, and how they travel to its worker. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from octonode.errors import ConfigError

OPTION: Final = "lora"
"""Of `LoadRequest.options`: what `option_for` gives."""
ADAPTERS_MAX: Final = 8
_BETWEEN, _WITHIN = "\n", "\t"


def option_for(entries: Sequence[str], model_root: str, model_name: str = "") -> str:
    """The option for a model, empty when no entry of `engines.lora` is for it. An entry is MODEL=PATH[:SCALE], MODEL a
    name or a root CID. Raises ConfigError for a bad entry, be it of another model."""
    found = []
    for entry in entries:
        model, path, scale = _parse(entry)
        if model in (model_root, model_name):
            found.append(f"{path}{_WITHIN}{scale!r}")
    if len(found) > ADAPTERS_MAX:
        raise ConfigError(f"engines.lora has more than {ADAPTERS_MAX} adapters for one model")
    return _BETWEEN.join(found)


def files_of(option: object) -> tuple[tuple[Path, float], ...]:
    """(file, scale) of each adapter in an option, () where there is none."""
    lines = str(option or "").split(_BETWEEN)
    pairs = [line.split(_WITHIN) for line in lines if line]
    return tuple((Path(path), float(scale)) for path, scale in pairs)


def _parse(entry: str) -> tuple[str, str, float]:
    model, separator, rest = entry.partition("=")
    path, colon, last = rest.rpartition(":")
    scale = 1.0
    if colon:
        try:
            scale = float(last)
        except ValueError:
            path = rest  # a colon of the path
    else:
        path = rest
    if not (separator and model and path) or not math.isfinite(scale) or _WITHIN in entry or _BETWEEN in entry:
        raise ConfigError(f"engines.lora: {entry!r} is not MODEL=PATH or MODEL=PATH:SCALE")
    if not Path(path).is_absolute():
        raise ConfigError(f"engines.lora: {path!r} must be an absolute path")
    return model, path, scale
