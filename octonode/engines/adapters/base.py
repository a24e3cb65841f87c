"""What an engine adapter is inside the worker, and the registry of adapters by name.

An `Adapter` writes text: it is loaded once, then runs up to `parallel` requests at the same time, each in a task of its
own. A `Maker` has the other skills: it is given requests of one kind together, as many as pay off. Cancelling is
cancelling the task: the adapter tells the engine on the way out. Heavy libraries are imported inside `load`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest, TokenLogprob
from octonode.engines.slots import Slot
from octonode.errors import ConfigError, OctonodeError
from octonode.protocol.work.skills import WorkRequest, WorkResult, skill_of

Request = TypeVar("Request", bound=WorkRequest)


class Output(Protocol):
    """Where a request's events go. Nothing here waits but `room` and `flush`."""

    def prefill(self, done_tokens: int, total_tokens: int) -> None: ...

    def pieces(self, pieces: Sequence[str]) -> None:
        """Text, one piece a token where the engine shows tokens."""
        ...

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> None:
        """Of tokens whose text was put out before; only where they were asked for."""
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


Progress = Callable[[int, int], None]
"""Told (steps done, steps in all); may be called from any thread."""
Outcome = WorkResult | OctonodeError


class Maker(Protocol):
    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        """As `Adapter.load`. `parallel` and `batch_size` are filled in by the worker, which measures them."""
        ...

    def sample(self) -> WorkRequest | None:
        """A small request of the usual kind, by which the batch size is measured at load; None: never batched."""
        ...

    def key(self, request: WorkRequest) -> Hashable:
        """Requests with equal keys may be made together. Raises OctonodeError for what this model cannot do."""
        ...

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        """One outcome a request, in order: an error of one does not cost the others. Never runs twice at the same time.

        Cancelled once nobody wants any of them. Raises OctonodeError for all of them together.
        """
        ...

    def close(self) -> None:
        """Lets go of what outlives the process, if anything does."""
        ...


def refuse_skill(request: WorkRequest, *skills: str) -> OctonodeError:
    """What `key` raises for a request of a skill that the model lacks; it has `skills`."""
    text = f"this model cannot {skill_of(request).name}; it can {', '.join(skills)}"
    return OctonodeError(text, code="UNSUPPORTED")


def each_alone(
    requests: Sequence[WorkRequest], kind: type[Request], work: Callable[[Request], WorkResult]
) -> list[Outcome]:
    """The outcomes of requests that `work` does one after the other. `kind` is what `key` lets through."""
    outcomes: list[Outcome] = []
    for request in requests:
        assert isinstance(request, kind), "by `key`"
        try:
            outcomes.append(work(request))
        except OctonodeError as error:
            outcomes.append(error)
    return outcomes


_ADAPTERS: dict[str, tuple[str, str]] = {
    "llama": ("octonode.engines.adapters.llama", "LlamaAdapter"),
    "llama-cpp-python": ("octonode.engines.adapters.llama_cpp_python", "LlamaCppPythonAdapter"),
    "onnx-llm": ("octonode.engines.adapters.onnx_llm", "OnnxLlmAdapter"),
    "transformers": ("octonode.engines.adapters.transformers_llm", "TransformersAdapter"),
    "onnx-embeddings": ("octonode.engines.adapters.onnx_embeddings", "OnnxEmbeddingsMaker"),
    "sentence-transformers": ("octonode.engines.adapters.sentence_transformers", "SentenceTransformersMaker"),
    "onnx-vision": ("octonode.engines.adapters.onnx_vision", "OnnxVisionMaker"),
    "rapidocr": ("octonode.engines.adapters.rapid_ocr", "RapidOcrMaker"),
    "silero-vad": ("octonode.engines.adapters.silero_vad", "SileroVadMaker"),
    "piper": ("octonode.engines.adapters.piper", "PiperMaker"),
    "faster-whisper": ("octonode.engines.adapters.faster_whisper", "FasterWhisperMaker"),
    "transformers-whisper": ("octonode.engines.adapters.transformers_whisper", "TransformersWhisperMaker"),
    "diffusers": ("octonode.engines.adapters.diffusers_image", "DiffusersMaker"),
    "audioldm": ("octonode.engines.adapters.audioldm", "AudioLdmMaker"),
    "scripted": ("octonode.engines.adapters.scripted", "ScriptedAdapter"),
    "scripted-maker": ("octonode.engines.adapters.scripted_makers", "ScriptedMaker"),
    "probe": ("octonode.engines.adapters.probe", "ProbeAdapter"),
}


def make_adapter(name: str, category: str = "llm") -> Adapter | Maker:
    """A fresh adapter for a model of a category. Raises ConfigError for a name that is not in the registry."""
    if name == "scripted" and category not in ("llm", "other"):
        name = "scripted-maker"
    if name not in _ADAPTERS:
        raise ConfigError(f"there is no engine {name!r}; known are {', '.join(_ADAPTERS)}")
    module, attribute = _ADAPTERS[name]
    adapter: Adapter | Maker = getattr(importlib.import_module(module), attribute)()
    return adapter
