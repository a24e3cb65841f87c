"""GGUF models with llama.cpp, through xllamacpp's server on a unix socket inside the worker.

Why the socket and not the in-process call: only a closed connection cancels a request in prefill. Facts behind each
setting, measured: `protocols/decisions/0005-engine-workers.md`, `0019-llama-backends.md`.
"""

from __future__ import annotations

import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import trio

from octonode.engines import lora
from octonode.engines.adapters import chunking
from octonode.engines.adapters.base import Output
from octonode.engines.adapters.completions import Completions
from octonode.engines.adapters.gguf_file import check_gguf
from octonode.engines.adapters.llama_answers import MIN_P, RAW_PATH, TOP_K, AnswerReader, question, speed_of
from octonode.engines.adapters.llama_parameters import guessed_tokens, server_parameters
from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest
from octonode.engines.slots import Slot
from octonode.errors import ConfigError, OctonodeError

SOCKET_NAME = "llama{}.sock"
"""Relative to the working directory: an absolute path could be longer than the 107 bytes a unix socket may have."""
PROBE_CHUNKS = 2
"""Length of the prompt by which the speed is measured."""


class LlamaAdapter:
    """One model in one xllamacpp server."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        path = check_gguf(request.model_path, "llama")
        try:
            import xllamacpp
        except ImportError as error:
            raise ConfigError(
                f"the engine llama cannot be imported ({error}); run: pip install 'octonode[llama]'"
            ) from error
        on_gpu = any(device["name"] != "CPU" for device in xllamacpp.get_device_info())
        chosen = int(request.options.get("prefill_chunk_tokens", 0))
        chunk = chosen or chunking.first_chunk(path.stat().st_size, request.threads, on_gpu)
        speed = await self._start(xllamacpp, request, chunk, 0)
        if not chosen and chunking.worth_another_load(chunk, speed):
            chunk = chunking.chunk_tokens(speed)
            del self._server  # ends it: two of them could be more than there is memory
            await self._start(xllamacpp, request, chunk, 1)
        return await self._facts(xllamacpp, request, max(chunk, request.parallel))

    async def _start(self, xllamacpp: Any, request: LoadRequest, chunk: int, number: int) -> float:
        """Starts the server; prompt tokens a second as it then does them."""
        name = SOCKET_NAME.format(number)
        parameters = server_parameters(xllamacpp, request, name, chunk)
        try:
            self._server: Any = await trio.to_thread.run_sync(xllamacpp.Server, parameters)
        except (RuntimeError, ValueError) as error:
            raise OctonodeError(
                f"llama.cpp cannot load the model ({error}); is the file whole? try: octonode models verify",
                code="ENGINE_FAILED",
            ) from None
        # The server has put its own handlers there, which would let a worker survive SIGTERM.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._completions = Completions(name)
        words = 1 if request.options.get("prefill_chunk_tokens") else PROBE_CHUNKS * chunk
        prompt = " ".join(["the"] * min(words, request.context_tokens // 2))
        body = {"prompt": prompt, "max_tokens": 1, "logprobs": 1, "cache_prompt": False, "id_slot": 0}
        return speed_of(await self._completions.post(RAW_PATH, body))

    async def _facts(self, xllamacpp: Any, request: LoadRequest, chunk: int) -> EngineFacts:
        listing = await self._completions.get("/v1/models")
        meta = listing["data"][0]["meta"]
        devices = [device["name"] for device in xllamacpp.get_device_info()]
        enabled = [
            part.split("=")[0].strip()
            for part in xllamacpp.get_system_info().split("|")
            if part.strip().endswith("= 1")
        ]
        self._guesses = guessed_tokens(request, chunk)
        return EngineFacts(
            engine="llama",
            build=f"xllamacpp {xllamacpp.__version__}",
            backend="cpu" if devices == ["CPU"] else ",".join(devices).lower(),
            instruction_set=" ".join(name.rsplit(" ", 1)[-1] for name in enabled),
            context_tokens=int(meta["n_ctx"]),
            parallel=request.parallel,
            quantization=str(meta.get("ftype", "")),
            flags={
                "n_batch": chunk,
                "threads": request.threads,
                "gpu_layers": int(request.options.get("gpu_layers", -1)),
                "top_k": TOP_K,
                "min_p": MIN_P,
                "lora": len(lora.files_of(request.options.get(lora.OPTION))),
                "speculation_tokens": self._guesses,
            },
        )

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        if request.logprobs and self._guesses:
            raise OctonodeError(
                "this engine knows no probabilities of tokens that it guessed ahead; ask a node with"
                " engines.speculation = 'off'",
                code="UNSUPPORTED",
            )
        path, body = question(request, slot)
        answer = AnswerReader(request, output)
        async with aclosing(self._completions.stream(path, body)) as reads:
            async for events in reads:
                for event in events:
                    answer.read(event)
        usage = answer.usage
        if answer.reason is None or usage is None:
            raise OctonodeError("the engine ended its answer without saying why", code="ENGINE_FAILED")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return Finished(answer.reason, usage["prompt_tokens"], usage["completion_tokens"], cached)

    def close(self) -> None:
        pass
