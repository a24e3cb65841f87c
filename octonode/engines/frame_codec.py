"""Frames as bytes, both ways. Pure; whatever the bytes, only `FrameError` is raised."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgpack

from octonode.engines.contract import EngineFacts, FinishReason, GenerateRequest, LoadRequest, TokenLogprob
from octonode.engines.frames import (
    FRAME_BYTES_MAX,
    TEXT_CHARACTERS_MAX,
    Beat,
    Cancel,
    EndFrame,
    ErrorFrame,
    Frame,
    FrameError,
    Load,
    LoadFailed,
    LogprobsFrame,
    PiecesFrame,
    PrefillFrame,
    Ready,
    ResultFrame,
    StepFrame,
    Submit,
)
from octonode.errors import TABLE
from octonode.protocol.work.records import RecordError, write
from octonode.protocol.work.skills import CHAT, read_request, read_result, skill_of

PROMPT_CHARACTERS_MAX = FRAME_BYTES_MAX
REQUEST_ID_MAX = 2**53

_LENGTH = struct.Struct(">I")
_FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "cancel")
_T = TypeVar("_T")


def encode(frame: Frame) -> bytes:
    """The frame with its length. Raises FrameError for text that is not Unicode, numbers over 64 bits and oversize."""
    try:
        payload: bytes = msgpack.packb(_fields(frame), use_bin_type=True)
    except (ValueError, OverflowError, TypeError) as error:
        raise FrameError(f"a {type(frame).__name__} cannot be written: {type(error).__name__}") from None
    if len(payload) > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {len(payload)} bytes is over the limit of {FRAME_BYTES_MAX}", code="TOO_LARGE")
    return _LENGTH.pack(len(payload)) + payload


def _fields(frame: Frame) -> list[Any]:
    tag = _TAGS[type(frame)]
    if isinstance(frame, PiecesFrame):  # the hot one
        return [tag, frame.id, frame.pieces]
    if isinstance(frame, Load):
        request = _as_map(frame.request) | {"model_path": _path_text(frame.request.model_path)}
        return [tag, request, frame.sandbox, str(frame.temporary_directory)]
    if isinstance(frame, Submit):
        if isinstance(frame.request, GenerateRequest):
            return [tag, frame.id, CHAT, _as_map(frame.request)]
        return [tag, frame.id, skill_of(frame.request).name, write(frame.request)]
    if isinstance(frame, ResultFrame):
        return [tag, frame.id, frame.skill, write(frame.result)]
    if isinstance(frame, LogprobsFrame):
        return [tag, frame.id, [[token.text, token.logprob, token.top] for token in frame.tokens]]
    if isinstance(frame, Ready):
        return [tag, _as_map(frame.facts), frame.sandbox]
    return [tag, *(getattr(frame, field.name) for field in dataclasses.fields(frame))]


def _as_map(value: LoadRequest | GenerateRequest | EngineFacts) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _path_text(path: Path | None) -> str | None:
    return None if path is None else str(path)


class FrameDecoder:
    """Cuts a byte stream into frames, however it was split. Holds at most one unfinished frame."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Raises FrameError; the stream is of no use after that."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start = 0
        while len(buffer) - start >= 4:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > self._frame_bytes_max:
                raise FrameError(f"a frame of {size} bytes is announced, the limit is {self._frame_bytes_max}")
            end = start + 4 + size
            if len(buffer) < end:
                break
            frames.append(decode(bytes(buffer[start + 4 : end])))
            start = end
        if start:
            del buffer[:start]
        return frames


def decode(payload: bytes) -> Frame:
    """The frame in a payload without its length. Raises FrameError."""
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=True, ext_hook=_refuse_extension)
    except (ValueError, msgpack.UnpackException, TypeError, OverflowError) as error:
        raise FrameError(f"a frame is not msgpack: {type(error).__name__}") from None
    _require(type(value) is list and len(value) >= 1 and type(value[0]) is int, "an array that begins with a tag")
    row = _PARSERS.get(value[0])
    if row is None:
        raise FrameError(f"a frame has the unknown tag {value[0]}")
    count, parse = row
    _require(len(value) == count + 1, f"{count} fields after tag {value[0]}")
    return parse(*value[1:])


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError("extension types are not used")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise FrameError(f"a frame needs {what}")


def _typed(value: Any, kind: type[_T], what: str) -> _T:
    if type(value) is not kind:
        raise FrameError(f"a frame needs {what} as {kind.__name__}")
    return value


def _count(value: Any, what: str) -> int:
    number = _typed(value, int, what)
    _require(0 <= number <= REQUEST_ID_MAX, f"{what} from 0 to 2**53")
    return number


def _text(value: Any, what: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    text = _typed(value, str, what)
    _require(len(text) <= characters_max, f"{what} of at most {characters_max} characters")
    return text


def _number(value: Any, what: str) -> float:
    _require(type(value) in (int, float), f"{what} as a number")
    return float(value)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    return tuple(_text(item, what) for item in _typed(value, list, what))


def _scalars(value: Any, what: str) -> dict[str, str | int | float | bool]:
    entries = _typed(value, dict, what)
    for name, item in entries.items():
        _require(type(name) is str and type(item) in (str, int, float, bool), f"{what} of plain values")
    return entries


def _record(value: Any, kind: type, what: str) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    record = _typed(value, dict, what)
    _require(set(record) == names, f"exactly the fields of {kind.__name__} in {what}")
    return record


def _parse_load(request: Any, sandbox: Any, directory: Any) -> Load:
    raw = _record(request, LoadRequest, "a load request")
    path = raw["model_path"]
    parsed = LoadRequest(
        engine=_text(raw["engine"], "engine"),
        model_path=None if path is None else Path(_text(path, "model path")),
        model_root=_text(raw["model_root"], "model root"),
        context_tokens=_count(raw["context_tokens"], "context"),
        parallel=_count(raw["parallel"], "parallel"),
        threads=_count(raw["threads"], "threads"),
        options=_scalars(raw["options"], "options"),
        category=_text(raw["category"], "category"),
        devices=_texts(raw["devices"], "devices"),
    )
    return Load(parsed, _typed(sandbox, bool, "sandbox"), Path(_text(directory, "temporary directory")))


def _parse_submit(id_: Any, skill: Any, request: Any) -> Submit:
    if skill == CHAT:
        return Submit(_count(id_, "id"), _parse_generate(request))
    try:
        return Submit(_count(id_, "id"), read_request(_text(skill, "a skill"), request))
    except RecordError as error:
        raise FrameError(f"a request is not one: {error.message}") from None


def _parse_generate(request: Any) -> GenerateRequest:
    raw = _record(request, GenerateRequest, "a request")
    seed = raw["seed"]
    return GenerateRequest(
        messages=tuple(_message(item) for item in _typed(raw["messages"], list, "messages")),
        max_tokens=_count(raw["max_tokens"], "max_tokens"),
        temperature=_number(raw["temperature"], "temperature"),
        top_p=_number(raw["top_p"], "top_p"),
        seed=None if seed is None else _typed(seed, int, "seed"),
        stop=_texts(raw["stop"], "stop"),
        cache_scope=_text(raw["cache_scope"], "cache scope"),
        prompt=_text(raw["prompt"], "prompt", PROMPT_CHARACTERS_MAX),
        schema=_text(raw["schema"], "schema", PROMPT_CHARACTERS_MAX),
        logprobs=_typed(raw["logprobs"], int, "logprobs"),
    )


def _message(value: Any) -> dict[str, str]:
    message = _typed(value, dict, "a message")
    _require(all(type(k) is str and type(v) is str for k, v in message.items()), "messages of texts")
    return message


def _parse_ready(facts: Any, sandbox: Any) -> Ready:
    raw = _record(facts, EngineFacts, "facts")
    parsed = EngineFacts(
        engine=_text(raw["engine"], "engine"),
        build=_text(raw["build"], "build"),
        backend=_text(raw["backend"], "backend"),
        instruction_set=_text(raw["instruction_set"], "instruction set"),
        context_tokens=_count(raw["context_tokens"], "context"),
        parallel=_count(raw["parallel"], "parallel"),
        quantization=_text(raw["quantization"], "quantization"),
        flags=_scalars(raw["flags"], "flags"),
        category=_text(raw["category"], "category"),
        skills=_texts(raw["skills"], "skills"),
        batch_size=_count(raw["batch_size"], "batch size"),
    )
    return Ready(parsed, _texts(sandbox, "sandbox"))


def _parse_pieces(id_: Any, pieces: Any) -> PiecesFrame:
    for piece in _typed(pieces, list, "pieces"):
        if type(piece) is not str:
            raise FrameError("a frame needs pieces as str")
    return PiecesFrame(_count(id_, "id"), tuple(pieces))


def _parse_logprobs(id_: Any, tokens: Any) -> LogprobsFrame:
    return LogprobsFrame(_count(id_, "id"), tuple(_token(item) for item in _typed(tokens, list, "tokens")))


def _token(value: Any) -> TokenLogprob:
    fields = _typed(value, list, "a token")
    _require(len(fields) == 3, "text, logprob and alternatives of a token")
    text, logprob, top = fields
    pairs = _typed(top, list, "alternatives")
    _require(all(type(pair) is list and len(pair) == 2 for pair in pairs), "alternatives as pairs")
    alternatives = tuple((_text(name, "an alternative"), _logprob(value)) for name, value in pairs)
    return TokenLogprob(_text(text, "a token's text"), _logprob(logprob), alternatives)


def _logprob(value: Any) -> float:
    number = _number(value, "a logprob")
    _require(number <= 0, "a logprob of at most 0")  # NaN fails too
    return number


def _parse_result(id_: Any, skill: Any, result: Any) -> ResultFrame:
    try:
        name = _text(skill, "a skill")
        return ResultFrame(_count(id_, "id"), name, read_result(name, result))
    except RecordError as error:
        raise FrameError(f"a result is not one: {error.message}") from None


def _parse_end(id_: Any, reason: Any, tokens_in: Any, tokens_out: Any, tokens_cached: Any) -> EndFrame:
    _require(type(reason) is str and reason in _FINISH_REASONS, "a known finish reason")
    counts = (_count(tokens_in, "tokens_in"), _count(tokens_out, "tokens_out"), _count(tokens_cached, "tokens_cached"))
    return EndFrame(_count(id_, "id"), reason, *counts)


def _error_code(value: Any) -> str:
    code = _text(value, "an error code")
    _require(code in TABLE, "an error code of the table")
    return code


_TAGS: dict[type, int] = {
    Load: 1,
    Submit: 2,
    Cancel: 3,
    Ready: 4,
    LoadFailed: 5,
    Beat: 6,
    PrefillFrame: 7,
    PiecesFrame: 8,
    EndFrame: 9,
    ErrorFrame: 10,
    LogprobsFrame: 11,
    StepFrame: 12,
    ResultFrame: 13,
}

_PARSERS: dict[int, tuple[int, Callable[..., Frame]]] = {
    1: (3, _parse_load),
    2: (3, _parse_submit),
    3: (1, lambda id_: Cancel(_count(id_, "id"))),
    4: (2, _parse_ready),
    5: (2, lambda code, message: LoadFailed(_error_code(code), _text(message, "a message"))),
    6: (0, Beat),
    7: (3, lambda id_, done, total: PrefillFrame(_count(id_, "id"), _count(done, "done"), _count(total, "total"))),
    8: (2, _parse_pieces),
    9: (5, _parse_end),
    10: (3, lambda id_, code, text: ErrorFrame(_count(id_, "id"), _error_code(code), _text(text, "a message"))),
    11: (2, _parse_logprobs),
    12: (3, lambda id_, done, total: StepFrame(_count(id_, "id"), _count(done, "done"), _count(total, "total"))),
    13: (3, _parse_result),
}
"""Tag -> (number of fields, parser)."""
