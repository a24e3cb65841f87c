"""TensorRT-LLM as a server of its own: `trtllm-serve` on a port of loopback.

Its options differ between releases, so it is asked for them first. It has no CPU mode, and this adapter has not met an
NVIDIA GPU yet: it is tested against a strict stand-in (`testing/trtllm_serve.py`) and, in what is HTTP, real servers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from octonode.config_engines import TensorRtConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.select import BY_NAME
from octonode.engines.servers.dialects import TENSORRT_LLM, Dialect
from octonode.engines.servers.kinds import Launch, ServerLoad
from octonode.engines.servers.openai_http import Address
from octonode.engines.servers.process import free_port, server_environment
from octonode.engines.servers.weights import quantization_in
from octonode.errors import ConfigError, OctonodeError

HELP_SECONDS: Final = 120.0
"""It imports CUDA libraries before it says anything."""
HELP_CHARACTERS_MAX: Final = 64 * 1024
LOAD_CONFIG_NAME: Final = "load.yaml"
_OPTION: Final = re.compile(r"--[a-z][a-z0-9_-]*")
_PREFIXES: Final = ("TRTLLM_", "TLLM_", "NCCL_", "OMPI_", "UCX_")
_NEEDED: Final = ("--host", "--port", "--max_batch_size", "--max_seq_len")


@dataclass(frozen=True, slots=True)
class TensorRtServer:
    """See `kinds.ServerKind`."""

    settings: TensorRtConfig
    program: str
    """Path of trtllm-serve, of `engines.pythons`; empty: the one on the path."""

    @property
    def name(self) -> str:
        return "tensorrt-llm"

    @property
    def dialect(self) -> Dialect:
        return TENSORRT_LLM

    @property
    def metrics_path(self) -> str:
        return "/metrics"

    async def launch(self, request: LoadRequest, directory: Path) -> Launch:
        if request.model_path is None:
            raise ConfigError("the engine tensorrt-llm needs a model folder")
        program = self.program or shutil.which("trtllm-serve") or ""
        if not program:
            text = (
                "trtllm-serve is not on the path; install tensorrt_llm, or write tensorrt-llm=PATH in engines.pythons"
            )
            raise ConfigError(text)
        environment = server_environment(
            os.environ, directory, threads=request.threads, devices=request.devices, program=program, prefixes=_PREFIXES
        )
        known = await known_options(program, environment)
        port = free_port()
        arguments = arguments_for(self.settings, request, port, known, directory)
        return Launch(
            address=Address(host="127.0.0.1", port=port),
            parallel=self.settings.batch_size_max or request.parallel,
            command=(program, *arguments),
            environment=environment,
            quantization=quantization_in(request.model_path),
            flags={"note": BY_NAME["tensorrt-llm"].tested, "tensor_parallel": self.settings.tensor_parallel_size},
        )

    def read_metrics(self, text: str) -> ServerLoad | None:
        """The list of the iterations since it was last read, empty while it is idle."""
        rows: Any = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError("the metrics of TensorRT-LLM are no list")
        rows = [row for row in rows if isinstance(row, dict)]
        if not rows:
            return None
        last = rows[-1]
        try:
            cache = last.get("kvCacheStats") or {}
            blocks = cache.get("maxNumBlocks") or 0
            return ServerLoad(
                running=int(last.get("numActiveRequests", 0)),
                waiting=int(last.get("numQueuedRequests", 0)),
                cache_usage=cache.get("usedNumBlocks", 0) / blocks if blocks else None,
                steps=float(last.get("iter", 0)),
            )
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"a row of TensorRT-LLM's metrics has another shape: {error}") from None


async def known_options(program: str, environment: dict[str, str]) -> frozenset[str]:
    """The options that `--help` of this release names; old releases have one command, later ones a group of them.

    Raises ConfigError when it cannot be started, ENGINE_FAILED when it says nothing in time.
    """
    found: set[str] = set()
    for arguments in ((program, "serve", "--help"), (program, "--help")):
        try:
            with trio.fail_after(HELP_SECONDS):
                told = await trio.run_process(
                    arguments, env=environment, capture_stdout=True, stderr=subprocess.STDOUT, check=False
                )
        except OSError as error:
            raise ConfigError(f"{program} cannot be started: {error.strerror} (engines.pythons)") from None
        except trio.TooSlowError:
            text = f"{program} --help took longer than {HELP_SECONDS:g} s"
            raise OctonodeError(text, code="ENGINE_FAILED") from None
        text = told.stdout.decode("utf-8", "replace")[:HELP_CHARACTERS_MAX]
        if told.returncode == 0:
            found |= set(_OPTION.findall(text))
        if found.issuperset(_NEEDED):
            return frozenset(found)
    missing = ", ".join(sorted(set(_NEEDED) - found))
    raise ConfigError(f"{program} --help does not name {missing}: this release is not known (engines.pythons)")


def arguments_for(
    settings: TensorRtConfig, request: LoadRequest, port: int, known: Collection[str], directory: Path
) -> list[str]:
    """The command line after the program's name, of options in `known` alone; writes the file that one of them names.

    Raises ConfigError when the settings ask for what this release has no option for.
    """
    arguments = [
        os.fspath(request.model_path or ""),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--max_batch_size", str(settings.batch_size_max or request.parallel)),
        *("--max_seq_len", str(request.context_tokens)),
    ]
    wanted: tuple[tuple[tuple[str, ...], str, bool], ...] = (
        (("--backend",), settings.backend, bool(settings.backend)),
        (("--max_num_tokens",), str(settings.batch_tokens_max), settings.batch_tokens_max > 0),
        (
            ("--tp_size", "--tensor_parallel_size"),
            str(settings.tensor_parallel_size),
            settings.tensor_parallel_size > 1,
        ),
        (
            ("--pp_size", "--pipeline_parallel_size"),
            str(settings.pipeline_parallel_size),
            settings.pipeline_parallel_size > 1,
        ),
        (
            ("--ep_size", "--moe_expert_parallel_size"),
            str(settings.expert_parallel_size),
            settings.expert_parallel_size > 0,
        ),
    )
    for spellings, value, is_set in wanted:
        if not is_set:
            continue
        option = next((each for each in spellings if each in known), "")
        if not option:
            raise ConfigError(f"this trtllm-serve has no option {spellings[0]}; leave it out of [tensorrt_llm]")
        arguments += [option, value]
    return [*arguments, *_cache_arguments(settings, known, directory), *settings.extra_arguments]


def _cache_arguments(settings: TensorRtConfig, known: Collection[str], directory: Path) -> list[str]:
    """What has no option stands in a file of its own: no prompt cache, since only chats could be told apart in it;
    grammars for schemas; and the metrics."""
    fraction = settings.free_gpu_memory_fraction
    option = next((each for each in ("--extra_llm_api_options", "--config") if each in known), "")
    if option:
        lines = (
            "kv_cache_config:",
            "  enable_block_reuse: false",
            f"  free_gpu_memory_fraction: {fraction}",
            "guided_decoding_backend: xgrammar",
            "enable_iter_perf_stats: true",
        )
        path = directory / LOAD_CONFIG_NAME
        path.write_text("\n".join(lines) + "\n", encoding="ascii")
        return [option, str(path)]
    spellings = ("--kv_cache_free_gpu_memory_fraction", "--free_gpu_memory_fraction")
    option = next((each for each in spellings if each in known), "")
    return [option, str(fraction)] if option else []
