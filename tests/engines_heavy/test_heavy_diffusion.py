"""Pictures and sounds by diffusion in real workers, on networks in miniature with weights of chance: what they make is
noise, but seeds, steps, sizes, cancelling and refusals are those of the real ones."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import trio
from PIL import Image

from octonode.engines.contract import Step
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import SoundRequest
from octonode.protocol.work.image import ImageRequest
from octonode.protocol.work.text import EmbedRequest
from tests.engines_heavy.working import ROOT, load, made, wav

pytestmark = pytest.mark.process


def picture(data: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(data))
    assert opened.format == "PNG"
    return opened


def distance(left: bytes, right: bytes) -> float:
    return float(np.abs(np.asarray(picture(left), float) - np.asarray(picture(right), float)).mean())


async def test_pictures_have_their_seed_size_and_steps(supervise, model_folder):
    async with supervise(load("diffusers", model_folder("tiny-sd"), "diffusion")) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        assert engine.facts.skills == ("image",)
        assert engine.facts.flags["pipeline"] == "StableDiffusionPipeline"
        assert "seccomp" in supervisor.status()[0].sandbox
        three = await made(engine, ImageRequest("a boat", seed=5, steps=4, count=3))
        assert (three.result.seed, three.result.steps, three.result.width_pixels) == (5, 4, 64)
        assert len(set(three.result.images)) == 3
        assert [step.total for step in three.steps] == [12] * len(three.steps)
        told = [step.done for step in three.steps]
        assert told == sorted(set(told))
        assert told[-1] == 12
        seventh = await made(engine, ImageRequest("a boat", seed=7, steps=4))
        assert seventh.result.images[0] == three.result.images[2], "picture i of several used seed + i"
        other = await made(engine, ImageRequest("a cat on a mat", seed=7, steps=4))
        assert other.result.images != seventh.result.images, "the prompt counts"
        wide = await made(engine, ImageRequest("a boat", width_pixels=96, height_pixels=32, steps=2))
        assert picture(wide.result.images[0]).size == (96, 32)
        again = ImageRequest("a boat", width_pixels=96, height_pixels=32, steps=2, seed=wide.result.seed)
        assert (await made(engine, again)).result == wide.result, "the seed that is told gives the picture again"
        plain = await made(engine, ImageRequest("a boat", seed=7, steps=4, guidance=0, negative_prompt="fog"))
        assert plain.result.images != seventh.result.images, "without guidance it is another"


async def test_a_picture_to_start_from_is_left_as_far_as_asked(supervise, model_folder):
    async with supervise(load("diffusers", model_folder("tiny-sd"), "diffusion")) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        start = (await made(engine, ImageRequest("a boat", seed=1, steps=2))).result.images[0]
        kept = await made(engine, ImageRequest("a cat", image=start, strength=0, steps=10, seed=2))
        assert distance(start, kept.result.images[0]) == 0
        work = [
            await made(engine, ImageRequest("a cat", image=start, strength=strength, steps=10, seed=2))
            for strength in (0.2, 1.0)
        ]
        near, far = (distance(start, each.result.images[0]) for each in work)
        assert 0 < near < far
        assert [each.steps[-1].total for each in work] == [2, 10], "only the last part of the steps is run"
        wide = Image.new("RGB", (300, 150), "teal")
        file = io.BytesIO()
        wide.save(file, "JPEG")
        kept = await made(engine, ImageRequest("a cat", image=file.getvalue(), strength=0.5, steps=2))
        size = picture(kept.result.images[0]).size
        assert size == (kept.result.width_pixels, kept.result.height_pixels) == (88, 48), "its own proportions"


async def test_what_cannot_be_made_costs_only_itself(supervise, model_folder):
    async with supervise(load("diffusers", model_folder("tiny-sd"), "diffusion")) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        bomb = Image.new("1", (1, 1))
        file = io.BytesIO()
        bomb.save(file, "BMP")
        declared = bytearray(file.getvalue())
        declared[18:26] = (40_000).to_bytes(4, "little") + (25_000).to_bytes(4, "little")
        for request, code in (
            (ImageRequest("x", width_pixels=12), "BAD_REQUEST"),
            (ImageRequest("x", steps=500, width_pixels=4096, height_pixels=4096), "TOO_LARGE"),
            (ImageRequest("x", image=b"no picture"), "BAD_REQUEST"),
            (ImageRequest("x", image=bytes(declared)), "TOO_LARGE"),
            (EmbedRequest(("a",)), "UNSUPPORTED"),
        ):
            with pytest.raises(OctonodeError) as caught:
                await made(engine, request)
            assert caught.value.code == code, caught.value
        pid = supervisor.status()[0].pid
        long = ImageRequest("a boat", steps=500)
        with trio.fail_after(120):
            async with engine.make(long) as events:
                async for event in events:
                    if isinstance(event, Step) and event.done >= 2:
                        break
            short = await made(engine, ImageRequest("a boat", steps=1, seed=3))
        assert short.result.steps == 1, "the long one was cancelled, or it would have been served first"
        assert short.steps[-1] == Step(1, 1)
        assert supervisor.status()[0].pid == pid, "the same worker"


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        ({"_class_name": "OnnxStableDiffusionPipeline"}, "UNSUPPORTED", "OnnxStableDiffusionPipeline"),
        ({"_class_name": ["pipeline", "Mine"]}, "UNSUPPORTED", "not run"),
        ({"unet": ["os", "system"]}, "FORMAT_REFUSED", "'unet'"),
        ({"scheduler": ["my_module", "Scheduler"]}, "FORMAT_REFUSED", "my_module"),
    ],
)
async def test_only_known_pipelines_of_known_parts_are_loaded(supervise, model_folder, tmp_path, change, code, why):  # type: ignore[no-untyped-def]
    folder = tmp_path / "model"
    shutil.copytree(model_folder("tiny-sd"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | change))
    async with supervise(load("diffusers", folder, "diffusion")) as supervisor:
        with pytest.raises(OctonodeError, match=why) as caught:
            await supervisor.wait_ready(ROOT)
    assert caught.value.code == code


async def test_a_sound_has_its_seed_length_and_steps(supervise, model_folder):
    async with supervise(load("audioldm", model_folder("tiny-audioldm"), "audio")) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        assert engine.facts.skills == ("sound",)
        request = SoundRequest("rain on a roof", seconds=0.5, steps=3, seed=4)
        rain = await made(engine, request)
        assert (rain.result.seconds, rain.result.sample_rate_hz, rain.result.seed) == (0.5, 16000, 4)
        assert len(rain.result.audio) == len(wav(bytes(16000), 16000))
        assert np.frombuffer(rain.result.audio[44:], "<i2").any(), "no silence"
        assert rain.steps[-1] == Step(3, 3)
        assert (await made(engine, request)).result == rain.result
        assert (
            await made(engine, SoundRequest("rain", seconds=0.5, steps=3, seed=5))
        ).result.audio != rain.result.audio
        with pytest.raises(OctonodeError) as caught:
            await made(engine, SoundRequest("rain", seconds=60, steps=500))
        assert caught.value.code == "TOO_LARGE"
        async with engine.make(SoundRequest("rain", seconds=0.5, steps=500)) as events:
            async for event in events:
                if isinstance(event, Step) and event.done >= 2:
                    break
        assert (await made(engine, request)).result == rain.result


async def test_values_that_are_no_numbers_are_no_picture(supervise, model_folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(model_folder("tiny-sd"), folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.bias"][:] = np.nan
    save_file(weights, file)
    async with supervise(load("diffusers", folder, "diffusion")) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        with pytest.raises(OctonodeError, match="no numbers") as caught:
            await made(engine, ImageRequest("a boat", steps=1))
        assert caught.value.code == "ENGINE_FAILED"
