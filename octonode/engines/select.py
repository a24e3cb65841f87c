"""Which engine runs a model, with how many threads: the rules between a model file, the settings and the machine."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from octonode.config import EnginesConfig, nearest
from octonode.engines import lora
from octonode.engines.contract import LoadRequest
from octonode.engines.servers.attached import URL_OPTION, url_for
from octonode.errors import ConfigError, OctonodeError
from octonode.hardware.cores import physical_cores
from octonode.protocol.work.skills import CHAT, SKILLS


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine: what it runs, and what has to be installed for it."""

    name: str
    where: Literal["worker", "server"]
    """In a worker process of ours, or as a server of its own that the daemon drives over HTTP."""
    formats: tuple[str, ...]
    categories: tuple[str, ...]
    skills: tuple[str, ...]
    architectures: tuple[str, ...] = ()
    """It runs models whose architecture has one of these in its name; empty: any."""
    module: str = ""
    """The Python module it needs."""
    program: str = ""
    """The program on the path that it needs instead."""
    extra: str = ""
    """What to install: an extra of this package, or words."""
    opens: Literal["file", "folder"] = "folder"
    tested: str = ""
    """How far it was tested, where that is less than on the hardware it is made for."""


ENGINES: Final = (
    EngineRow("llama", "worker", ("gguf",), ("llm",), (CHAT,), (), "xllamacpp", "", "octonode[llama]", "file"),
    EngineRow(
        "llama-cpp-python", "worker", ("gguf",), ("llm",), (CHAT,),
        module="llama_cpp", extra="octonode[llama-cpp-python]", opens="file",
    ),
    EngineRow(
        "vllm", "server", ("safetensors",), ("llm",), (CHAT,), module="vllm", extra="octonode[vllm]",
    ),
    EngineRow(
        "tensorrt-llm", "server", ("tensorrt", "safetensors"), ("llm",), (CHAT,), program="trtllm-serve",
        extra="tensorrt_llm", tested="contract-tested, not yet run on NVIDIA hardware",
    ),
    # runs no format: a model of this node is answered for by a server that runs already (engines.servers)
    EngineRow("openai-server", "server", (), ("llm",), (CHAT,), extra="a server that runs: engines.servers"),
    EngineRow(
        "transformers", "worker", ("safetensors",), ("llm",), (CHAT,),
        module="transformers", extra="octonode[transformers]",
    ),
    EngineRow(
        "onnx-llm", "worker", ("onnx",), ("llm",), (CHAT,), module="onnxruntime_genai", extra="octonode[onnx-llm]",
    ),
    EngineRow(
        "onnx-embeddings", "worker", ("onnx",), ("embeddings",), ("embed",),
        module="onnxruntime", extra="octonode[onnx]",
    ),
    EngineRow(
        "sentence-transformers", "worker", ("safetensors",), ("embeddings",), ("embed",),
        module="sentence_transformers", extra="octonode[embeddings]",
    ),
    EngineRow(
        "rapidocr", "worker", ("onnx",), ("vision",), ("read",), ("PPOCR", "PP-OCR", "RapidOcr"),
        module="rapidocr", extra="octonode[ocr]",
    ),
    EngineRow(
        "onnx-vision", "worker", ("onnx",), ("vision",), ("classify", "detect"),
        module="onnxruntime", extra="octonode[onnx]",
    ),
    EngineRow(
        "silero-vad", "worker", ("onnx",), ("audio",), ("voice_activity",), ("Silero",),
        module="onnxruntime", extra="octonode[onnx]",
    ),
    EngineRow(
        "piper", "worker", ("onnx",), ("audio",), ("speak",), ("Piper", "Vits"),
        module="onnxruntime", extra="octonode[piper]",
    ),
    EngineRow(
        "faster-whisper", "worker", ("ctranslate2",), ("audio",), ("transcribe",),
        module="faster_whisper", extra="octonode[whisper]",
    ),
    EngineRow(
        "transformers-whisper", "worker", ("safetensors",), ("audio",), ("transcribe",), ("Whisper",),
        module="transformers", extra="octonode[transformers]",
    ),
    EngineRow(
        "audioldm", "worker", ("safetensors",), ("audio", "diffusion"), ("sound",), ("AudioLDM",),
        module="diffusers", extra="octonode[diffusion]",
    ),
    EngineRow(
        "diffusers", "worker", ("safetensors",), ("diffusion",), ("image",),
        module="diffusers", extra="octonode[diffusion]",
    ),
    EngineRow(
        "scripted", "worker", ("scripted",),
        ("llm", "embeddings", "vision", "audio", "diffusion", "other"), (CHAT, *SKILLS),
    ),
)  # fmt: skip
"""The default of a kind of model stands before its others."""
BY_NAME: Final = {row.name: row for row in ENGINES}


def engine_for(
    model_format: str,
    configured: str = "auto",
    *,
    category: str = "llm",
    architecture: str = "",
    pythons: Sequence[str] = (),
) -> EngineRow:
    """The engine for a model of this format, category and architecture.

    `configured` is `engines.default`: `auto`, or an engine's name. It holds for the categories that this engine has;
    others are picked as by `auto`. Raises ConfigError when that engine does not run the format, or nothing that runs
    the model is installed, and OctonodeError UNSUPPORTED when no engine here ever runs it.
    """
    if configured == "scripted":  # it reads nothing of a model
        return BY_NAME["scripted"]
    rows = [row for row in ENGINES if _runs(row, model_format, category, architecture)]
    wanted = BY_NAME.get(configured)
    if not rows:
        raise OctonodeError(_unsupported(model_format, category, architecture), code="UNSUPPORTED")
    if configured not in ("auto", "") and (wanted is None or category in wanted.categories):
        if wanted not in rows:
            text = f"engines.default = {configured!r} does not run {model_format}; use auto or {rows[0].name}"
            raise ConfigError(text)
        rows = [wanted]
    for row in rows:
        if installed(row, pythons):
            return row
    raise ConfigError(_missing(rows[0]))


def _runs(row: EngineRow, model_format: str, category: str, architecture: str) -> bool:
    if model_format not in row.formats or category not in row.categories:
        return False
    return not row.architectures or any(mark.lower() in architecture.lower() for mark in row.architectures)


def _unsupported(model_format: str, category: str, architecture: str) -> str:
    known = ", ".join(sorted({f"{each}" for row in ENGINES for each in row.formats}))
    what = f"{model_format!r} models of category {category}" + (f" ({architecture})" if architecture else "")
    return f"no engine here runs {what}; formats that are run: {known}. See: octonode engines"


def _missing(row: EngineRow) -> str:
    needs = row.module or row.program
    return f"the engine {row.name} needs {needs}, which is not installed; run: pip install '{row.extra}'"


def installed(row: EngineRow, pythons: Sequence[str] = ()) -> bool:
    """Whether what it needs is there. Imports none of it; what another interpreter has is believed."""
    if python_for(row.name, pythons):
        return True
    if row.program:
        return shutil.which(row.program) is not None
    return not row.module or importlib.util.find_spec(row.module) is not None


def python_for(engine: str, pythons: Sequence[str]) -> str:
    """The interpreter that `engines.pythons` gives an engine; empty: none. Raises ConfigError for a bad entry."""
    for entry in pythons:
        name, separator, path = entry.partition("=")
        if not separator or name not in BY_NAME:
            raise ConfigError(f"engines.pythons: {entry!r} is not ENGINE=PATH{nearest(name, BY_NAME)}")
        if name == engine:
            return path
    return ""


def require_engine(configured: str) -> None:
    """Raises ConfigError for an `engines.default` that is no engine at all, before anything is started with it."""
    names = {"auto": (), **BY_NAME}
    if configured and configured not in names:
        raise ConfigError(f"there is no engine {configured!r}{nearest(configured, names)} (--engine, engines.default)")


def available_engines(pythons: Sequence[str] = ()) -> tuple[str, ...]:
    """Engines whose libraries are installed, for `status` and the announcement. Imports none of them."""
    return tuple(row.name for row in ENGINES if row.formats and installed(row, pythons))


def default_threads() -> int:
    """One less than the physical cores this process may use, at least 1: llama.cpp collapses when its threads wait."""
    return max(1, physical_cores() - 1)


def load_request(
    settings: EnginesConfig,
    *,
    model_root: str,
    model_path: Path | None,
    model_format: str,
    context_tokens_max: int = 0,
    category: str = "llm",
    architecture: str = "",
    model_folder: Path | None = None,
    model_name: str = "",
) -> LoadRequest:
    """What the supervisor is asked to load, from the settings and one model.

    `context_tokens_max` is the model's own limit, 0 when unknown. `model_folder` is what engines open that want the
    files beside the weights too. `engines.servers` may name a server for the model, by its name or root. Raises what
    `engine_for` raises.
    """
    url = url_for(settings.servers, model_root, model_name)
    row = (
        BY_NAME["openai-server"]
        if url
        else engine_for(
            model_format, settings.default, category=category, architecture=architecture, pythons=settings.pythons
        )
    )
    context = min(settings.context_tokens, context_tokens_max) if context_tokens_max else settings.context_tokens
    options: dict[str, str | int | float | bool] = {"prefill_chunk_tokens": settings.prefill_chunk_tokens}
    if row.name in ("llama", "llama-cpp-python"):
        options["speculation"] = settings.speculation
        options[lora.OPTION] = lora.option_for(settings.lora, model_root, model_name)
    if row.name == "scripted":
        options["tokens_per_second"] = settings.scripted_tokens_per_second
        options["answer_tokens"] = settings.scripted_answer_tokens
    if url:
        options[URL_OPTION] = url
    return LoadRequest(
        engine=row.name,
        model_path=model_folder if row.opens == "folder" and model_folder is not None else model_path,
        model_root=model_root,
        context_tokens=context,
        parallel=max(1, settings.parallel),
        threads=settings.threads or default_threads(),
        options=options,
        category=category,
    )
