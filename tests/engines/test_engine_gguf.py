"""What only adapters for GGUF files do: LoRA, a measured chunk, guessing ahead, and files that compute no numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from octonode.engines import lora
from octonode.engines.adapters.chunking import CHUNK_TOKENS_MAX, CHUNK_TOKENS_MIN
from octonode.engines.plan import Policy
from octonode.errors import OctonodeError
from tests.engines.gguf_files import write_lora, write_nan

pytestmark = [pytest.mark.process, pytest.mark.model]
ROOT = "bafy-test-root"
ONCE = Policy(silence_timeout_seconds=30.0, crashes_before_quarantine=1)


async def test_a_lora_adapter_changes_the_answer_and_without_weight_it_does_not(
    any_llama, supervise, ask, generate, tmp_path
):
    path = write_lora(tmp_path / "random.gguf")
    said = {}
    for name, entry in (("none", ""), ("full", f"m={path}:4"), ("nothing", f"m={path}:0")):
        option = lora.option_for((entry,), "", "m") if entry else ""
        async with supervise(any_llama(own={lora.OPTION: option})) as supervisor:
            engine = await supervisor.wait_ready(ROOT)
            assert engine.facts.flags["lora"] == bool(entry)
            said[name] = (await generate(engine, ask(max_tokens=12))).text
    assert said["none"] == said["nothing"]
    assert said["none"] != said["full"]


@pytest.mark.parametrize("content", [None, b"GGUF but no adapter", b"no GGUF"])
async def test_an_adapter_that_is_none_is_told(any_llama, supervise, tmp_path, content):
    path = tmp_path / "adapter.gguf"
    if content:
        path.write_bytes(content)
    load = any_llama(own={lora.OPTION: lora.option_for((f"{ROOT}={path}",), ROOT)})
    async with supervise(load, policy=ONCE) as supervisor:
        with pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready(ROOT)
        assert caught.value.code in ("CONFIG", "ENGINE_FAILED")


async def test_a_model_that_computes_no_numbers_is_not_served(any_llama, smollm2, supervise, tmp_path):
    path = write_nan(smollm2, tmp_path / "nan.gguf")
    async with supervise(any_llama(path=path), policy=ONCE) as supervisor:
        with pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready(ROOT)
        assert caught.value.code == "ENGINE_FAILED"
        assert "NaN" in caught.value.message


async def test_the_chunk_of_a_prompt_is_measured(any_llama, supervise, ask, generate):
    load = any_llama(context_tokens=256, own={"prefill_chunk_tokens": 0})
    async with supervise(load) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        assert CHUNK_TOKENS_MIN <= engine.facts.flags["n_batch"] <= CHUNK_TOKENS_MAX
        assert (await generate(engine, ask(max_tokens=3))).finished.tokens_out == 3


async def test_guessing_ahead_changes_no_greedy_answer(llama, supervise, ask, generate):
    """The same batch size both times: with another one the last bits differ, and now and then a word."""
    question = ask(
        "Repeat this text exactly: The quick brown fox jumps over the lazy dog near the river.", max_tokens=24
    )
    said = []
    for speculation in ("off", "auto"):
        load = llama(parallel=1, own={"prefill_chunk_tokens": 64, "speculation": speculation})
        async with supervise(load) as supervisor:
            engine = await supervisor.wait_ready(ROOT)
            guesses = engine.facts.flags["speculation_tokens"]
            said.append((await generate(engine, question)).text)
            if guesses:
                with pytest.raises(OctonodeError) as caught:
                    await generate(engine, replace(question, logprobs=1))
                assert caught.value.code == "UNSUPPORTED"
                assert "engines.speculation" in caught.value.message
    assert guesses == 16
    assert said[0] == said[1]
