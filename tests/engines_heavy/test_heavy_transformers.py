"""The small fallback for language models in SafeTensors: SmolLM2 on torch. Its contract is in the conformance suite."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from octonode.engines.slots import Slot
from octonode.errors import OctonodeError
from tests.engines_heavy.working import ROOT

pytestmark = pytest.mark.process


async def test_it_answers_with_sense_inside_the_whole_sandbox(transformers, supervise, ask, generate):
    async with supervise(transformers()) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        assert engine.facts.engine == "transformers"
        assert engine.facts.skills == ("chat",)
        layers = supervisor.status()[0].sandbox
        assert "seccomp" in layers
        answer = await generate(engine, ask("What is the capital of France? Answer in one word.", max_tokens=8))
        assert "Paris" in answer.text
        city = {"city": {"enum": ["Rome", "Paris"]}}
        schema = {"type": "object", "properties": city, "required": ["city"], "additionalProperties": False}
        answer = await generate(
            engine, ask("The capital of France, as JSON.", max_tokens=24, schema=json.dumps(schema), logprobs=2)
        )
        assert json.loads(answer.text) == {"city": "Paris"}
        assert answer.finished.reason == "stop"
        assert "".join(token.text for token in answer.logprobs) == answer.text


async def test_weights_that_are_no_safetensors_are_never_opened(supervise, transformers, model_folder, tmp_path):
    """A model that brings a pickle and code of its own: neither is touched, whatever its config says."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder("smollm2-safetensors"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "mine.Model"}, "model_type": "mine"}
    (folder / "mine.py").write_text("open('/tmp/was-run', 'w')\n")
    for change in (config, config | {"model_type": "llama"}):
        (folder / "config.json").write_text(json.dumps(change))
        load = transformers()
        async with supervise(type(load)("transformers", folder, ROOT, 512, 1, 1)) as supervisor:
            with pytest.raises(OctonodeError) as caught:
                await supervisor.wait_ready(ROOT)
            assert caught.value.code == "FORMAT_REFUSED"


class _Ends:
    """What the network needs of a tokenizer to be stepped."""

    eos_token_id = 1


def test_values_that_are_no_numbers_end_the_request_and_empty_the_slot() -> None:
    """In this process, on a network in miniature with weights of chance."""
    import torch
    import transformers

    from octonode.engines.adapters.transformers_text import TextModel

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    network = transformers.LlamaForCausalLM(config).eval()
    text = TextModel(torch, transformers, network, _Ends(), 1)
    assert text.start(Slot(0, True), [2, 3, 4]) == 0
    whole = text.compute(Slot(0, True), [2, 3, 4])
    assert text.start(Slot(0, True), [2, 3, 5]) == 2, "what begins alike is not computed again"
    parts = text.compute(Slot(0, True), [5])
    assert text.start(Slot(0, False), [2, 3, 5]) == 0, "of another scope nothing is looked at"
    assert np.allclose(parts, text.compute(Slot(0, False), [2, 3, 5]), atol=1e-5)
    assert not np.allclose(parts, whole)
    with torch.no_grad():
        network.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(OctonodeError, match="no numbers") as caught:
        text.compute(Slot(0, True), [6])
    assert caught.value.code == "ENGINE_FAILED"
    assert text.start(Slot(0, True), [2, 3, 5, 6]) == 0
