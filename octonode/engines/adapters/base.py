"""What an engine adapter is inside the worker, and the registry of adapters by name.

An adapter is loaded once, then runs up to `parallel` requests at the same time, each in a task of its own. Cancelling a
request is cancelling its task: the adapter tells the engine on the way out. Heavy libraries are imported inside `load`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest
from octonode.engines.slots import Slot
from octonode.errors import ConfigError


class Output(Protocol):
    """Where a request's events go. Nothing here waits but `room` and `flush`."""

    def prefill(self, done_tokens: int, total_tokens: int) -> None: ...

    def pieces(self, pieces: Sequence[str]) -> None:
        """Text, one piece a token where the engine shows tokens."""
        ...

    async def room(self) -> None:
        """To be awaited between batches by whoever produces without waiting for anything else."""
        ...

    async def flush(self) -> None:
        """Returns when all that was put out has left the process."""
        ...


class Adapter(Protocol):
    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        """Loads the model. `temporary_directory` is also the working directory and the only place to write to.

        Raises OctonodeError: ENGINE_FAILED when another try may help, FORMAT_REFUSED or CONFIG when none will.
        """
        ...

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        """Runs one request in a slot that is its own until this returns or is cancelled.

        Raises OctonodeError with CONTEXT_EXCEEDED, BAD_REQUEST or ENGINE_FAILED.
        """
        ...

    def close(self) -> None:
        """Lets go of what outlives the process, if anything does."""
        ...


_ADAPTERS: dict[str, tuple[str, str]] = {
    "llama": ("octonode.engines.adapters.llama", "LlamaAdapter"),
    "scripted": ("octonode.engines.adapters.scripted", "ScriptedAdapter"),
    "probe": ("octonode.engines.adapters.probe", "ProbeAdapter"),
}


def make_adapter(name: str) -> Adapter:
    """A fresh adapter. Raises ConfigError for a name that is not in the registry."""
    if name not in _ADAPTERS:
        raise ConfigError(f"there is no engine {name!r}; known are {', '.join(_ADAPTERS)}")
    module, attribute = _ADAPTERS[name]
    adapter: Adapter = getattr(importlib.import_module(module), attribute)()
    return adapter
