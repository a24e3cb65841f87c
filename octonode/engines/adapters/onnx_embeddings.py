"""Embeddings of texts with ONNX Runtime: cut, pooled and normalised as the files of sentence-transformers say.

Source of these files: https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np

from octonode.engines.adapters.base import Outcome, Progress, refuse_skill
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.adapters.onnx_session import Array, Graph, library
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import WorkRequest
from octonode.protocol.work.text import Embeddings, EmbedRequest

ENGINE: Final = "onnx-embeddings"
RUN_TOKENS_MAX: Final = 4096
"""Of one run of the graph, padding included: attention needs memory by the square of a text's length, and a cancelled
request waits for no more than this."""
RUN_TEXTS_MAX: Final = 32
ENCODE_TEXTS: Final = 64
"""That are made tokens of together, between two looks whether anybody still wants them."""
VECTORS_BYTES_MAX: Final = 16 << 20
"""Of one result, as `protocol.work.text.Embeddings` bounds it."""
TOKENS_DEFAULT: Final = 512
"""Where no file says how long a text may be."""
_SAMPLE: Final = "The harbour lies still in the evening, and the boats come home one after the other with the tide."


class OnnxEmbeddingsMaker:
    """One encoder and its tokenizer."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        return await run_stoppable(partial(self._load, request))

    def _load(self, request: LoadRequest, stop: Stop) -> EngineFacts:
        folder = ModelFolder(request.model_path, ENGINE)
        self._recipe = recipe_of(folder, request.context_tokens)
        self._tokenizer = _tokenizer(folder, self._recipe, request.threads)
        self._graph = Graph(folder.graph("model.onnx"), request)
        self._output, self._pooled = _output_of(self._graph)
        [row] = self._rows([self._tokenizer.encode("a")], stop)
        self._dimensions = len(row)
        return self._graph.facts(
            request, ENGINE, "embeddings", ("embed",),
            context_tokens=self._recipe.tokens_max,
            flags={"dimensions": self._dimensions, "pooling": self._recipe.pooling},
        )  # fmt: skip

    def sample(self) -> WorkRequest | None:
        return EmbedRequest((_SAMPLE,))

    def key(self, request: WorkRequest) -> Hashable:
        if not isinstance(request, EmbedRequest):
            raise refuse_skill(request, "embed")
        if len(request.texts) * self._dimensions * 4 > VECTORS_BYTES_MAX:
            most = VECTORS_BYTES_MAX // (self._dimensions * 4)
            raise OctonodeError(
                f"{len(request.texts)} texts at {self._dimensions} dimensions are too much for one answer; "
                f"send at most {most} at a time",
                code="TOO_LARGE",
            )
        return "embed"

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        asked = [request for request in requests if isinstance(request, EmbedRequest)]
        return await run_stoppable(partial(self._make, asked, progress))

    def close(self) -> None:
        pass

    def _make(self, requests: Sequence[EmbedRequest], progress: Progress, stop: Stop) -> list[Outcome]:
        """All texts of all requests together: the shortest first, so that little is padded."""
        encodings = self._encode([text for request in requests for text in request.texts], stop)
        outcomes: list[Outcome | None] = []
        wanted: list[int] = []
        first = 0
        for request in requests:
            places = range(first, first + len(request.texts))
            first += len(request.texts)
            long = [place for place in places if encodings[place].overflowing]
            refused = bool(long) and not request.truncate
            outcomes.append(self._too_long(long[0] - places[0]) if refused else None)
            wanted += [] if refused else places
        vectors = self._vectors(encodings, wanted, progress, stop)
        first = 0
        for index, request in enumerate(requests):
            last = first + len(request.texts)
            if outcomes[index] is None:
                outcomes[index] = self._result(encodings[first:last], [vectors[place] for place in range(first, last)])
            first = last
        return [outcome for outcome in outcomes if outcome is not None]

    def _encode(self, texts: Sequence[str], stop: Stop) -> list[Any]:
        encodings: list[Any] = []
        change: Callable[[str], str] = str.lower if self._recipe.lower_case else str
        for first in range(0, len(texts), ENCODE_TEXTS):
            stop.check()
            encodings += self._tokenizer.encode_batch([change(each) for each in texts[first : first + ENCODE_TEXTS]])
        return encodings

    def _vectors(
        self, encodings: Sequence[Any], places: Sequence[int], progress: Progress, stop: Stop
    ) -> dict[int, Array]:
        ordered = sorted(places, key=lambda place: len(encodings[place].ids))
        found: dict[int, Array] = {}
        while len(found) < len(ordered):
            group = _next_group(ordered[len(found) :], encodings)
            found.update(zip(group, self._rows([encodings[place] for place in group], stop), strict=True))
            progress(len(found), len(ordered))
        return found

    def _rows(self, encodings: Sequence[Any], stop: Stop) -> list[Array]:
        """One vector a text, from one run. Raises Stopped, OctonodeError ENGINE_FAILED."""
        width = max(len(each.ids) for each in encodings)
        ids = np.full((len(encodings), width), self._recipe.pad_id, np.int64)
        mask, kinds = np.zeros_like(ids), np.zeros_like(ids)
        for row, each in enumerate(encodings):
            ids[row, : len(each.ids)] = each.ids
            mask[row, : len(each.ids)] = each.attention_mask
            kinds[row, : len(each.ids)] = each.type_ids
        positions = np.broadcast_to(np.arange(width), ids.shape)
        named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds, "position_ids": positions}
        feeds = {name: self._graph.cast(name, named[name]) for name in self._graph.inputs}
        [values] = self._graph.run(feeds, stop, [self._output])
        values = values.astype(np.float32, copy=False)
        if not self._pooled:
            values = pooled(values, mask.astype(np.float32), self._recipe.pooling)
        if self._recipe.normalise:
            values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        return list(values)

    def _result(self, encodings: Sequence[Any], rows: Sequence[Array]) -> Embeddings:
        tokens = sum(sum(each.attention_mask) for each in encodings)
        cut = sum(bool(each.overflowing) for each in encodings)
        return Embeddings(np.stack(rows).astype("<f4").tobytes(), self._dimensions, tokens_in=tokens, texts_cut=cut)

    def _too_long(self, place: int) -> OctonodeError:
        return OctonodeError(
            f"text {place} has more than the {self._recipe.tokens_max} tokens that the model takes; shorten it, or let "
            "it be cut (truncate)",
            code="CONTEXT_EXCEEDED",
        )


def _next_group(places: Sequence[int], encodings: Sequence[Any]) -> Sequence[int]:
    """As many of the next as one run takes; they are ordered by length."""
    count = 1
    while count < min(len(places), RUN_TEXTS_MAX) and (count + 1) * len(encodings[places[count]].ids) <= RUN_TOKENS_MAX:
        count += 1
    return places[:count]


# -- What the files of the model say ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipe:
    """From tokens to one vector."""

    tokens_max: int
    pooling: str
    """A key of `_POOLINGS`."""
    normalise: bool
    pad_id: int = 0
    lower_case: bool = False


def recipe_of(folder: ModelFolder, context_tokens: int = 0) -> Recipe:
    """Raises OctonodeError FORMAT_REFUSED for a module that is not run here."""
    config, words = folder.map("config.json"), folder.map("sentence_bert_config.json")
    limits = [
        words.get("max_seq_length"),
        folder.map("tokenizer_config.json").get("model_max_length"),
        _positions(config),
        context_tokens or None,
    ]
    # the first file that says it decides, and no text is longer than the graph has positions or the node allows
    said = next((each for each in limits[:2] if _is_count(each)), TOKENS_DEFAULT)
    tokens_max = min(each for each in (said, *limits[2:]) if _is_count(each))
    pooling, normalise = _modules(folder)
    pad_id = config.get("pad_token_id")
    return Recipe(
        tokens_max, pooling, normalise, pad_id if isinstance(pad_id, int) else 0, words.get("do_lower_case") is True
    )


def _is_count(value: object) -> TypeGuard[int]:
    """Some files say 10^30 for no limit."""
    return isinstance(value, int) and 0 < value < 2**31


def _positions(config: dict[str, Any]) -> object:
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and "roberta" in str(config.get("model_type", "")):
        return positions - 2  # RoBERTa counts its positions from behind the padding's
    return positions


def _modules(folder: ModelFolder) -> tuple[str, bool]:
    """(how to pool, whether to normalise). Without modules.json, sentence-transformers takes the mean as it is."""
    pooling, normalise = "mean", False
    modules = folder.json("modules.json")
    for module in modules if isinstance(modules, list) else ():
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if kind == "Pooling":
            pooling = _pooling(folder.map(f"{module.get('path', '')}/config.json"))
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise OctonodeError(
                f"modules.json of the model asks for {kind[:32]!r}, which is not run here; another engine may: "
                "octonode engines",
                code="FORMAT_REFUSED",
            )
    return pooling, normalise


def _pooling(config: dict[str, Any]) -> str:
    named = [name for name, key in _POOLING_KEYS.items() if config.get(key) is True]
    if len(named) > 1:
        raise OctonodeError(
            f"the model joins {' and '.join(named)} pooling, which is not run here", code="FORMAT_REFUSED"
        )
    return named[0] if named else "mean"


_POOLING_KEYS: Final = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def pooled(values: Array, mask: Array, pooling: str) -> Array:
    """[texts, tokens, dimensions] with a mask [texts, tokens] -> [texts, dimensions]. Pure."""
    wide = mask[:, :, None]
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    if pooling == "cls":
        return np.asarray(values[:, 0])
    if pooling == "max":
        return np.asarray(np.where(wide > 0, values, -np.inf).max(axis=1))
    if pooling == "lasttoken":
        last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
        return np.asarray(values[np.arange(len(values)), last])
    if pooling == "weightedmean":
        weights = wide * np.arange(1, mask.shape[1] + 1, dtype=np.float32)[None, :, None]
        return np.asarray((values * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1))
    total = (values * wide).sum(axis=1)
    return np.asarray(total / (np.sqrt(counts) if pooling == "mean_sqrt_len" else counts))


def _tokenizer(folder: ModelFolder, recipe: Recipe, threads: int) -> Any:
    """Cuts at the model's limit and keeps what was cut off as `overflowing`; pads nothing. Raises OctonodeError."""
    if threads <= 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizers = library("tokenizers", "onnx")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(os.fspath(folder.file("tokenizer.json")))
    except OctonodeError:
        raise
    except Exception as error:  # the library raises Exception itself
        text = f"tokenizer.json of the model cannot be read ({type(error).__name__})"
        raise OctonodeError(text, code="FORMAT_REFUSED") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(recipe.tokens_max)
    return tokenizer


def _output_of(graph: Graph) -> tuple[str, bool]:
    """(the output that is read, whether it is one vector a text already). Raises OctonodeError FORMAT_REFUSED."""
    unknown = set(graph.inputs) - {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
    for name in ("sentence_embedding", "last_hidden_state", "token_embeddings", *graph.outputs):
        if name in graph.outputs and not unknown and graph.ranks[name] in (2, 3):
            return name, graph.ranks[name] == 2
    asks = f"it asks for {', '.join(sorted(unknown))}" if unknown else "it has no output of vectors"
    raise OctonodeError(f"the graph is no encoder of texts: {asks[:200]}", code="FORMAT_REFUSED")
