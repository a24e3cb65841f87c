"""Which engine runs a model, with how many threads: the rules between a model file, the settings and the machine."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import psutil

from octonode.config import EnginesConfig, nearest
from octonode.engines.contract import LoadRequest
from octonode.errors import ConfigError, OctonodeError

ENGINES_BY_FORMAT: dict[str, tuple[str, ...]] = {
    "gguf": ("llama", "scripted"),
    "scripted": ("scripted",),
}
"""Format of a model -> adapters that run it, the default first."""

_EXTRAS: dict[str, tuple[str, str]] = {"llama": ("xllamacpp", "octonode[llama]")}
"""Adapter -> (the module it needs, the extra that installs it)."""


def engine_for(model_format: str, configured: str = "auto") -> str:
    """The name of the adapter for a model of this format.

    `configured` is `engines.default`: `auto`, or an adapter's name. Raises ConfigError when that adapter does not run
    the format or its library is missing, and OctonodeError UNSUPPORTED when no engine here runs the format.
    """
    candidates = ENGINES_BY_FORMAT.get(model_format)
    if candidates is None:
        known = ", ".join(sorted(ENGINES_BY_FORMAT))
        raise OctonodeError(f"no engine here runs {model_format!r} models; it runs {known}", code="UNSUPPORTED")
    name = candidates[0] if configured in ("auto", "") else configured
    if name not in candidates:
        raise ConfigError(f"engines.default = {name!r} does not run {model_format}; use auto or {candidates[0]}")
    module, extra = _EXTRAS.get(name, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise ConfigError(f"the engine {name} needs {module}, which is not installed; run: pip install '{extra}'")
    return name


def require_engine(configured: str) -> None:
    """Raises ConfigError for an `engines.default` that is no engine at all, before anything is started with it."""
    names = {"auto": (), **{name: () for names in ENGINES_BY_FORMAT.values() for name in names}}
    if configured and configured not in names:
        raise ConfigError(f"there is no engine {configured!r}{nearest(configured, names)} (--engine, engines.default)")


def available_engines() -> tuple[str, ...]:
    """Adapters whose libraries are installed, for `status` and the announcement. Imports none of them."""
    names = dict.fromkeys(name for names in ENGINES_BY_FORMAT.values() for name in names)
    return tuple(name for name in names if name not in _EXTRAS or importlib.util.find_spec(_EXTRAS[name][0]))


def default_threads() -> int:
    """One less than the physical cores this process may use, at least 1: llama.cpp collapses when its threads wait."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed) - 1)


def load_request(
    settings: EnginesConfig, *, model_root: str, model_path: Path | None, model_format: str, context_tokens_max: int = 0
) -> LoadRequest:
    """What the supervisor is asked to load, from the settings and one model.

    `context_tokens_max` is the model's own limit, 0 when unknown. Raises what `engine_for` raises.
    """
    engine = engine_for(model_format, settings.default)
    context = min(settings.context_tokens, context_tokens_max) if context_tokens_max else settings.context_tokens
    options: dict[str, str | int | float | bool] = {"prefill_chunk_tokens": settings.prefill_chunk_tokens}
    if engine == "scripted":
        options["tokens_per_second"] = settings.scripted_tokens_per_second
        options["answer_tokens"] = settings.scripted_answer_tokens
    return LoadRequest(
        engine=engine,
        model_path=model_path,
        model_root=model_root,
        context_tokens=context,
        parallel=max(1, settings.parallel),
        threads=settings.threads or default_threads(),
        options=options,
    )
