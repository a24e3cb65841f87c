"""What rounding SafeTensors costs: perplexity, or cosines of embeddings. Imports torch and transformers.

One model is in memory: the parent, measured, and then with the new weights, as precise as they are kept, in place of
its own. So FP8 is measured by its weights; activations are rounded as well where it is served.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from octonode.engines.quantizing import comparing
from octonode.engines.quantizing.english import ENGLISH
from octonode.engines.quantizing.job import Job, Quality

WINDOW_TOKENS: Final = 512
WINDOWS_MAX: Final = 2
"""Of the text over which perplexity is taken: on a processor torch needs seconds for each."""
SCALE: Final = "_scale"


def measured(job: Job, target: Path) -> Quality:
    """Of the model in `target` against the one in `job.source`."""
    if job.category not in ("llm", "embeddings") or not job.files:
        return Quality(reason=f"nothing is measured for SafeTensors of category {job.category}")
    import torch
    import transformers

    torch.set_num_threads(max(1, job.threads))
    source = Path(job.source)
    kind = transformers.AutoModelForCausalLM if job.category == "llm" else transformers.AutoModel
    choice = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **choice)
        model = kind.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **choice).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        return Quality(reason=f"transformers cannot open the parent: {type(error).__name__}: {error}"[:300])
    with torch.inference_mode():
        if job.category == "embeddings":
            pooling = comparing.pooling_of(source)
            before = _embeddings(model, tokenizer, pooling)
            _replace(model, target, job.files)
            return comparing.cosines(before, _embeddings(model, tokenizer, pooling))
        parent = _perplexity(model, tokenizer)
        _replace(model, target, job.files)
        value = _perplexity(model, tokenizer)
    if not (math.isfinite(parent) and math.isfinite(value)):
        return Quality(reason="the perplexity is no number")
    return Quality("perplexity", parent, value)


def _perplexity(model: Any, tokenizer: Any) -> float:
    """As that of GGUF is taken: windows of one text, each from a fresh start, of which the second half is counted."""
    ids = tokenizer(ENGLISH, return_tensors="pt").input_ids[0]
    windows = [ids[start : start + WINDOW_TOKENS] for start in range(0, WINDOWS_MAX * WINDOW_TOKENS, WINDOW_TOKENS)]
    losses = []
    for window in windows:
        if len(window) < 2:
            continue
        counted = window.clone()
        counted[: len(window) // 2] = -100  # what transformers leaves out
        losses.append(float(model(input_ids=window[None], labels=counted[None]).loss))
    return math.exp(min(sum(losses) / len(losses), 100.0))


def _embeddings(model: Any, tokenizer: Any, pooling: str) -> list[Any]:
    outputs = (model(**tokenizer(each, return_tensors="pt")) for each in comparing.SENTENCES)
    return [comparing.pooled(each.last_hidden_state, pooling) for each in outputs]


def _replace(model: Any, target: Path, files: tuple[str, ...]) -> None:
    """Puts the weights of `target` into the model, scales applied. Names that it does not have are passed over."""
    own = dict(model.named_parameters())
    prefix = f"{model.base_model_prefix}."
    for name, tensor in _weights(target, files):
        parameter = own.get(name, own.get(name.removeprefix(prefix), own.get(f"{prefix}{name}")))
        if parameter is not None and parameter.shape == tensor.shape:
            parameter.copy_(tensor)


def _weights(target: Path, files: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    import torch
    from safetensors import safe_open

    for shard in files:
        if not shard.endswith(".safetensors"):
            continue
        with safe_open(target / shard, framework="pt") as opened:
            names = set(opened.keys())
            for name in names:
                tensor = opened.get_tensor(name)
                if f"{name}{SCALE}" in names:
                    tensor = tensor.to(torch.float32) * opened.get_tensor(f"{name}{SCALE}").to(torch.float32)
                yield name, tensor
