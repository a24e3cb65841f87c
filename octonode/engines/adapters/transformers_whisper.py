"""Speech to text with Whisper models in SafeTensors, by transformers on torch: the second engine for it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Final

from octonode.engines.adapters import torch_device
from octonode.engines.adapters.base import Outcome, Progress, refuse_skill
from octonode.engines.adapters.faster_whisper import RATE_HZ, SEGMENTS_MAX, WORDS_MAX, check_language, within
from octonode.engines.adapters.pulse import each_pulsing
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import Segment, TranscribeRequest, Transcription, Word
from octonode.protocol.work.skills import WorkRequest

ENGINE: Final = "transformers-whisper"
WINDOW_SECONDS: Final = 30
_FALLBACKS: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_COMPRESSION_MOST, _LOGPROB_LEAST, _SILENCE_LEAST = 1.35, -1.0, 0.6
"""When a window is tried again, or held to be silent: OpenAI's values, the first for tokens instead of characters."""
_RANDOM_SEED: Final = 1


class TransformersWhisperMaker:
    """One Whisper model. Requests run one after the other."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        folder = torch_device.model_folder(request, ENGINE, "config.json", "preprocessor_config.json")
        return await run_stoppable(lambda _: self._load(request, folder))

    def _load(self, request: LoadRequest, folder: Path) -> EngineFacts:
        self._torch, device = torch_device.open_torch(request)
        library = torch_device.imported(ENGINE, lambda: __import__("transformers"))
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._hearing = library.WhisperFeatureExtractor.from_pretrained(str(folder), **options)
            self._tokenizer = library.AutoTokenizer.from_pretrained(str(folder), **options)
            model = library.WhisperForConditionalGeneration.from_pretrained(
                str(folder),
                dtype=getattr(self._torch, device.dtype),
                use_safetensors=True,
                attn_implementation="eager",  # the only one that shows where each word was heard
                **options,
            )
            self._model = model.to(device.name).eval()
        except Exception as error:
            raise torch_device.load_failed(error) from None
        said = self._model.generation_config
        self._codes = {
            str(token).strip("<|>"): number for token, number in (getattr(said, "lang_to_id", None) or {}).items()
        }
        self._has_words = bool(getattr(said, "alignment_heads", None))
        return EngineFacts(
            engine=ENGINE,
            build=f"transformers {library.__version__}, torch {self._torch.__version__}",
            backend=device.backend,
            instruction_set=device.instruction_set,
            context_tokens=0,
            parallel=1,
            quantization=device.dtype,
            flags={"threads": request.threads, "multilingual": bool(self._codes), "words": self._has_words},
            category="audio",
            skills=("transcribe",),
        )

    def sample(self) -> WorkRequest | None:
        return None

    def key(self, request: WorkRequest) -> Hashable:
        if not isinstance(request, TranscribeRequest):
            raise refuse_skill(request, "transcribe")
        check_language(request.language, frozenset(self._codes or ("en",)))
        if request.words and not self._has_words:
            text = "this model tells no times of words (no alignment_heads in its generation_config.json)"
            raise OctonodeError(text, code="UNSUPPORTED")
        return "transcribe"

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        return await each_pulsing(requests, TranscribeRequest, self._transcribed, progress)

    def close(self) -> None:
        pass

    def _transcribed(self, request: TranscribeRequest, progress: Progress, stop: Stop) -> Transcription:
        from octonode.engines.adapters.compressed_sounds import read_sound

        samples = read_sound(request.audio, RATE_HZ, stop.check)
        seconds = len(samples) / RATE_HZ
        if not len(samples):
            return Transcription("", request.language or "en", 0.0)
        total = math.ceil(seconds)

        def tell(places: Any) -> None:
            stop.check()
            here, last = (int(value) for value in places[0])
            progress(min(total, math.floor(seconds * here / max(1, last))), total)

        self._torch.manual_seed(_RANDOM_SEED)
        with self._torch.inference_mode():
            features, mask = self._features(samples)
            language = request.language or self._heard_language(features)
            found = self._model.generate(
                features, attention_mask=mask, **self._options(request, language, stop), monitor_progress=tell
            )["segments"][0]
        stop.check()
        segments = tuple(self._segment(each, seconds, words=request.words) for each in found[:SEGMENTS_MAX])
        progress(total, total)
        return Transcription("".join(each.text for each in segments).strip(), language, seconds, segments)

    def _features(self, samples: Any) -> tuple[Any, Any]:
        """([1, mels, frames], mask [1, frames]): at least one whole window, which shorter sounds are padded to."""
        long = len(samples) > WINDOW_SECONDS * RATE_HZ
        options = {"truncation": False, "padding": "longest"} if long else {}
        heard = self._hearing(
            samples, sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True, **options
        )
        device, dtype = self._model.device, self._model.dtype
        return heard.input_features.to(device, dtype), heard.attention_mask.to(device)

    def _heard_language(self, features: Any) -> str:
        if not self._codes:
            return "en"
        frames = WINDOW_SECONDS * RATE_HZ // self._hearing.hop_length
        number = int(self._model.detect_language(features[..., :frames])[0])
        return next((code for code, each in self._codes.items() if each == number), "en")

    def _options(self, request: TranscribeRequest, language: str, stop: Stop) -> dict[str, Any]:
        def criterion(tokens: Any, scores: Any, **_: Any) -> Any:
            stop.check()
            return self._torch.zeros(tokens.shape[0], dtype=self._torch.bool, device=tokens.device)

        options: dict[str, Any] = {
            "return_timestamps": True,
            "return_segments": True,
            "temperature": request.temperature or _FALLBACKS,
            "compression_ratio_threshold": _COMPRESSION_MOST,
            "logprob_threshold": _LOGPROB_LEAST,
            "no_speech_threshold": _SILENCE_LEAST,
            "stopping_criteria": [criterion],
        }
        if self._codes:
            options |= {"language": language, "task": "transcribe"}
        if request.prompt:
            options["prompt_ids"] = self._prompt(request.prompt)
        if request.words:
            options["return_token_timestamps"] = True
        return options

    def _prompt(self, prompt: str) -> Any:
        """Its mark and its last tokens, half of what the decoder holds. Raises OctonodeError BAD_REQUEST."""
        try:
            ids = self._tokenizer.get_prompt_ids(prompt, return_tensors="pt")
        except ValueError as error:  # marks of the model's own
            raise OctonodeError(f"the prompt is not taken: {str(error)[:200]}", code="BAD_REQUEST") from None
        kept = self._model.config.max_target_positions // 2 - 1
        return self._torch.cat([ids[:1], ids[1:][-kept:]]).to(self._model.device)

    def _segment(self, found: dict[str, Any], seconds: float, *, words: bool) -> Segment:
        tokens = found["tokens"].tolist()
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        start, end = within(found["start"], seconds), within(found["end"], seconds)
        spoken = self._words(tokens, found["token_timestamps"].tolist(), start, seconds) if words else ()
        return Segment(text[:8192], start, end, spoken)

    def _words(self, tokens: list[int], times: list[float], start: float, seconds: float) -> tuple[Word, ...]:
        """A word begins where a token's text begins with a space. `times` are those at which each token ends."""
        words: list[Word] = []
        group: list[int] = []
        begins, ends = start, start
        for token, time in zip(tokens, times, strict=False):
            if token >= self._tokenizer.eos_token_id:  # marks and times stand behind the words in the vocabulary
                ends = max(ends, within(time, seconds))
                continue
            if group and self._tokenizer.decode([token]).startswith(" "):
                words.append(Word(self._tokenizer.decode(group)[:256], begins, ends))
                group = []
            begins = begins if group else ends
            group.append(token)
            ends = max(ends, within(time, seconds))
        if group:
            words.append(Word(self._tokenizer.decode(group)[:256], begins, ends))
        return tuple(words[:WORDS_MAX])
