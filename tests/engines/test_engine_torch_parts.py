"""Parts of the adapters on torch that need no torch: plans of pictures, text of tokens, containers of sound, pulses."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.engines.adapters import torch_device
from octonode.engines.adapters.compressed_sounds import read_sound
from octonode.engines.adapters.diffusers_plan import (
    PIPELINES,
    STEP_PIXELS_MAX,
    Defaults,
    check_parts,
    fitting,
    pipeline_of,
    seed_after,
    settings_of,
)
from octonode.engines.adapters.grammar import Grammars
from octonode.engines.adapters.pulse import pulsing
from octonode.engines.adapters.stoppable import Stop, Stopped
from octonode.engines.adapters.token_text import LateLogprobs, TokenText
from octonode.engines.contract import LoadRequest, TokenLogprob
from octonode.errors import ConfigError, OctonodeError
from octonode.protocol.work.image import ImageRequest
from tests.engines.makers import wav_of

STABLE, FLUX = PIPELINES["StableDiffusionPipeline"], PIPELINES["FluxPipeline"]
DEFAULTS = Defaults(512, 512, 50, 7.5)


def test_what_a_request_leaves_out_is_the_models_own() -> None:
    settings = settings_of(ImageRequest("a boat"), STABLE, DEFAULTS, None)
    assert (settings.width, settings.height, settings.steps, settings.guidance) == (512, 512, 50, 7.5)
    assert (settings.strength, settings.from_image, settings.steps_run) == (1.0, False, 50)
    asked = ImageRequest("a boat", width_pixels=64, steps=3, guidance=0.0, strength=0.1)
    settings = settings_of(asked, STABLE, DEFAULTS, None)
    assert (settings.width, settings.height, settings.steps_run, settings.guidance) == (64, 512, 3, 0.0)


@pytest.mark.parametrize(("strength", "run"), [(0, 0), (0.05, 0), (0.5, 5), (0.99, 9), (1, 10)])
def test_from_a_picture_the_last_part_of_the_steps_is_run(strength: float, run: int) -> None:
    asked = ImageRequest("a boat", image=b"x", steps=10, strength=strength)
    assert settings_of(asked, STABLE, DEFAULTS, (64, 64)).steps_run == run


@pytest.mark.parametrize(
    ("request_", "pipeline", "code", "why"),
    [
        (ImageRequest("x", width_pixels=100), STABLE, "BAD_REQUEST", "such as 96"),
        (ImageRequest("x", height_pixels=9), STABLE, "BAD_REQUEST", "such as 8"),
        (ImageRequest("x", height_pixels=24), FLUX, "BAD_REQUEST", "multiples of 16"),
        (ImageRequest("x", negative_prompt="y"), FLUX, "UNSUPPORTED", "negative_prompt"),
        (ImageRequest("x", steps=500, count=8), STABLE, "TOO_LARGE", "fewer"),
    ],
)
def test_what_a_model_cannot_make_is_refused(request_: ImageRequest, pipeline: Any, code: str, why: str) -> None:
    with pytest.raises(OctonodeError, match=why) as caught:
        settings_of(request_, pipeline, DEFAULTS, None)
    assert caught.value.code == code


@given(width=st.integers(1, 60_000), height=st.integers(1, 60_000), count=st.integers(1, 8), steps=st.integers(0, 500))
def test_whatever_picture_comes_its_size_is_bounded_and_fits(width: int, height: int, count: int, steps: int) -> None:
    request = ImageRequest("x", image=b"x", count=count, steps=min(steps, STEP_PIXELS_MAX // (8 * 600 * 600)))
    settings = settings_of(request, STABLE, DEFAULTS, (width, height))
    assert settings.width % 8 == settings.height % 8 == 0
    assert 8 <= settings.width <= 4096
    assert 8 <= settings.height <= 4096
    assert count * settings.steps * settings.width * settings.height <= STEP_PIXELS_MAX


def test_proportions_are_kept() -> None:
    assert fitting((4000, 2000), 512 * 512, 8) == (728, 360)
    assert fitting((100, 50), 512 * 512, 8) == (96, 48), "never larger than it came"
    assert fitting((512, 512), 512 * 512, 8) == (512, 512)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 7))
def test_seeds_stay_in_their_bounds(seed: int, number: int) -> None:
    after = seed_after(seed, number)
    assert -(2**63) <= after < 2**63
    assert (after - seed - number) % 2**64 == 0


def test_parts_of_a_pipeline_come_from_two_libraries_alone() -> None:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": [None, None],
    }
    assert pipeline_of(index) is STABLE
    for bad in (["os", "system"], ["diffusers", "a.b"], ["diffusers"], ["diffusers", 5], [[], {}]):
        with pytest.raises(OctonodeError) as caught:
            check_parts(index | {"unet": bad}, skip=("safety_checker",))
        assert caught.value.code == "FORMAT_REFUSED"
    with pytest.raises(OctonodeError, match="not run"):
        pipeline_of({"_class_name": "LDMTextToImagePipeline"})


class Bytes:
    """A tokenizer whose tokens are bytes, and 256 a mark that is not shown."""

    def decode(self, ids: Any, **_: object) -> str:
        return bytes(each for each in ids if each < 256).decode(errors="replace")


@given(st.text(max_size=40), st.text(max_size=10))
def test_tokens_join_to_their_text_without_halves(answer: str, prompt: str) -> None:
    answer, prompt = (text.replace("\ufffd", "") for text in (answer, prompt))
    text = TokenText(Bytes(), [*prompt.encode(), 256])
    pieces = [text.feed(byte) for byte in answer.encode()]
    assert "".join(pieces) == answer
    assert text.finish() == ""
    assert "\ufffd" not in "".join(pieces)


def test_bytes_that_become_no_character_are_not_held_for_ever() -> None:
    text = TokenText(Bytes(), [])
    pieces = [text.feed(0x80) for _ in range(20)]
    assert any(pieces)
    half = TokenText(Bytes(), [])
    assert [half.feed(each) for each in b"a\xc3"] == ["a", ""]
    assert half.finish() == "", "half a character is left out"


def test_a_probability_waits_for_the_text_of_its_token() -> None:
    late = LateLogprobs()
    tokens = [TokenLogprob(text, -1.0) for text in ("Hello", "", " you")]
    for token in tokens:
        late.add(token, len(token.text))
    assert late.put_out([]) == []
    assert late.put_out(["Hel"]) == []
    assert late.put_out(["lo"]) == tokens[:2]
    assert late.put_out([" y"]) == []
    assert late.put_out(["ou"]) == tokens[2:]


@pytest.mark.parametrize(
    "data", [b"nothing", b"", b"#EXTM3U\nfile:///etc/passwd", b"ffconcat version 1.0", b"\x80\x04.", b"GIF89a"]
)
def test_what_is_no_known_sound_is_not_given_to_a_decoder(data: bytes) -> None:
    with pytest.raises(OctonodeError, match="none of WAV") as caught:
        read_sound(data, 16_000, lambda: None)
    assert caught.value.code == "BAD_REQUEST"
    assert len(read_sound(wav_of(bytes(320), 16_000), 16_000, lambda: None)) == 160


def test_a_computing_step_pulses_and_a_hung_one_does_not() -> None:
    told: list[tuple[int, int]] = []
    with pulsing(lambda done, total: told.append((done, total)), pulse_seconds=0.05) as progress:
        progress(2, 5)
        while len(told) < 3:  # this thread computes
            sum(range(1000))
    assert set(told) == {(2, 5)}
    told.clear()
    with pulsing(lambda done, total: told.append((done, total)), pulse_seconds=0.05):
        time.sleep(0.3)
    assert not told, "no processor time, no pulse"


def test_a_stop_is_seen() -> None:
    stop = Stop()
    stop.check()
    stop.ask()
    assert stop.asked
    with pytest.raises(Stopped):
        stop.check()


class OutOfMemoryError(RuntimeError):
    """Called as torch calls its own."""


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        (OutOfMemoryError("CUDA"), "ENGINE_FAILED", "does not fit"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "ENGINE_FAILED", "does not fit"),
        (MemoryError(), "ENGINE_FAILED", "does not fit"),
        (ValueError("Unrecognized model"), "FORMAT_REFUSED", "Unrecognized model"),
        (OSError("no file named model.safetensors"), "FORMAT_REFUSED", "model.safetensors"),
        (OSError(5, "Input/output error"), "ENGINE_FAILED", "Input/output"),
        (RuntimeError("odd"), "ENGINE_FAILED", "odd"),
        (OctonodeError("ours", code="UNSUPPORTED"), "UNSUPPORTED", "ours"),
    ],
)
def test_faults_of_a_load_say_whether_another_try_helps(error: Exception, code: str, why: str) -> None:
    told = torch_device.load_failed(error)
    assert told.code == code
    assert why in told.message


def test_a_missing_library_names_its_extra() -> None:
    def load() -> Any:
        raise ModuleNotFoundError("No module named 'diffusers'")

    with pytest.raises(ConfigError, match=r"pip install 'octonode\[diffusion\]'"):
        torch_device.imported("diffusers", load)


class _Cpu:
    """What a probe asks of torch, on a machine without a GPU or with one."""

    class version:
        hip = None

    def __init__(self, *, cuda: bool = False, hip: bool = False, mps: bool = False, bf16: bool = True) -> None:
        self.version = type("version", (), {"hip": "6.4" if hip else None})
        self.cuda = type(
            "cuda",
            (),
            {
                "is_available": staticmethod(lambda: cuda or hip),
                "is_bf16_supported": staticmethod(lambda: bf16),
                "get_device_name": staticmethod(lambda _: "a GPU"),
                "get_device_capability": staticmethod(lambda _: (9, 0)),
            },
        )
        cpu = type("cpu", (), {"get_cpu_capability": staticmethod(lambda: "AVX2")})
        metal = type("mps", (), {"is_available": staticmethod(lambda: mps)})
        self.backends = type("backends", (), {"cpu": cpu, "mps": metal})


@pytest.mark.parametrize(
    ("torch", "found"),
    [
        (_Cpu(), ("cpu", "cpu", "float32", "AVX2")),
        (_Cpu(cuda=True), ("cuda", "cuda", "bfloat16", "9.0")),
        (_Cpu(cuda=True, bf16=False), ("cuda", "cuda", "float16", "9.0")),
        (_Cpu(hip=True), ("cuda", "rocm", "bfloat16", "9.0")),
        (_Cpu(mps=True), ("mps", "mps", "float16", "")),
    ],
)
def test_the_device_is_the_fastest_there_is(torch: Any, found: tuple[str, ...]) -> None:
    device = torch_device.device_of(torch, {})
    assert (device.name, device.backend, device.dtype, device.instruction_set) == found
    assert torch_device.device_of(torch, {"dtype": "float16"}).dtype == "float16"
    with pytest.raises(ConfigError, match="none of auto, float32"):
        torch_device.device_of(torch, {"dtype": "int3"})


def test_a_folder_without_its_config_is_no_model(tmp_path: Any) -> None:
    load = LoadRequest("transformers", tmp_path, "root")
    with pytest.raises(OctonodeError, match=r"config\.json") as caught:
        torch_device.model_folder(load, "transformers", "config.json")
    assert caught.value.code == "FORMAT_REFUSED"
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(OctonodeError, match="no JSON object"):
        torch_device.read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OctonodeError, match="cannot be read"):
        torch_device.read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("schema", "code"), [("{", "BAD_REQUEST"), ("[]", "BAD_REQUEST"), (" " * 300_000, "TOO_LARGE")]
)
def test_what_is_no_schema_is_refused_before_any_library_sees_it(schema: str, code: str) -> None:
    with pytest.raises(OctonodeError) as caught:
        Grammars(None, 10, frozenset()).constraint(schema)
    assert caught.value.code == code
