"""GGUF models with llama.cpp, through xllamacpp's server on a unix socket inside the worker.

Why the socket and not the in-process call: only a closed connection cancels a request in prefill. Facts behind each
setting, measured: `protocols/decisions/0005-engine-workers.md`.
"""

from __future__ import annotations

import os
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import trio

from octonode.engines.adapters.base import Output
from octonode.engines.adapters.completions import Completions
from octonode.engines.contract import EngineFacts, Finished, FinishReason, GenerateRequest, LoadRequest
from octonode.engines.slots import Slot
from octonode.errors import ConfigError, OctonodeError

SOCKET_NAME = "llama.sock"
"""Relative to the working directory: an absolute path could be longer than the 107 bytes a unix socket may have."""
TOP_K, MIN_P = 40, 0.05
"""llama.cpp's defaults for what a request cannot say, stated here so that a new version does not change answers."""
_RANDOM_SEED = 0xFFFFFFFF
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class LlamaAdapter:
    """One model in one xllamacpp server."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        _check_file(request.model_path)
        try:
            import xllamacpp
        except ImportError as error:
            raise ConfigError(
                f"the engine llama cannot be imported ({error}); run: pip install 'octonode[llama]'"
            ) from error
        parameters = _parameters(xllamacpp, request)
        try:
            self._server = await trio.to_thread.run_sync(xllamacpp.Server, parameters)
        except (RuntimeError, ValueError) as error:
            raise OctonodeError(
                f"llama.cpp cannot load the model ({error}); is the file whole? try: octonode models verify",
                code="ENGINE_FAILED",
            ) from None
        # The server has put its own handlers there, which would let a worker survive SIGTERM.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._completions = Completions(SOCKET_NAME)
        return await self._facts(xllamacpp, request, parameters)

    async def _facts(self, xllamacpp: Any, request: LoadRequest, parameters: Any) -> EngineFacts:
        listing = await self._completions.get("/v1/models")
        meta = listing["data"][0]["meta"]
        devices = [device["name"] for device in xllamacpp.get_device_info()]
        enabled = [
            part.split("=")[0].strip()
            for part in xllamacpp.get_system_info().split("|")
            if part.strip().endswith("= 1")
        ]
        return EngineFacts(
            engine="llama",
            build=f"xllamacpp {xllamacpp.__version__}",
            backend="cpu" if devices == ["CPU"] else ",".join(devices).lower(),
            instruction_set=" ".join(name.rsplit(" ", 1)[-1] for name in enabled),
            context_tokens=int(meta["n_ctx"]),
            parallel=request.parallel,
            quantization=str(meta.get("ftype", "")),
            flags={
                "n_batch": parameters.n_batch,
                "threads": request.threads,
                "gpu_layers": parameters.n_gpu_layers,
                "top_k": TOP_K,
                "min_p": MIN_P,
            },
        )

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        reason: FinishReason | None = None
        usage: dict[str, Any] | None = None
        async with aclosing(self._completions.stream(_body(request, slot))) as reads:
            async for events in reads:
                for event in events:
                    reason = _read_choice(event, output) or reason
                    usage = event.get("usage") or usage
        if reason is None or usage is None:
            raise OctonodeError("the engine ended its answer without saying why", code="ENGINE_FAILED")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return Finished(reason, usage["prompt_tokens"], usage["completion_tokens"], cached)

    def close(self) -> None:
        pass


def _check_file(path: Path | None) -> None:
    """Tells apart what another try can mend and what not, before a C++ parser sees the file."""
    if path is None:
        raise ConfigError("the engine llama needs a model file")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise OctonodeError(f"the model file cannot be read: {error.strerror}", code="ENGINE_FAILED") from None
    if magic != b"GGUF":
        raise OctonodeError("the model file is not GGUF, whatever its name says", code="FORMAT_REFUSED")


def _parameters(xllamacpp: Any, request: LoadRequest) -> Any:
    option = request.options.get
    parameters = xllamacpp.CommonParams()
    parameters.model.path = os.fspath(request.model_path or "")
    parameters.hostnames = [SOCKET_NAME]
    parameters.n_parallel = request.parallel
    parameters.n_ctx = request.context_tokens * request.parallel  # the server divides it by its slots
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = request.threads
    parameters.n_batch = parameters.n_ubatch = max(1, int(option("prefill_chunk_tokens", 64)))
    parameters.n_gpu_layers = int(option("gpu_layers", -1))
    # The server's second cache, in RAM, hands a prompt to any later request that begins alike, whoever asks.
    # Only the slots' own caches stay, which `Slots` keeps apart by scope.
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.slot_prompt_similarity = 0.0
    parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    parameters.verbosity = 1  # errors
    parameters.ui = False
    parameters.endpoint_slots = False
    return parameters


def _body(request: GenerateRequest, slot: Slot) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": list(request.messages),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": TOP_K,
        "min_p": MIN_P,
        "seed": _RANDOM_SEED if request.seed is None else request.seed % _RANDOM_SEED,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "cache_prompt": slot.reuse,
        "id_slot": slot.index,
    }
    if request.stop:
        body["stop"] = list(request.stop)
    return body


def _read_choice(event: dict[str, Any], output: Output) -> FinishReason | None:
    """Puts out what one event holds; the finish reason in the event that has it."""
    progress = event.get("prompt_progress")
    if progress is not None:
        output.prefill(progress["processed"], progress["total"])
        return None
    choices = event.get("choices")
    if not choices:
        return None
    content = choices[0]["delta"].get("content")
    if content:
        output.pieces([content])
    finish = choices[0].get("finish_reason")
    return None if finish is None else _FINISH.get(finish, "stop")
