"""Which kind of server an engine's name stands for, with its settings filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from octonode.config_engines import TensorRtConfig, VllmConfig
from octonode.engines.select import BY_NAME, python_for
from octonode.engines.servers.attached import AttachedServer
from octonode.engines.servers.kinds import ServerKind
from octonode.engines.servers.tensorrt_llm import TensorRtServer
from octonode.engines.servers.vllm import VllmServer


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The sections of the settings that are about servers."""

    vllm: VllmConfig = field(default_factory=VllmConfig)
    tensorrt_llm: TensorRtConfig = field(default_factory=TensorRtConfig)


def kind_of(engine: str, settings: ServerSettings, pythons: Sequence[str]) -> ServerKind | None:
    """None for an engine that is no server, known or not. Raises ConfigError for a bad `engines.pythons`."""
    row = BY_NAME.get(engine)
    if row is None or row.where != "server":
        return None
    if engine == "vllm":
        return VllmServer(settings.vllm, python_for(engine, pythons))
    if engine == "tensorrt-llm":
        return TensorRtServer(settings.tensorrt_llm, python_for(engine, pythons))
    assert engine == "openai-server", "each row of servers has its kind here"
    return AttachedServer()
