"""Sound from a description with AudioLDM, by Diffusers on torch."""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Final

from octonode.engines.adapters import torch_device
from octonode.engines.adapters.base import Outcome, Progress, refuse_skill
from octonode.engines.adapters.diffusers_plan import LIBRARIES, check_parts
from octonode.engines.adapters.pulse import each_pulsing
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import Sound, SoundRequest
from octonode.protocol.work.skills import WorkRequest

ENGINE: Final = "audioldm"
INDEX: Final = "model_index.json"
PIPELINES: Final = ("AudioLDMPipeline", "AudioLDM2Pipeline")
STEP_SECONDS_MAX: Final = 60 * 200
"""Seconds of sound x steps of one request: a minute in 200 steps."""


class AudioLdmMaker:
    """One pipeline. Requests run one after the other, so that the same seed gives the same bytes."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        folder = torch_device.model_folder(request, ENGINE, INDEX)
        index = torch_device.read_config(folder / INDEX)
        kind = index.get("_class_name")
        if kind not in PIPELINES:
            text = f"pipelines of the kind {str(kind)[:64]!r} are not run; run are {', '.join(PIPELINES)}"
            raise OctonodeError(text, code="UNSUPPORTED")
        check_parts(index, libraries=(*LIBRARIES, "audioldm2"))
        return await run_stoppable(lambda _: self._load(request, folder, str(kind)))

    def _load(self, request: LoadRequest, folder: Path, kind: str) -> EngineFacts:
        self._torch, device = torch_device.open_torch(request)
        diffusers = torch_device.imported(ENGINE, lambda: __import__("diffusers"))
        try:
            self._pipe = getattr(diffusers, kind).from_pretrained(
                str(folder),
                dtype=getattr(self._torch, device.dtype),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
            self._pipe.set_progress_bar_config(disable=True)
            self._pipe = self._pipe.to(device.name)
        except Exception as error:
            raise torch_device.load_failed(error) from None
        self._rate_hz = int(self._pipe.vocoder.config.sampling_rate)
        return EngineFacts(
            engine=ENGINE,
            build=f"diffusers {diffusers.__version__}, torch {self._torch.__version__}",
            backend=device.backend,
            instruction_set=device.instruction_set,
            context_tokens=0,
            parallel=1,
            quantization=device.dtype,
            flags={"pipeline": kind, "threads": request.threads, "sample_rate_hz": self._rate_hz},
            category="audio",
            skills=("sound",),
        )

    def sample(self) -> WorkRequest | None:
        return None

    def key(self, request: WorkRequest) -> Hashable:
        if not isinstance(request, SoundRequest):
            raise refuse_skill(request, "sound")
        if request.seconds * request.steps > STEP_SECONDS_MAX:
            text = (
                f"{request.seconds:g} s in {request.steps} steps is more than {STEP_SECONDS_MAX:,} in all; ask for less"
            )
            raise OctonodeError(text, code="TOO_LARGE")
        return "sound"

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        return await each_pulsing(requests, SoundRequest, self._sound, progress)

    def close(self) -> None:
        pass

    def _sound(self, request: SoundRequest, progress: Progress, stop: Stop) -> Sound:
        import numpy as np

        from octonode.engines.adapters.sounds import write_wav

        def end_of_step(index: int, timestep: Any, latents: Any) -> None:
            stop.check()
            progress(min(index + 1, request.steps), request.steps)

        stop.check()
        seed = secrets.randbits(32) if request.seed is None else request.seed
        try:
            made = self._pipe(
                request.prompt,
                negative_prompt=request.negative_prompt or None,
                audio_length_in_s=request.seconds,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=self._torch.Generator("cpu").manual_seed(seed),
                callback=end_of_step,
                output_type="np",
            )
        except Exception as error:
            raise torch_device.run_failed(error, "ask for a shorter sound") from None
        samples = np.asarray(made.audios[0], np.float32).reshape(-1)
        if not np.isfinite(samples).all():
            raise torch_device.not_numbers()
        seconds = len(samples) / self._rate_hz
        return Sound(write_wav(samples, self._rate_hz), self._rate_hz, seconds, seed=seed)
