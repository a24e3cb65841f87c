"""Pictures by diffusion, with Diffusers on torch: from text, and from a picture and text.

On a processor each picture is computed alone, so that the same seed gives the same bytes whatever else is asked:
pictures computed together differ in the last bits, and gain nothing there. Measured: decision 0021.
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octonode.engines.adapters import torch_device
from octonode.engines.adapters.base import Outcome, Progress, refuse_skill
from octonode.engines.adapters.diffusers_plan import (
    Defaults,
    Pipeline,
    Settings,
    pipeline_of,
    seed_after,
    settings_of,
)
from octonode.engines.adapters.pulse import pulsing
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.image import ImageRequest, Images
from octonode.protocol.work.skills import WorkRequest

INDEX: Final = "model_index.json"
ROWS_MAX: Final = 4
"""Pictures computed together on a GPU; bounds its memory."""
RESULT_BYTES_MAX: Final = 15 << 20
"""Of all pictures of one request: a result travels as one artifact."""
_SCHNELL_STEPS: Final = 4


@dataclass(frozen=True, slots=True)
class _Picture:
    """One picture to make."""

    request: int
    """Index of its request in the batch."""
    prompt: str
    negative_prompt: str
    seed: int
    start: Any
    """A PIL image of the right size, or None."""
    alone: bool


class DiffusersMaker:
    """One pipeline of the families in `diffusers_plan.PIPELINES`."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        folder = torch_device.model_folder(request, "diffusers", INDEX)
        self._pipeline = pipeline_of(torch_device.read_config(folder / INDEX))
        return await run_stoppable(lambda _: self._load(request, folder))

    def _load(self, request: LoadRequest, folder: Path) -> EngineFacts:
        self._torch, self._device = torch_device.open_torch(request)
        diffusers = torch_device.imported("diffusers", lambda: __import__("diffusers"))
        try:
            self._from_text = open_pipeline(self._torch, diffusers, self._device, folder, self._pipeline)
            self._from_image = getattr(diffusers, self._pipeline.from_image).from_pipe(self._from_text)
        except Exception as error:
            raise torch_device.load_failed(error) from None
        self._from_image.set_progress_bar_config(disable=True)
        self._defaults = _defaults(self._from_text, self._pipeline)
        return EngineFacts(
            engine="diffusers",
            build=f"diffusers {diffusers.__version__}, torch {self._torch.__version__}",
            backend=self._device.backend,
            instruction_set=self._device.instruction_set,
            context_tokens=0,
            parallel=1,
            quantization=self._device.dtype,
            flags={
                "pipeline": self._pipeline.name,
                "device": self._device.title,
                "threads": request.threads,
                "width_pixels": self._defaults.width,
                "height_pixels": self._defaults.height,
                "steps": self._defaults.steps,
                "guidance": self._defaults.guidance,
            },
            category="diffusion",
            skills=("image",),
        )

    def sample(self) -> WorkRequest | None:
        return None if self._device.name == "cpu" else ImageRequest("a lighthouse", steps=2)

    def key(self, request: WorkRequest) -> Hashable:
        if not isinstance(request, ImageRequest):
            raise refuse_skill(request, "image")
        if request.image or request.seed is not None:
            return object()  # alone: its size is known after decoding; the same seed shall give the same bytes
        return settings_of(request, self._pipeline, self._defaults, None)

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        return await run_stoppable(lambda stop: self._make(requests, progress, stop))

    def close(self) -> None:
        pass

    def _make(self, requests: Sequence[WorkRequest], progress: Progress, stop: Stop) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        wanted: dict[Settings, list[_Picture]] = {}
        plans: dict[int, tuple[Settings, int]] = {}
        for index, request in enumerate(requests):
            try:
                assert isinstance(request, ImageRequest), "by `key`"
                settings, pictures = self._planned(index, request)
            except OctonodeError as error:
                outcomes[index] = error
                continue
            plans[index] = settings, pictures[0].seed
            wanted.setdefault(settings, []).extend(pictures)
        with pulsing(progress) as told:
            made = self._run_all(wanted, told, stop)
        for index, (settings, seed) in plans.items():
            outcomes[index] = _result(made[index], settings, seed)
        return [outcomes[index] for index in range(len(requests))]

    def _planned(self, index: int, request: ImageRequest) -> tuple[Settings, list[_Picture]]:
        """Raises OctonodeError for what this model cannot make of this request."""
        from octonode.engines.adapters.pictures import open_picture

        start = open_picture(request.image) if request.image else None
        size = (start.width, start.height) if start is not None else None
        settings = settings_of(request, self._pipeline, self._defaults, size)
        if start is not None:
            start = start.resize((settings.width, settings.height))
        alone = self._device.name == "cpu" or request.seed is not None
        first = secrets.randbits(32) if request.seed is None else request.seed
        return settings, [
            _Picture(index, request.prompt, request.negative_prompt, seed_after(first, number), start, alone)
            for number in range(request.count)
        ]

    def _run_all(
        self, wanted: dict[Settings, list[_Picture]], progress: Progress, stop: Stop
    ) -> dict[int, list[bytes]]:
        """Index of a request -> its pictures as PNG files."""
        runs = [
            (settings, pictures[start : start + rows])
            for settings, pictures in wanted.items()
            for rows in (1 if any(picture.alone for picture in pictures) else ROWS_MAX,)
            for start in range(0, len(pictures), rows)
        ]
        total = sum(settings.steps_run for settings, _ in runs)
        made: dict[int, list[bytes]] = {}
        before = 0
        for settings, pictures in runs:
            stop.check()
            steps = _Steps(progress, stop, before, total)
            try:
                files = self._run(settings, pictures, steps)
            except Exception as error:
                raise torch_device.run_failed(error, "ask for a smaller picture, or for fewer at a time") from None
            before += settings.steps_run
            for picture, file in zip(pictures, files, strict=True):
                made.setdefault(picture.request, []).append(file)
        return made

    def _run(self, settings: Settings, pictures: Sequence[_Picture], steps: _Steps) -> list[bytes]:
        import numpy as np
        from PIL import Image

        from octonode.engines.adapters.pictures import png_of

        if settings.steps_run == 0:
            return [png_of(picture.start) for picture in pictures]
        arrays = self._pipe(settings, pictures, steps)
        if not np.isfinite(arrays).all():
            raise torch_device.not_numbers()
        return [png_of(Image.fromarray((array * 255).round().astype("uint8"))) for array in arrays]

    def _pipe(self, settings: Settings, pictures: Sequence[_Picture], steps: _Steps) -> Any:
        """Float array [pictures, height, width, 3] from 0 to 1."""
        options: dict[str, Any] = {
            "prompt": [picture.prompt for picture in pictures],
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "generator": [self._torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures],
            "callback_on_step_end": steps.end_of_step,
            "output_type": "np",
        }
        if self._pipeline.negative_prompts:
            options["negative_prompt"] = [picture.negative_prompt for picture in pictures]
        if settings.from_image:
            starts = [picture.start for picture in pictures]
            return self._from_image(image=starts, strength=settings.strength, **options).images
        return self._from_text(width=settings.width, height=settings.height, **options).images


class _Steps:
    """Progress of one run within all of them; ends it from inside when nobody wants it any more."""

    def __init__(self, progress: Progress, stop: Stop, before: int, total: int) -> None:
        self._progress = progress
        self._stop = stop
        self._before = before
        self._total = total

    def end_of_step(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._stop.check()
        self._progress(min(self._before + index + 1, self._total), self._total)
        return tensors


def open_pipeline(torch: Any, diffusers: Any, device: torch_device.Device, folder: Path, kind: Pipeline) -> Any:
    """The loaded pipeline on its device: only files that are there, only SafeTensors, no code of the model's."""
    checker = {"safety_checker": None, "requires_safety_checker": False} if kind.safety_checker else {}
    pipe = getattr(diffusers, kind.name).from_pretrained(
        str(folder),
        dtype=getattr(torch, device.dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **checker,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device.name)


def _defaults(pipe: Any, kind: Pipeline) -> Defaults:
    sample = getattr(pipe, "default_sample_size", None)
    if sample is None:
        network = getattr(pipe, "unet", None) or pipe.transformer
        sample = network.config.sample_size
    height, width = sample if isinstance(sample, (list, tuple)) else (sample, sample)
    multiple = kind.multiple_pixels
    sides = [max(1, side * pipe.vae_scale_factor // multiple) * multiple for side in (width, height)]
    said = inspect.signature(pipe.__call__).parameters
    steps, guidance = said["num_inference_steps"].default, said["guidance_scale"].default
    transformer = getattr(pipe, "transformer", None)
    if kind.name == "FluxPipeline" and not getattr(transformer.config, "guidance_embeds", True):  # type: ignore[union-attr]
        steps, guidance = _SCHNELL_STEPS, 0.0  # the distilled one
    return Defaults(sides[0], sides[1], steps, guidance)


def _result(files: Sequence[bytes], settings: Settings, seed: int) -> Outcome:
    size = sum(map(len, files))
    if size > RESULT_BYTES_MAX:
        most = RESULT_BYTES_MAX >> 20
        text = f"{len(files)} pictures of {size >> 20} MiB in all; at most {most} MiB travel: ask for fewer"
        return OctonodeError(text, code="TOO_LARGE")
    return Images(tuple(files), settings.width, settings.height, settings.steps, seed)
