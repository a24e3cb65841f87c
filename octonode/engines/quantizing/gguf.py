"""GGUF to F16, Q8_0, Q4_0 and Q4_K_M by llama.cpp. Imports llama-cpp-python; runs in the quantizing child alone."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any, Final

from octonode.engines.quantizing import perplexity
from octonode.engines.quantizing.job import Job, Made, Quality, Tell
from octonode.errors import OctonodeError

MAGIC: Final = b"GGUF"
LAST_WORDS_MAX: Final = 5
"""Errors of the library that are kept for ours."""
_STEP = re.compile(rb"\[\s*(\d+)/\s*(\d+)\]")
"""How llama.cpp says which tensor it is at: `[  12/ 272] blk.1.attn_k.weight`."""
_ERROR_LEVEL = 4


def quantize(job: Job, tell: Tell) -> Made:
    """One file, named after the parent and the kind. A parent of fewer bits is unpacked first, which wins nothing back.

    Raises FORMAT_REFUSED for what is no GGUF, UNSUPPORTED for a model in several files, ENGINE_FAILED with
    llama.cpp's own words.
    """
    import llama_cpp

    source = _only_file(job)
    target = Path(job.target) / f"{_stem(source.stem)}.{job.kind}.gguf"
    with source.open("rb") as file:
        if file.read(4) != MAGIC:
            raise OctonodeError(f"{source.name} is not GGUF, whatever its name says", code="FORMAT_REFUSED")
    log = _Log(llama_cpp, tell)
    kinds = {
        "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
        "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
        "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    }
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = kinds[job.kind]
    parameters.nthread = job.threads
    parameters.allow_requantize = True
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if status != 0 or not target.is_file():
        raise OctonodeError(f"llama.cpp could not make {job.kind} of it: {log.last_words}", code="ENGINE_FAILED")
    quality = _quality(job, source, target, tell)
    return Made(str(target), source.stat().st_size, target.stat().st_size, perplexity.weights_of(target), quality)


def _only_file(job: Job) -> Path:
    source = Path(job.source)
    names = [name for name in job.files if name.endswith(".gguf")] if source.is_dir() else [source.name]
    if len(names) != 1:
        text = f"the model has {len(names)} GGUF files; models of one are made smaller"
        raise OctonodeError(text, code="UNSUPPORTED")
    return source / names[0] if source.is_dir() else source


def _stem(name: str) -> str:
    """Without a kind that it was named after, such as `.Q4_1` or `-F16`."""
    return re.sub(r"[.-](?:B?F16|F32|I?Q\d[A-Z0-9_]*)\Z", "", name, flags=re.IGNORECASE) or name


def _quality(job: Job, source: Path, target: Path, tell: Tell) -> Quality:
    if not job.measure:
        return Quality(reason="not asked for")
    if job.category != "llm":
        return Quality(reason="perplexity is of language models")
    parent = perplexity.perplexity(source, tell=tell, stage="quality of the parent", threads=job.threads)
    value = perplexity.perplexity(target, tell=tell, stage="quality", threads=job.threads)
    return Quality("perplexity", parent, value)


class _Log:
    """Reads the progress out of what llama.cpp logs, and keeps its last errors."""

    def __init__(self, library: Any, tell: Tell) -> None:
        self._errors: list[str] = []

        @library.llama_log_callback  # type: ignore[untyped-decorator]
        def write(level: int, text: bytes, data: Any) -> None:
            found = _STEP.match(text)
            if found:
                tell("weights", int(found[1]), int(found[2]))
            if level == _ERROR_LEVEL:
                self._errors = [*self._errors, text.decode("utf-8", "replace").strip()][-LAST_WORDS_MAX:]

        self._write = write  # the library calls it for as long as it lives
        library.llama_log_set(write, None)

    @property
    def last_words(self) -> str:
        return "; ".join(self._errors)[:500] or "it says nothing"
