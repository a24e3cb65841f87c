"""Embeddings of texts with sentence-transformers on torch: the second engine for them, for models in SafeTensors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from octonode.engines.adapters import torch_device
from octonode.engines.adapters.base import Outcome, Progress, refuse_skill
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import WorkRequest
from octonode.protocol.work.text import Embeddings, EmbedRequest

ENGINE: Final = "sentence-transformers"
MODULES: Final = "modules.json"
RUN_TEXTS_MAX: Final = 32
"""Computed between two looks whether anybody still wants them."""
RUN_TOKENS_MAX: Final = 8192
"""Of one run, padding included: bounds the memory of attention."""
VECTORS_BYTES_MAX: Final = 16 << 20
"""Of one result, as `protocol.work.text.Embeddings` bounds it."""
_PARTS: Final = ("Transformer", "Pooling", "Normalize", "Dense", "LayerNorm")
"""Classes of the library that a model may be made of; its list could name any class that can be imported."""


class SentenceTransformersMaker:
    """One model of the library, with pooling and normalisation as its files say."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        folder = torch_device.model_folder(request, ENGINE, "config.json")
        _check_parts(folder)
        return await run_stoppable(lambda _: self._load(request, folder))

    def _load(self, request: LoadRequest, folder: Path) -> EngineFacts:
        torch, device = torch_device.open_torch(request)
        library = torch_device.imported(ENGINE, lambda: __import__("sentence_transformers"))
        try:
            self._model = library.SentenceTransformer(
                str(folder),
                device=device.name,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": getattr(torch, device.dtype)},
            )
        except Exception as error:
            raise torch_device.load_failed(error) from None
        self._tokens_max = min(int(self._model.max_seq_length or request.context_tokens), request.context_tokens)
        self._model.max_seq_length = self._tokens_max
        self._dimensions = self._run(["a"]).shape[1]
        return EngineFacts(
            engine=ENGINE,
            build=f"sentence-transformers {library.__version__}, torch {torch.__version__}",
            backend=device.backend,
            instruction_set=device.instruction_set,
            context_tokens=self._tokens_max,
            parallel=1,
            quantization=device.dtype,
            flags={"dimensions": self._dimensions, "threads": request.threads, "device": device.title},
            category="embeddings",
            skills=("embed",),
        )

    def sample(self) -> WorkRequest | None:
        return EmbedRequest(("The harbour lies still in the evening, and the boats come home one after the other.",))

    def key(self, request: WorkRequest) -> Hashable:
        if not isinstance(request, EmbedRequest):
            raise refuse_skill(request, "embed")
        most = VECTORS_BYTES_MAX // (self._dimensions * 4)
        if len(request.texts) > most:
            text = f"{len(request.texts)} texts at {self._dimensions} dimensions; send at most {most} at a time"
            raise OctonodeError(text, code="TOO_LARGE")
        return "embed"

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        asked = [request for request in requests if isinstance(request, EmbedRequest)]
        return await run_stoppable(lambda stop: self._make(asked, progress, stop))

    def close(self) -> None:
        pass

    def _make(self, requests: Sequence[EmbedRequest], progress: Progress, stop: Stop) -> list[Outcome]:
        """All texts of all requests together, those of like length in one run."""
        counts = [[self._count(text, stop) for text in request.texts] for request in requests]
        outcomes: list[Outcome | None] = [self._refused(*pair) for pair in zip(requests, counts, strict=True)]
        wanted = [
            (tokens, index, place)
            for index, row in enumerate(counts)
            if outcomes[index] is None
            for place, tokens in enumerate(row)
        ]
        vectors = self._vectors(requests, sorted(wanted), progress, stop)
        return [
            outcome if outcome is not None else self._result(counts[index], vectors[index])
            for index, outcome in enumerate(outcomes)
        ]

    def _count(self, text: str, stop: Stop) -> int:
        stop.check()
        return len(self._model.tokenizer(text, truncation=False, padding=False)["input_ids"])

    def _refused(self, request: EmbedRequest, counts: Sequence[int]) -> OctonodeError | None:
        long = next((place for place, tokens in enumerate(counts) if tokens > self._tokens_max), -1)
        if long < 0 or request.truncate:
            return None
        text = (
            f"text {long} has {counts[long]} tokens and the model takes {self._tokens_max}; shorten it, or set truncate"
        )
        return OctonodeError(text, code="CONTEXT_EXCEEDED")

    def _vectors(
        self, requests: Sequence[EmbedRequest], wanted: Sequence[tuple[int, int, int]], progress: Progress, stop: Stop
    ) -> list[dict[int, Any]]:
        """For each request: place of a text -> its vector. `wanted`: (tokens, request, place), the shortest first."""
        found: list[dict[int, Any]] = [{} for _ in requests]
        done = 0
        while done < len(wanted):
            stop.check()
            rows = 1
            while rows < min(RUN_TEXTS_MAX, len(wanted) - done) and self._fits(wanted[done + rows][0], rows + 1):
                rows += 1
            group = wanted[done : done + rows]
            try:
                made = self._run([requests[index].texts[place] for _, index, place in group])
            except Exception as error:
                raise torch_device.run_failed(error, "send fewer or shorter texts") from None
            for (_, index, place), vector in zip(group, made, strict=True):
                found[index][place] = vector
            done += rows
            progress(done, len(wanted))
        return found

    def _fits(self, tokens: int, rows: int) -> bool:
        return rows * min(tokens, self._tokens_max) <= RUN_TOKENS_MAX

    def _run(self, texts: Sequence[str]) -> Any:
        """float32 [texts, dimensions]. Raises OctonodeError ENGINE_FAILED for what is no number."""
        options = {"convert_to_numpy": True, "show_progress_bar": False, "batch_size": RUN_TEXTS_MAX}
        vectors = self._model.encode(list(texts), **options).astype("<f4")
        if not np.isfinite(vectors).all():
            raise torch_device.not_numbers()
        return vectors

    def _result(self, counts: Sequence[int], vectors: dict[int, Any]) -> Embeddings:
        data = b"".join(vectors[place].tobytes() for place in range(len(counts)))
        tokens = sum(min(each, self._tokens_max) for each in counts)
        cut = sum(each > self._tokens_max for each in counts)
        return Embeddings(data, self._dimensions, tokens_in=tokens, texts_cut=cut)


def _check_parts(folder: Path) -> None:
    """Raises OctonodeError FORMAT_REFUSED for parts that are none of the library's own."""
    modules = torch_device.read_json(folder / MODULES)
    for module in modules if isinstance(modules, list) else ():
        kind = str(module.get("type", "")) if isinstance(module, dict) else ""
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in _PARTS:
            text = (
                f"{MODULES} of the model asks for {kind[:64]!r}; run are {', '.join(_PARTS)} of sentence-transformers"
            )
            raise OctonodeError(text, code="FORMAT_REFUSED")
