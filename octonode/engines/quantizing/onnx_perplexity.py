"""How well an ONNX language model foresees the text that comes with octonode. Runs in the quantizing child alone.

As that of GGUF is taken: windows of one text, each from a fresh start, of which the second half is counted.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from octonode.engines.quantizing.english import ENGLISH
from octonode.errors import OctonodeError

WINDOW_TOKENS: Final = 256
WINDOWS_MAX: Final = 4
_KNOWN: Final = ("input_ids", "attention_mask", "position_ids")


def perplexity(session: Any, tokenizer_json: Path) -> float:
    """Raises UNSUPPORTED for a graph that asks for more than tokens, their mask, places and a cache."""
    import numpy as np
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(tokenizer_json)).encode(ENGLISH, add_special_tokens=False).ids
    total, counted = 0.0, 0
    for start in range(0, min(len(tokens) - 1, WINDOWS_MAX * WINDOW_TOKENS), WINDOW_TOKENS):
        window = np.array([tokens[start : start + WINDOW_TOKENS]], dtype=np.int64)
        logits = session.run(["logits"], _feeds(session, window))[0][0].astype(np.float64)
        half = window.shape[1] // 2
        rows = logits[half - 1 : -1]
        highest = rows.max(axis=1)
        chances = rows[np.arange(len(rows)), window[0, half:]] - highest
        total -= float((chances - np.log(np.exp(rows - highest[:, None]).sum(axis=1))).sum())
        counted += len(rows)
    mean = total / max(1, counted)
    if not counted or not math.isfinite(mean):
        raise OctonodeError("the model computes no numbers (NaN) for the text", code="ENGINE_FAILED")
    return math.exp(min(mean, 700.0))


def _feeds(session: Any, window: Any) -> dict[str, Any]:
    """An empty cache, and the window as the graph wants it."""
    import numpy as np

    places = np.arange(window.shape[1], dtype=np.int64)[None]
    plain = {"input_ids": window, "attention_mask": np.ones_like(window), "position_ids": places}
    feeds = {}
    for each in session.get_inputs():
        if each.name in _KNOWN:
            feeds[each.name] = plain[each.name]
        elif len(each.shape) == 4 and "past" in each.name and all(isinstance(each.shape[axis], int) for axis in (1, 3)):
            kind = np.float16 if "float16" in each.type else np.float32
            feeds[each.name] = np.zeros((1, each.shape[1], 0, each.shape[3]), dtype=kind)
        else:
            raise OctonodeError(f"the graph asks for {each.name[:64]!r} as well", code="UNSUPPORTED")
    return feeds
