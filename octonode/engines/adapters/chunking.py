"""How many prompt tokens an engine takes in at a time: so few that running streams hardly wait for them. Pure."""

from __future__ import annotations

CHUNK_TOKENS_MIN = 16
"""Below it a step costs more than the tokens in it, and a slow machine would never get through a prompt."""
CHUNK_TOKENS_MAX = 2048
CHUNK_SECONDS = 0.12
"""Aimed at. With the step of the running streams that rides along, and with later chunks that take longer than the
first, streams wait 200 ms at most for a newcomer's chunk."""
_SECONDS_MAX = 0.2
_SECONDS_MIN = 0.05
"""Smaller chunks would be slower in all, larger ones are worth loading again for."""
_BYTES_PER_SECOND_AND_THREAD = 15e9
"""Weights that one thread takes part in each second of prefill; measured on AVX2 with 4-bit weights."""
_FIRST_CHUNK_ON_GPU = 512


_STEPS = tuple(step for power in range(4, 12) for step in (1 << power, 3 << (power - 1)) if step <= CHUNK_TOKENS_MAX)
"""16, 24, 32, 48, ...: few, so that two loads of one model mostly compute alike."""


def chunk_tokens(prefill_tokens_per_second: float, target_seconds: float = CHUNK_SECONDS) -> int:
    """The largest chunk that takes no more than about `target_seconds` at a measured speed, within the two bounds."""
    assert prefill_tokens_per_second > 0
    wanted = prefill_tokens_per_second * target_seconds * 1.05
    return max((step for step in (*_STEPS, CHUNK_TOKENS_MAX) if step <= wanted), default=CHUNK_TOKENS_MIN)


def first_chunk(model_bytes: int, threads: int, on_gpu: bool) -> int:
    """A guess from the size of the model, before anything is measured; mostly near enough not to load again."""
    if on_gpu:
        return _FIRST_CHUNK_ON_GPU
    return chunk_tokens(_BYTES_PER_SECOND_AND_THREAD * max(1, threads) / max(1, model_bytes))


def worth_another_load(chunk: int, prefill_tokens_per_second: float) -> bool:
    """Whether a chunk that is in use is so far off that the engine shall be loaded again with `chunk_tokens`."""
    seconds = chunk / prefill_tokens_per_second
    too_long = seconds > _SECONDS_MAX and chunk > CHUNK_TOKENS_MIN
    too_short = seconds < _SECONDS_MIN and chunk < CHUNK_TOKENS_MAX
    return (too_long or too_short) and chunk_tokens(prefill_tokens_per_second) != chunk
