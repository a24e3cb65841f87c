"""The small fallback for language models in SafeTensors: SmolLM2 on torch. Its contract is in the conformance suite."""

from __future__ import annotations

import json
import shutil

import pytest

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
