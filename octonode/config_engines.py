"""Settings of the engines: those of all, and a section for each that is a server of its own. Read by `config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EnginesConfig:
    default: str = "auto"
    """`auto` picks by the format of the model; else the name of an adapter."""
    threads: int = 0
    """0: one less than the physical cores, at least 1. llama.cpp collapses when threads contend."""
    parallel: int = 4
    context_tokens: int = 2048
    prefill_chunk_tokens: int = 0
    """Prompt tokens taken in at a time; 0: as many as take 120 ms, measured when a model is loaded."""
    speculation: Literal["auto", "off"] = "auto"
    """`auto`: llama.cpp guesses ahead what repeats the prompt, where it is loaded for one or two streams
    (`engines.parallel`). It then cannot tell the probabilities of tokens."""
    lora: tuple[str, ...] = ()
    """MODEL=PATH or MODEL=PATH:SCALE: LoRA adapters (GGUF files) that are added to a model, by its name or root."""
    python: str = ""
    """Interpreter of the workers; empty: ours."""
    pythons: tuple[str, ...] = ()
    """ENGINE=PATH: interpreters of engines in virtual environments of their own, whose versions clash with ours; of
    `tensorrt-llm` the program trtllm-serve."""
    servers: tuple[str, ...] = ()
    """MODEL=URL: a model of this node, by name or root, that a server which runs already answers for (llama-server,
    vLLM, any with OpenAI's API): http://HOST:PORT on this machine or a private network, or unix:/path."""
    memory_bytes_max: int = 0
    """Resident memory at which a worker is ended; 0: nine tenths of the machine's."""
    gpu_memory_bytes_max: int = 0
    """GPU memory, over all GPUs, at which a worker is ended, where the driver tells it; 0: no limit."""
    gpu_memory_reserve_bytes: int = 512 * MIB
    """Left free on each GPU when models are placed."""
    evict_idle_seconds: float = 60.0
    """A model unused for so long may be unloaded for one that is asked for, until it is asked for; 0: never."""
    keep_loaded: tuple[str, ...] = ()
    """References of models that are never unloaded so, as they stand in `models.serve`."""
    load_timeout_seconds: float = 300.0
    no_progress_timeout_seconds: float = 60.0
    crashes_before_quarantine: int = 5
    """In a row; three of them where the engine dies before the model is loaded."""
    scripted_tokens_per_second: float = 0.0
    """Pace of the scripted engine; 0: as fast as it can."""
    scripted_answer_tokens: int = 0
    """Length of all its answers; 0: by the question."""
    measure_seconds: float = 6.0
    """How long a model is measured once it is loaded, before its figures are announced; 0: never by itself."""
    sandbox: bool = True


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """How `python -m vllm.entrypoints.openai.api_server` is started; the interpreter is that of `engines.pythons`."""

    dtype: str = "auto"
    """`auto`, `bfloat16`, `float16`, `float32`."""
    sequences_max: int = 0
    """Requests decoded together (`--max-num-seqs`); 0: `engines.parallel`."""
    gpu_memory_utilization: float = 0.9
    """Part of each GPU's memory that it takes for weights and cache; on a CPU it says nothing."""
    cpu_cache_gib: int = 1
    """Cache for keys and values on a machine without a GPU."""
    tensor_parallel_size: int = 1
    """GPUs that share each layer. Over one machine, or by Ray over several: docs/vllm-ray.md."""
    pipeline_parallel_size: int = 1
    """Groups of layers, one after the other; each has `tensor_parallel_size` GPUs."""
    distributed_executor_backend: Literal["", "mp", "ray"] = ""
    """Empty: as vLLM thinks best."""
    ray_address: str = ""
    """HOST:PORT of the head of a running Ray cluster, for the backend `ray`."""
    quantization: str = ""
    """`fp8`, `awq`, `gptq`, ...; empty: what the model's config.json says."""
    speculative_ngram_tokens: int = 0
    """Tokens guessed at a time from what the prompt repeats; 0: no speculation."""
    enable_prefix_caching: bool = True
    """Prompt caches are reused within one conversation of one asker, and never beyond."""
    enforce_eager: bool = False
    """No compiling and no CUDA graphs: starts sooner, decodes slower. What a CPU wants."""
    cache_directory: str = ""
    """Where compiled kernels stay between starts; empty: they are made anew at each."""
    extra_arguments: tuple[str, ...] = ()
    """Passed on as they are, after all others."""


@dataclass(frozen=True, slots=True)
class TensorRtConfig:
    """How `trtllm-serve` is started, the one on the path or that of `engines.pythons`."""

    backend: str = ""
    """`pytorch`, `tensorrt`, ...; empty: its default."""
    batch_size_max: int = 0
    """Requests decoded together (`--max_batch_size`); 0: `engines.parallel`."""
    batch_tokens_max: int = 0
    """Tokens of one step (`--max_num_tokens`); 0: its default."""
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    expert_parallel_size: int = 0
    """0: its default."""
    free_gpu_memory_fraction: float = 0.9
    """Part of the memory left beside the weights that the cache takes."""
    extra_arguments: tuple[str, ...] = ()
    """Passed on as they are, after all others."""
