"""GGUF models with llama.cpp through llama-cpp-python, with continuous batching of our own on its low-level calls.

Second to xllamacpp: it has to be compiled when it is installed, and then runs code made for this very machine, stops a
prefill at once, and gives the probabilities of tokens. Measured: `protocols/decisions/0019-llama-backends.md`.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import trio

from octonode.engines import lora
from octonode.engines.adapters.answering import Answer
from octonode.engines.adapters.base import Output
from octonode.engines.adapters.chat_template import ChatTemplate
from octonode.engines.adapters.gguf_file import check_gguf
from octonode.engines.adapters.llama_answers import MIN_P, TOP_K
from octonode.engines.adapters.llama_cpp_python_drawing import Chain, TokenBytes
from octonode.engines.adapters.llama_cpp_python_loop import Collector, Job, StepLoop
from octonode.engines.adapters.llama_cpp_python_model import STEP_TOKENS_MAX, LlamaModel, library_facts
from octonode.engines.adapters.llama_cpp_python_plan import Row
from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest, Pieces
from octonode.engines.slots import Slot
from octonode.errors import ConfigError, OctonodeError


class LlamaCppPythonAdapter:
    """One model, one thread that computes."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        check_gguf(request.model_path, "llama-cpp-python")
        try:
            import llama_cpp
        except (ImportError, OSError, RuntimeError) as error:  # its shared library may be missing one of its own
            raise ConfigError(
                f"the engine llama-cpp-python cannot be imported ({error});"
                " run: pip install 'octonode[llama-cpp-python]'"
            ) from error
        self._library: Any = llama_cpp
        chosen = min(STEP_TOKENS_MAX, int(request.options.get("prefill_chunk_tokens", 0)))

        def open_model() -> tuple[LlamaModel, int]:
            model = LlamaModel(llama_cpp, request)
            model.prefill_speed(1)  # a damaged file shows here
            return model, chosen or model.measured_chunk()

        self._model, chunk = await trio.to_thread.run_sync(open_model)
        self._template = ChatTemplate(self._model.template, self._model.first_token, self._model.end_token)
        self._token = trio.lowlevel.current_trio_token()
        self._loop = StepLoop(self._model, max(chunk, request.parallel + 1), request.parallel, self._steps_told)
        threading.Thread(target=self._loop.run, name="llama.cpp", daemon=True).start()
        return self._facts(request, chunk)

    def _facts(self, request: LoadRequest, chunk: int) -> EngineFacts:
        build, backend, instruction_set = library_facts(self._library)
        return EngineFacts(
            engine="llama-cpp-python",
            build=build,
            backend=backend,
            instruction_set=instruction_set,
            context_tokens=request.context_tokens,
            parallel=request.parallel,
            quantization=self._model.description,
            flags={
                "n_batch": chunk,
                "threads": request.threads,
                "gpu_layers": int(request.options.get("gpu_layers", -1)),
                "top_k": TOP_K,
                "min_p": MIN_P,
                "lora": len(lora.files_of(request.options.get(lora.OPTION))),
            },
        )

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        text = request.prompt or self._template.render(request.messages)
        tokens = self._model.tokens(text)
        context = self._model.slot_tokens
        if len(tokens) >= context:
            raise OctonodeError(
                f"the prompt has {len(tokens)} tokens and the context {context}; shorten it", code="CONTEXT_EXCEEDED"
            )
        if not tokens:
            raise OctonodeError("the prompt has no tokens", code="BAD_REQUEST")
        row = Row(slot.index, tokens, len(tokens))
        job = Job(row, slot.reuse, min(request.max_tokens, context - len(tokens)))
        job.chain = Chain(self._library, self._model, request)
        job.answer = Answer(self._model, request, job.chain, TokenBytes(self._model), Collector(job))
        prompt_tokens = len(tokens)
        self._loop.put(job)
        try:
            await self._pass_on(job, output, prompt_tokens)
        finally:
            if not job.ended:
                self._loop.cancel(job)
                with trio.CancelScope(shield=True):  # the slot is not free before: a step at most
                    while not job.ended:
                        await job.news.wait()
                        job.news = trio.Event()
        if isinstance(job.end, OctonodeError):
            raise job.end
        return Finished(job.end or "stop", prompt_tokens, job.answer.count, job.cached)

    async def _pass_on(self, job: Job, output: Output, prompt_tokens: int) -> None:
        """Puts out what the thread tells until the job has ended."""
        while not (job.ended and not job.told):
            if not job.told:
                await job.news.wait()
                job.news = trio.Event()
            while job.told:
                told = job.told.popleft()
                if isinstance(told, int):
                    output.prefill(told, prompt_tokens)
                elif isinstance(told, Pieces):
                    output.pieces(told.pieces)
                else:
                    output.logprobs(told.tokens)

    def _steps_told(self, jobs: list[Job]) -> None:
        """In the thread, after a step."""
        news = []
        for job in jobs:
            news.append((job, job.collected, job.end is not None))
            job.collected = []
        with contextlib.suppress(trio.RunFinishedError):  # the process ends
            self._token.run_sync_soon(_take_news, news)

    def close(self) -> None:
        pass


def _take_news(news: list[tuple[Job, list[Any], bool]]) -> None:
    for job, collected, ended in news:
        job.told.extend(collected)
        job.ended = job.ended or ended
        job.news.set()
