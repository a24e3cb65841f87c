"""A deterministic engine without a model: for test networks, simulations, benchmarks of the network, and tests.

What it says is a function of the model root, the messages and (above temperature 0) the seed, and of nothing else: any
two nodes give the same answer, and an answer continued from a prefix (a last message of the assistant) joins the
unbroken one byte for byte. A token is a word (`scripted_answers`). It passes the same conformance suite as the real
engines.

Options (of `LoadRequest.options`): `tokens_per_second` and `prefill_tokens_per_second` pace each request, 0 is as fast
as it can; `prefill_chunk_tokens`; `answer_tokens` sets the length of every answer. Faults: `load_seconds`,
`crash_at_load`, `crash_at_piece` N, with `crash_signal` (a name such as SIGSEGV), `hang_at_piece` N, `hang_in_prefill`,
`resident_bytes` (memory to hold).
"""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from octonode.engines.adapters.base import Output
from octonode.engines.adapters.scripted_answers import Script, logprobs_of, prompt_words, script_for
from octonode.engines.adapters.stopping import StopFilter
from octonode.engines.contract import EngineFacts, Finished, FinishReason, GenerateRequest, LoadRequest
from octonode.engines.slots import Slot, common_prefix
from octonode.errors import OctonodeError

BATCH_TOKENS = 16
"""Tokens put out between two turns of the loop when there is no pace: others get their turn, speed stays."""


class ScriptedAdapter:
    """See the module. Holds the words of the last prompt of each slot, as an engine holds its prompt cache."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        self._request = request
        self._cached: list[list[str]] = [[] for _ in range(request.parallel)]
        await trio.sleep(self._number("load_seconds"))
        if request.options.get("crash_at_load"):
            self._crash("at load")
        # touched page by page, so that it is resident and not only promised
        self._ballast = bytearray(b"\x01") * int(self._number("resident_bytes"))
        return EngineFacts(
            engine="scripted",
            build="1",
            backend="cpu",
            instruction_set=platform.machine(),
            context_tokens=request.context_tokens,
            parallel=request.parallel,
            quantization="none",
            flags={"tokens_per_second": self._number("tokens_per_second")},
        )

    def close(self) -> None:
        pass

    async def generate(self, request: GenerateRequest, slot: Slot, output: Output) -> Finished:
        words = prompt_words(request)
        context = self._request.context_tokens
        if len(words) >= context:
            raise OctonodeError(
                f"the prompt has {len(words)} tokens and the context {context}; shorten it", code="CONTEXT_EXCEEDED"
            )
        script = script_for(self._request.model_root, request, int(self._number("answer_tokens")))
        cached = await self._prefill(words, slot, output)
        most = min(request.max_tokens, context - len(words))
        reason, count = await self._decode(script, most, request, output)
        return Finished(reason, tokens_in=len(words), tokens_out=count, tokens_cached=cached)

    async def _prefill(self, words: list[str], slot: Slot, output: Output) -> int:
        """Passes over the prompt at the set pace; the count of its words that the slot's cache already held."""
        held = self._cached[slot.index] if slot.reuse else []
        cached = common_prefix(held, words)
        chunk = max(1, int(self._number("prefill_chunk_tokens") or 64))
        pace = self._number("prefill_tokens_per_second")
        output.prefill(cached, len(words))
        if self._request.options.get("hang_in_prefill"):
            await trio.sleep_forever()
        for done in range(cached, len(words), chunk):
            step = min(chunk, len(words) - done)
            await trio.sleep(step / pace if pace else 0)
            output.prefill(done + step, len(words))
        self._cached[slot.index] = words
        return cached

    async def _decode(
        self, script: Script, most: int, request: GenerateRequest, output: Output
    ) -> tuple[FinishReason, int]:
        """Puts out words until the script, the limit or a stop string ends it; why it ended, and the words used."""
        options, stops = self._request.options, StopFilter(request.stop)
        pace = self._number("tokens_per_second")
        # a fault at token N needs the tokens one by one, as does a pace
        one_by_one = bool(pace) or "crash_at_piece" in options or "hang_at_piece" in options
        total, count, started = min(most, script.remaining), 0, trio.current_time()
        while count < total:
            if pace:
                await trio.sleep_until(started + (count + 1) / pace)
            await self._fault(count, output)
            for _ in range(1 if one_by_one else min(BATCH_TOKENS, total - count)):
                _put_out(stops.feed(script.piece(count)), request, output)
                count += 1
                if stops.stopped:
                    return "stop", count
            await output.room()
        _put_out(stops.finish(), request, output)
        return ("length" if count < script.remaining else "stop"), count

    async def _fault(self, count: int, output: Output) -> None:
        options = self._request.options
        if options.get("crash_at_piece") == count and "crash_at_piece" in options:
            await output.flush()
            self._crash(f"at piece {count}")
        if options.get("hang_at_piece") == count and "hang_at_piece" in options:
            await trio.sleep_forever()

    def _crash(self, where: str) -> None:
        print(f"scripted engine: crashing {where}, as it was told to", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.Signals[str(self._request.options.get("crash_signal", "SIGKILL"))])
        signal.pause()

    def _number(self, option: str) -> float:
        return float(self._request.options.get(option, 0))


def _put_out(pieces: Sequence[str], request: GenerateRequest, output: Output) -> None:
    output.pieces(pieces)
    if request.logprobs and pieces:
        output.logprobs(logprobs_of(pieces, request.logprobs))
