"""One GGUF model through llama-cpp-python's low-level calls: loading, text to tokens and back, and steps.

The high-level `Llama` object answers one request after the other, and two threads in it abort the process; nothing of
it is used. `tokens` and `stop_step` may be called from any thread, all else by one at a time.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from functools import cached_property
from typing import Any, Final

from octonode.engines import lora
from octonode.engines.adapters import chunking
from octonode.engines.adapters.gguf_file import broken_numbers, check_lora
from octonode.engines.adapters.llama_cpp_python_plan import Part, Row, Step
from octonode.engines.adapters.llama_parameters import tensor_split
from octonode.engines.contract import LoadRequest, TokenLogprob
from octonode.errors import OctonodeError

STEP_TOKENS_MAX: Final = 512
"""Of one step, whatever was measured: the buffers for it are made at load."""
PIECE_BYTES_MAX: Final = 512
_ERROR_LEVEL = 4
_DONE, _ABORTED = 0, 2


class LlamaModel:
    """A loaded model with one context, whose sequences are our slots. Never freed: it ends with the process."""

    def __init__(self, library: Any, request: LoadRequest) -> None:
        """Loads; blocks. Raises OctonodeError ENGINE_FAILED, or CONFIG for a LoRA adapter that cannot be used."""
        self._library = library
        self._stop = ctypes.create_string_buffer(b"0")
        self._keep: list[Any] = [_quiet(library, self._stop)]
        library.llama_backend_init()
        self._model = self._load(request)
        self.vocabulary = library.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = library.llama_vocab_n_tokens(self.vocabulary)
        is_end = library.llama_vocab_is_eog
        self.ends = frozenset(each for each in range(self.vocabulary_size) if is_end(self.vocabulary, each))
        """Tokens after which an answer is over."""
        self.slot_tokens: int = request.context_tokens
        self.context = self._open(request)
        self._memory = library.llama_get_memory(self.context)
        self._batch = library.llama_batch_init(STEP_TOKENS_MAX, 0, 1)
        self._adapt(request)

    def _load(self, request: LoadRequest) -> Any:
        library, option = self._library, request.options.get
        parameters = library.llama_model_default_params()
        parameters.n_gpu_layers = int(option("gpu_layers", -1))
        parameters.main_gpu = int(option("main_gpu", 0))
        split = tensor_split(request)
        if split:
            devices = max(len(split), library.llama_max_devices())
            parameters.tensor_split = (ctypes.c_float * devices)(*split)
        model = library.llama_model_load_from_file(os.fsencode(request.model_path or ""), parameters)
        if not model:
            raise OctonodeError(
                "llama.cpp cannot load the model; is the file whole? try: octonode models verify", code="ENGINE_FAILED"
            )
        return model

    def _open(self, request: LoadRequest) -> Any:
        library = self._library
        parameters = library.llama_context_default_params()
        parameters.n_ctx = request.context_tokens * request.parallel
        parameters.n_batch = parameters.n_ubatch = max(STEP_TOKENS_MAX, request.parallel)
        parameters.n_seq_max = request.parallel
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = request.threads
        # Asked before each node of the graph, a thousand times a step: so it is a function of C that reads one byte,
        # "0" or "1", and not one of Python that would wait for the interpreter's lock each time.
        parameters.abort_callback = library.ggml_abort_callback(
            ctypes.cast(ctypes.CDLL(None).atoi, ctypes.c_void_p).value or 0
        )
        parameters.abort_callback_data = ctypes.addressof(self._stop)
        context = library.llama_init_from_model(self._model, parameters)
        if not context:
            raise OctonodeError("llama.cpp cannot make a context; lower engines.context_tokens", code="ENGINE_FAILED")
        self._keep.append(parameters)
        return context

    def _adapt(self, request: LoadRequest) -> None:
        """Adds the LoRA adapters of the request."""
        files = lora.files_of(request.options.get(lora.OPTION))
        adapters = []
        for path, _ in files:
            adapter = self._library.llama_adapter_lora_init(
                self._model, os.fsencode(check_lora(path, "llama-cpp-python"))
            )
            if not adapter:
                raise OctonodeError(f"the LoRA adapter {path.name} does not fit the model", code="CONFIG")
            adapters.append(adapter)
        if adapters:
            handles = (self._library.llama_adapter_lora_p_ctypes * len(files))(*adapters)
            scales = (ctypes.c_float * len(files))(*(scale for _, scale in files))
            self._library.llama_set_adapters_lora(self.context, handles, len(files), scales)
        self._keep += adapters

    @cached_property
    def first_token(self) -> str:
        """Its text, for templates; empty where the model has none."""
        return self._special(self._library.llama_vocab_bos(self.vocabulary))

    @cached_property
    def end_token(self) -> str:
        return self._special(self._library.llama_vocab_eos(self.vocabulary))

    def _special(self, token: int) -> str:
        if token < 0:
            return ""
        return bytes(self._library.llama_vocab_get_text(self.vocabulary, token)).decode("utf-8", "replace")

    @property
    def template(self) -> str:
        """The chat template of the file, as Jinja; empty: none."""
        return bytes(self._library.llama_model_chat_template(self._model, None) or b"").decode("utf-8", "replace")

    @property
    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        self._library.llama_model_desc(self._model, buffer, 256)
        return buffer.value.decode("utf-8", "replace")

    def tokens(self, text: str) -> list[int]:
        """Special tokens that stand in the text are read as such."""
        data = text.encode("utf-8", "replace")
        add_first = not (self.first_token and text.startswith(self.first_token))
        room = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self._library.llama_tokenize(self.vocabulary, data, len(data), buffer, room, add_first, True)
            if count >= 0:
                return list(buffer[:count])
            room = -count

    def piece(self, token: int) -> bytes:
        """Its text, which may be part of a character; of special tokens none."""
        buffer = ctypes.create_string_buffer(PIECE_BYTES_MAX)
        count = self._library.llama_token_to_piece(self.vocabulary, token, buffer, PIECE_BYTES_MAX, 0, False)
        return buffer.raw[: max(0, count)]

    def keep(self, slot: int, tokens: int) -> bool:
        """Forgets what a slot holds beyond so many tokens; False when it had to forget everything."""
        if self._library.llama_memory_seq_rm(self._memory, slot, tokens, -1):
            return True
        self._library.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return False

    def run(self, step: Step) -> dict[int, int] | None:
        """Computes one step; the row of the logits of each slot whose part is the last. None when it was stopped.

        Raises OctonodeError ENGINE_FAILED.
        """
        batch, row = self._batch, 0
        rows: dict[int, int] = {}
        for part in step.parts:
            for position in range(part.start, part.end):
                batch.token[row] = part.row.tokens[position]
                batch.pos[row] = position
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = part.row.slot
                batch.logits[row] = part.last and position == part.end - 1
                row += 1
            if part.last:
                rows[part.row.slot] = row - 1
        batch.n_tokens = row
        status = self._library.llama_decode(self.context, batch)
        if status == _ABORTED:
            for part in step.parts:  # a part of the step may be in there
                if not self.keep(part.row.slot, part.start):
                    part.row.done = 0
            return None
        if status != _DONE:
            raise OctonodeError(f"llama.cpp could not compute a step (status {status})", code="ENGINE_FAILED")
        return rows

    def stop_step(self, stop: bool) -> None:
        """Whether the step that runs, or runs next, shall end at once. From any thread."""
        self._stop[0] = b"1" if stop else b"0"

    def logits(self, row: int) -> Any:
        """Float array [vocabulary], a view that the next step writes over. Raises OctonodeError for NaN."""
        import numpy as np

        values = np.ctypeslib.as_array(self._library.llama_get_logits_ith(self.context, row), (self.vocabulary_size,))
        if np.isnan(values).any():
            raise broken_numbers()
        return values

    def told(self, logits: Any, token: int, alternatives: int) -> TokenLogprob:
        """The probability of a token among all, whatever the sampling; `logits`: the row of the last step."""
        import numpy as np

        from octonode.engines.adapters.sampling import log_chances

        chances = log_chances(self.logits(logits))
        count = min(max(0, alternatives), len(chances))
        top = np.argsort(-chances, kind="stable")[:count]
        return TokenLogprob(
            self.piece(token).decode("utf-8", "replace"),
            min(0.0, float(chances[token])),
            tuple((self.piece(int(each)).decode("utf-8", "replace"), min(0.0, float(chances[each]))) for each in top),
        )

    def prefill_speed(self, tokens: int) -> float:
        """Prompt tokens a second with so many of them in one step, at most as many as a slot or a step has room for.

        Raises OctonodeError ENGINE_FAILED when what comes out is no number.
        """
        count = min(tokens, self.slot_tokens - 1, STEP_TOKENS_MAX)
        row = Row(0, (self.tokens("the") * count)[:count], count)
        started = time.perf_counter()
        self.run(Step((Part(row, 0, count),)))
        self.logits(count - 1)
        seconds = max(1e-6, time.perf_counter() - started)
        self.keep(0, 0)
        return count / seconds

    def measured_chunk(self) -> int:
        """Prompt tokens that take about 120 ms: timed with few, and with many where few say little."""
        self.prefill_speed(8)  # warm-up
        speed = self.prefill_speed(32)
        if chunking.chunk_tokens(speed) >= 64:
            speed = self.prefill_speed(STEP_TOKENS_MAX)
        return min(STEP_TOKENS_MAX, chunking.chunk_tokens(speed))


def _quiet(library: Any, stop: Any) -> Any:
    """Errors of the library go to standard error, all else nowhere: nor what it says when a step is stopped. The
    callback, to be kept."""

    @library.llama_log_callback  # type: ignore[untyped-decorator]
    def write(level: int, text: bytes, data: Any) -> None:
        if level == _ERROR_LEVEL and stop[0] == b"0":
            sys.stderr.write(text.decode("utf-8", "replace"))

    library.llama_log_set(write, None)
    return write


def library_facts(library: Any) -> tuple[str, str, str]:
    """(build, backend, instruction set)."""
    enabled = [
        part.split("=")[0].strip().rsplit(" ", 1)[-1]
        for part in library.llama_print_system_info().decode().split("|")
        if part.strip().endswith("= 1")
    ]
    backend = "gpu" if library.llama_supports_gpu_offload() else "cpu"
    return f"llama-cpp-python {library.__version__}", backend, " ".join(enabled)
