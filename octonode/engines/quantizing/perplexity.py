"""How well a GGUF language model foresees a text: its perplexity, by llama.cpp. Runs in the quantizing child alone.

As llama.cpp measures it: windows of the text, each from a fresh start, of which the second half is counted.
"""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path
from typing import Any, Final

from octonode.engines.quantizing.english import ENGLISH
from octonode.engines.quantizing.job import Tell
from octonode.errors import OctonodeError

WINDOW_TOKENS: Final = 512
STEP_TOKENS: Final = 128
"""Computed at a time: the logits of so many tokens over the whole vocabulary are in memory."""
TEXT_BYTES_MAX: Final = 64 * 1024


def perplexity(
    model: Path,
    text: str = ENGLISH,
    *,
    tell: Tell,
    stage: str = "quality",
    threads: int = 1,
    window: int = WINDOW_TOKENS,
) -> float:
    """e to the mean of -log p over the counted tokens: 1 is all foreseen. Blocks, for seconds.

    Raises ENGINE_FAILED when the model cannot be loaded or computes no numbers, UNSUPPORTED for too short a text.
    """
    import llama_cpp

    assert len(text) <= TEXT_BYTES_MAX
    handle = _load(llama_cpp, model)
    context = None
    try:
        context = _open(llama_cpp, handle, threads, window)
        tokens = _tokens(llama_cpp, handle, text)
        windows = len(tokens) // window
        if not windows:
            raise OctonodeError(f"the text has {len(tokens)} tokens, at least {window} are needed", code="UNSUPPORTED")
        total = 0.0
        for number in range(windows):
            tell(stage, number, windows)
            total += _window(llama_cpp, handle, context, tokens[number * window : (number + 1) * window])
        tell(stage, windows, windows)
    finally:
        if context is not None:
            llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(handle)
    mean = total / (windows * (window - window // 2))
    if not math.isfinite(mean):
        raise OctonodeError(f"{model.name} computes no numbers (NaN); is the file whole?", code="ENGINE_FAILED")
    return math.exp(min(mean, 700.0))


def weights_of(model: Path) -> int:
    """Number of its weights. Raises ENGINE_FAILED when it cannot be opened."""
    import llama_cpp

    handle = _load(llama_cpp, model, as_it_is=True)
    count = int(llama_cpp.llama_model_n_params(handle))
    llama_cpp.llama_model_free(handle)
    return count


def _load(library: Any, model: Path, *, as_it_is: bool = False) -> Any:
    """`as_it_is`: mapped, and not packed anew for this processor."""
    library.llama_backend_init()
    parameters = library.llama_model_default_params()
    parameters.use_extra_bufts = not as_it_is
    parameters.n_gpu_layers = 0 if as_it_is else parameters.n_gpu_layers
    handle = library.llama_model_load_from_file(os.fsencode(model), parameters)
    if not handle:
        raise OctonodeError(f"llama.cpp cannot load {model.name}", code="ENGINE_FAILED")
    return handle


def _open(library: Any, handle: Any, threads: int, window: int) -> Any:
    parameters = library.llama_context_default_params()
    parameters.n_ctx = window
    parameters.n_batch = parameters.n_ubatch = STEP_TOKENS
    parameters.n_threads = parameters.n_threads_batch = threads
    context = library.llama_init_from_model(handle, parameters)
    if not context:
        raise OctonodeError("llama.cpp cannot make a context; is there enough memory?", code="ENGINE_FAILED")
    return context


def _tokens(library: Any, handle: Any, text: str) -> list[int]:
    data = text.encode()
    buffer = (ctypes.c_int32 * (len(data) + 8))()
    vocabulary = library.llama_model_get_vocab(handle)
    count = library.llama_tokenize(vocabulary, data, len(data), buffer, len(buffer), False, False)
    return list(buffer[: max(0, count)])


def _window(library: Any, handle: Any, context: Any, tokens: list[int]) -> float:
    """Sum of -log p over the second half of the tokens, each given those before it."""
    vocabulary = library.llama_model_get_vocab(handle)
    size = library.llama_vocab_n_tokens(vocabulary)
    library.llama_memory_clear(library.llama_get_memory(context), True)
    first = library.llama_vocab_bos(vocabulary)
    if first >= 0 and library.llama_vocab_get_add_bos(vocabulary):
        tokens = [first, *tokens[1:]]
    half, total = len(tokens) // 2, 0.0
    batch = library.llama_batch_init(STEP_TOKENS, 0, 1)
    try:
        for start in range(0, len(tokens) - 1, STEP_TOKENS):
            end = min(start + STEP_TOKENS, len(tokens) - 1)
            counted = [position for position in range(start, end) if position + 1 >= half]
            _fill(batch, tokens, start, end, set(counted))
            if library.llama_decode(context, batch) != 0:
                raise OctonodeError("llama.cpp could not compute a step", code="ENGINE_FAILED")
            for position in counted:
                logits = library.llama_get_logits_ith(context, position - start)
                total -= _log_chance(logits, size, tokens[position + 1])
    finally:
        library.llama_batch_free(batch)
    return total


def _fill(batch: Any, tokens: list[int], start: int, end: int, counted: set[int]) -> None:
    batch.n_tokens = end - start
    for row, position in enumerate(range(start, end)):
        batch.token[row] = tokens[position]
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = 0
        batch.logits[row] = position in counted


def _log_chance(logits: Any, size: int, token: int) -> float:
    import numpy as np

    values = np.ctypeslib.as_array(logits, (size,)).astype(np.float64)
    highest = values.max()
    return float(values[token] - highest - np.log(np.exp(values - highest).sum()))
