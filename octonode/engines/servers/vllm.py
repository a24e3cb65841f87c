"""vLLM as a server of its own: `python -m vllm.entrypoints.openai.api_server` on a unix socket in a private folder.

By its module and not by its command, since that one asks for a distribution named `vllm`, which CPU builds are not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octonode.config_engines import VllmConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.servers.dialects import VLLM, Dialect
from octonode.engines.servers.kinds import Launch, ServerLoad
from octonode.engines.servers.openai_http import Address
from octonode.engines.servers.process import server_environment
from octonode.engines.servers.prometheus import read_values
from octonode.engines.servers.weights import quantization_in
from octonode.errors import ConfigError
from octonode.hardware.cores import physical_cores
from octonode.hardware.devices import NO_GPU

SOCKET_NAME: Final = "http.sock"
MODEL_NAME: Final = "model"
"""As requests call it; no path of ours shows."""
_PREFIXES: Final = ("VLLM_", "NCCL_", "GLOO_", "RAY_")
# a small model that may write space between two fields writes it until its tokens are used up
_SCHEMAS: Final = json.dumps({"backend": "guidance", "disable_any_whitespace": True})
_RUNNING, _WAITING, _CACHE = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
_STEPS = "vllm:iteration_tokens_total_count"


@dataclass(frozen=True, slots=True)
class VllmServer:
    """See `kinds.ServerKind`."""

    settings: VllmConfig
    python: str
    """Of `engines.pythons`; empty: ours."""

    @property
    def name(self) -> str:
        return "vllm"

    @property
    def dialect(self) -> Dialect:
        return VLLM

    @property
    def metrics_path(self) -> str:
        return "/metrics"

    async def launch(self, request: LoadRequest, directory: Path) -> Launch:
        if request.model_path is None:
            raise ConfigError("the engine vllm needs a model folder")
        check_settings(self.settings)
        python = self.python or sys.executable
        if not os.access(python, os.X_OK):
            raise ConfigError(f"{python} cannot be run (vllm=PATH in engines.pythons)")
        return Launch(
            address=Address(socket_path=str(directory / SOCKET_NAME)),
            parallel=self._sequences(request),
            command=(python, "-P", "-m", "vllm.entrypoints.openai.api_server", *self._arguments(request)),
            environment=self._environment(request, directory, python),
            quantization=self.settings.quantization or quantization_in(request.model_path),
            flags={
                "max_num_seqs": self._sequences(request),
                "tensor_parallel": self.settings.tensor_parallel_size,
                "pipeline_parallel": self.settings.pipeline_parallel_size,
                "executor": self.settings.distributed_executor_backend or "auto",
                "ngram_tokens": self.settings.speculative_ngram_tokens,
            },
        )

    def _sequences(self, request: LoadRequest) -> int:
        return self.settings.sequences_max or request.parallel

    def _arguments(self, request: LoadRequest) -> list[str]:
        settings = self.settings
        arguments = [
            *("--model", os.fspath(request.model_path or "")),
            *("--served-model-name", MODEL_NAME),
            *("--uds", SOCKET_NAME),
            *("--dtype", settings.dtype),
            *("--max-model-len", str(request.context_tokens)),
            *("--max-num-seqs", str(self._sequences(request))),
            *("--gpu-memory-utilization", str(settings.gpu_memory_utilization)),
            # a model's own defaults for sampling would change answers unasked
            *("--generation-config", "vllm"),
            *("--structured-outputs-config", _SCHEMAS),
            "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log",
            "--enable-prefix-caching" if settings.enable_prefix_caching else "--no-enable-prefix-caching",
        ]
        for option, size in (
            ("--tensor-parallel-size", settings.tensor_parallel_size),
            ("--pipeline-parallel-size", settings.pipeline_parallel_size),
        ):
            if size > 1:
                arguments += [option, str(size)]
        if settings.distributed_executor_backend:
            arguments += ["--distributed-executor-backend", settings.distributed_executor_backend]
        if settings.quantization:
            arguments += ["--quantization", settings.quantization]
        if settings.speculative_ngram_tokens:
            arguments += ["--speculative-config", _ngram(settings.speculative_ngram_tokens)]
        if settings.enforce_eager:
            arguments.append("--enforce-eager")
        return [*arguments, *settings.extra_arguments]

    def _environment(self, request: LoadRequest, directory: Path, python: str) -> dict[str, str]:
        settings = self.settings
        environment = server_environment(
            os.environ,
            directory,
            threads=request.threads,
            devices=self._devices(request.devices),
            program=python,
            prefixes=_PREFIXES,
        )
        environment.pop("VLLM_API_KEY", None)  # nobody but us reaches the socket
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_cache_gib),
            # by itself it binds threads to all cores, whatever OMP_NUM_THREADS says, and waits for the one that shares
            "VLLM_CPU_NUM_OF_RESERVED_CPU": str(max(0, physical_cores() - request.threads)),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        if settings.cache_directory:
            environment["VLLM_CACHE_ROOT"] = settings.cache_directory
        if settings.distributed_executor_backend == "ray":
            environment["RAY_ADDRESS"] = settings.ray_address
        else:  # one machine: its processes talk over loopback alone
            environment |= {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        return environment

    def _devices(self, chosen: Sequence[str]) -> Sequence[str]:
        """Those that the model was placed on, unless the settings want it on more: then vLLM sees all."""
        wanted = self.settings.tensor_parallel_size * self.settings.pipeline_parallel_size
        return chosen if wanted <= len(chosen) or NO_GPU in chosen else ()

    def read_metrics(self, text: str) -> ServerLoad | None:
        values = read_values(text, (_RUNNING, _WAITING, _CACHE, _STEPS))
        if _RUNNING not in values:
            raise ValueError(f"{_RUNNING} is not in the metrics of vLLM")
        return ServerLoad(
            int(values[_RUNNING]), int(values.get(_WAITING, 0)), values.get(_CACHE), values.get(_STEPS, 0.0)
        )


def check_settings(settings: VllmConfig) -> None:
    """Raises ConfigError for what vLLM would die of after half a minute."""
    if settings.tensor_parallel_size < 1 or settings.pipeline_parallel_size < 1:
        raise ConfigError("vllm.tensor_parallel_size and vllm.pipeline_parallel_size are at least 1")
    if not 0 < settings.gpu_memory_utilization <= 1:
        raise ConfigError("vllm.gpu_memory_utilization is above 0 and at most 1")
    if settings.distributed_executor_backend == "ray" and not settings.ray_address:
        text = "vllm.distributed_executor_backend = 'ray' needs vllm.ray_address, HOST:PORT of the cluster's head"
        raise ConfigError(f"{text}; see docs/vllm-ray.md")


def _ngram(tokens: int) -> str:
    return json.dumps({"method": "ngram", "num_speculative_tokens": tokens, "prompt_lookup_max": 4})
