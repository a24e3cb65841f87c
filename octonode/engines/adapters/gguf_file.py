"""What every adapter for GGUF files makes sure of before a C++ parser sees one."""

from __future__ import annotations

from pathlib import Path

from octonode.errors import ConfigError, OctonodeError


def check_gguf(path: Path | None, engine: str) -> Path:
    """The path. Tells apart what another try can mend (ENGINE_FAILED) and what not (FORMAT_REFUSED, CONFIG)."""
    if path is None:
        raise ConfigError(f"the engine {engine} needs a model file")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise OctonodeError(f"the file {path.name} cannot be read: {error.strerror}", code="ENGINE_FAILED") from None
    if magic != b"GGUF":
        raise OctonodeError(f"the file {path.name} is not GGUF, whatever its name says", code="FORMAT_REFUSED")
    return path


def check_lora(path: Path, engine: str) -> Path:
    """The path of an adapter. Raises ConfigError when it is not there or no GGUF: trying again cannot help."""
    try:
        return check_gguf(path, engine)
    except OctonodeError as error:
        raise ConfigError(f"engines.lora: {error.message}") from None


def broken_numbers() -> OctonodeError:
    """For logits that are no numbers."""
    return OctonodeError(
        "the model computes no numbers (NaN): its file, or a LoRA adapter, is damaged; try: octonode models verify",
        code="ENGINE_FAILED",
    )
