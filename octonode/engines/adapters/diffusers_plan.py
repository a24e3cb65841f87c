"""What one request for pictures means for one pipeline: its size, steps and guidance, within bounds. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from octonode.errors import OctonodeError
from octonode.protocol.work.image import ImageRequest

STEP_PIXELS_MAX: Final = 8 * 50 * 1024 * 1024
"""Pictures x steps x pixels of one request: eight of 1024 x 1024 in 50 steps each."""
SIDE_PIXELS_MIN: Final = 8
_SEEDS: Final = 2**64


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One family: who makes pictures from text, and who from a picture."""

    name: str
    from_image: str
    multiple_pixels: int = 8
    negative_prompts: bool = True
    safety_checker: bool = False
    """Whether its constructor takes one; ours is always None: what may be asked for is for its owner to say."""


PIPELINES: Final = {
    pipeline.name: pipeline
    for pipeline in (
        Pipeline("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", safety_checker=True),
        Pipeline("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        Pipeline("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", 16),
        Pipeline("FluxPipeline", "FluxImg2ImgPipeline", 16, negative_prompts=False),
    )
}
"""The classes that are loaded; any other name in a model's index is refused."""
LIBRARIES: Final = ("diffusers", "transformers")


def pipeline_of(index: dict[str, Any]) -> Pipeline:
    """The family that `model_index.json` names. Raises OctonodeError: UNSUPPORTED for one that is not in PIPELINES,
    FORMAT_REFUSED for parts that come from elsewhere than LIBRARIES."""
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise OctonodeError(
            f"pipelines of the kind {str(name)[:64]!r} are not run; run are {known}", code="UNSUPPORTED"
        )
    check_parts(index, skip=("safety_checker",))
    return PIPELINES[name]


def check_parts(index: dict[str, Any], *, skip: tuple[str, ...] = (), libraries: tuple[str, ...] = LIBRARIES) -> None:
    """Raises OctonodeError FORMAT_REFUSED unless each part is a class of `libraries`, so that no code is looked up."""
    for part, said in index.items():
        if not isinstance(said, list) or part in skip:
            continue
        library, kind = said if len(said) == 2 else ("?", "?")
        if library is None and kind is None:
            continue
        if library not in libraries or not isinstance(kind, str) or not kind.isidentifier():
            known = " and ".join(libraries)
            text = f"its part {part[:64]!r} is of {str(library)[:64]!r}; only parts of {known} are loaded"
            raise OctonodeError(text, code="FORMAT_REFUSED")


@dataclass(frozen=True, slots=True)
class Settings:
    """Pictures with equal settings can be made in one run."""

    width: int
    height: int
    steps: int
    guidance: float
    strength: float
    """1 and `from_image` False where there is no picture to start from."""
    from_image: bool

    @property
    def steps_run(self) -> int:
        """From a picture, only the last part of the steps is run; 0: the picture stays as it is."""
        return min(self.steps, int(self.steps * self.strength)) if self.from_image else self.steps


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the model was made for."""

    width: int
    height: int
    steps: int
    guidance: float


def settings_of(
    request: ImageRequest, pipeline: Pipeline, defaults: Defaults, picture_size: tuple[int, int] | None
) -> Settings:
    """`picture_size` is that of the picture to start from, (width, height); None: there is none.

    Raises OctonodeError: BAD_REQUEST for sides that the model cannot make, UNSUPPORTED, TOO_LARGE.
    """
    if request.negative_prompt and not pipeline.negative_prompts:
        raise OctonodeError("this model takes no negative_prompt; leave it out", code="UNSUPPORTED")
    multiple = pipeline.multiple_pixels
    for name, side in (("width_pixels", request.width_pixels), ("height_pixels", request.height_pixels)):
        if side % multiple or 0 < side < SIDE_PIXELS_MIN:
            nearest = max(multiple, round(side / multiple) * multiple)
            text = f"{name} is {side}; this model makes multiples of {multiple}, such as {nearest}"
            raise OctonodeError(text, code="BAD_REQUEST")
    width, height = defaults.width, defaults.height
    if picture_size is not None:
        width, height = fitting(picture_size, width * height, multiple)
    settings = Settings(
        width=request.width_pixels or width,
        height=request.height_pixels or height,
        steps=request.steps or defaults.steps,
        guidance=defaults.guidance if request.guidance < 0 else request.guidance,
        strength=request.strength if picture_size is not None else 1.0,
        from_image=picture_size is not None,
    )
    work = request.count * settings.steps * settings.width * settings.height
    if work > STEP_PIXELS_MAX:
        text = (
            f"{request.count} x {settings.width} x {settings.height} pixels in {settings.steps} steps is more than "
            f"{STEP_PIXELS_MAX:,} in all; ask for fewer, smaller, or with fewer steps"
        )
        raise OctonodeError(text, code="TOO_LARGE")
    return settings


def fitting(size: tuple[int, int], pixels: int, multiple: int) -> tuple[int, int]:
    """(width, height) of about `pixels` in all with the proportions of `size`, never larger than it, in multiples."""
    scale = min(1.0, math.sqrt(pixels / (size[0] * size[1])))
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in size)
    return min(width, 4096 // multiple * multiple), min(height, 4096 // multiple * multiple)


def seed_after(seed: int, steps: int) -> int:
    """`seed + steps` as a signed number of 64 bits, which is what a request can say."""
    return (seed + steps + _SEEDS // 2) % _SEEDS - _SEEDS // 2
