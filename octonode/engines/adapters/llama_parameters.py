"""The settings of one xllamacpp server, made of a load request. Why each: protocols/decisions/0005 and 0019."""

from __future__ import annotations

import os
from typing import Any

from octonode.engines import lora
from octonode.engines.adapters.gguf_file import check_lora
from octonode.engines.contract import LoadRequest

SPECULATING_PARALLEL_MAX = 2
"""Guessing pays while few streams run, and this server takes it for all requests or none: so it is on where few run."""
SPECULATION_MATCH_TOKENS = 12
"""Tokens that must have come before in the same order; with fewer, wrong guesses cost more than right ones gain."""
SPECULATION_TOKENS_MAX = 16
SPECULATION_TOKENS_MIN = 4


def guessed_tokens(request: LoadRequest, chunk: int) -> int:
    """Tokens guessed ahead by n-grams; 0: none. All slots' guesses must fit in one batch, or the server aborts."""
    if request.options.get("speculation", "off") != "auto" or request.parallel > SPECULATING_PARALLEL_MAX:
        return 0
    room = min(SPECULATION_TOKENS_MAX, chunk // request.parallel - 1)
    return room if room >= SPECULATION_TOKENS_MIN else 0


def server_parameters(xllamacpp: Any, request: LoadRequest, socket_name: str, chunk: int) -> Any:
    """`CommonParams` for a server on this socket that takes `chunk` prompt tokens at a time. Raises ConfigError for
    LoRA adapters that cannot be read."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = os.fspath(request.model_path or "")
    parameters.hostnames = [socket_name]
    parameters.n_parallel = request.parallel
    parameters.n_ctx = request.context_tokens * request.parallel  # the server divides it by its slots
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = request.threads
    parameters.n_batch = parameters.n_ubatch = max(chunk, request.parallel)
    # The server's second cache, in RAM, hands a prompt to any later request that begins alike, whoever asks.
    # Only the slots' own caches stay, which `Slots` keeps apart by scope.
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.slot_prompt_similarity = 0.0
    parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    parameters.verbosity = 1  # errors
    parameters.ui = False
    parameters.endpoint_slots = False
    _place(xllamacpp, parameters, request)
    _adapt(xllamacpp, parameters, request)
    guesses = guessed_tokens(request, chunk)
    if guesses:
        kinds = xllamacpp.common_speculative_type
        parameters.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        parameters.speculative.ngram_simple.size_n = SPECULATION_MATCH_TOKENS
        parameters.speculative.ngram_simple.size_m = guesses
    return parameters


def _place(xllamacpp: Any, parameters: Any, request: LoadRequest) -> None:
    option = request.options.get
    parameters.n_gpu_layers = int(option("gpu_layers", -1))
    parameters.main_gpu = int(option("main_gpu", 0))
    split = tensor_split(request)
    if split:
        parameters.tensor_split = [*split, *[0.0] * (len(parameters.tensor_split) - len(split))]


def tensor_split(request: LoadRequest) -> tuple[float, ...]:
    """Parts of the model for each GPU, of the option `tensor_split`, written as 3,1."""
    return tuple(float(part) for part in str(request.options.get("tensor_split", "")).split(",") if part.strip())


def _adapt(xllamacpp: Any, parameters: Any, request: LoadRequest) -> None:
    adapters = []
    for path, scale in lora.files_of(request.options.get(lora.OPTION)):
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = os.fspath(check_lora(path, "llama")), scale
        adapters.append(info)
    if adapters:
        parameters.lora_adapters = adapters
