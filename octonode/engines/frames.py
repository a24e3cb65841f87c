"""Everything that crosses the line between the daemon and a worker process; `frame_codec` makes bytes of it.

A frame is a 4-byte big-endian length and a msgpack array `[tag, field, ...]`. The daemon sends `Load` once, then
`Submit` and `Cancel`; closing the socket tells the worker to end. The worker answers `Ready` or `LoadFailed`, then for
each submitted id any number of `PrefillFrame`, `PiecesFrame`, `LogprobsFrame` and `StepFrame`, for a request that is no
text one `ResultFrame`, and exactly one `EndFrame` or `ErrorFrame`; and a `Beat` each second. A worker parses strangers'
files, so the daemon believes nothing it says before it is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from octonode.engines.contract import EngineFacts, EngineRequest, FinishReason, LoadRequest, TokenLogprob
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import WorkResult

FRAME_BYTES_MAX = 20 * 1024 * 1024
"""Above the largest request the API takes and the largest result; a longer frame is a broken worker."""
TEXT_CHARACTERS_MAX = 4096
"""Of one error message or one name in a frame."""


class FrameError(OctonodeError):
    """The other end of the process line does not speak frames: a broken or taken-over worker, which is then killed."""

    code = "ENGINE_FAILED"


@dataclass(frozen=True, slots=True)
class Load:
    """The first frame a worker gets."""

    request: LoadRequest
    sandbox: bool
    temporary_directory: Path
    """The worker's own, empty, and the only place it may write to."""


@dataclass(frozen=True, slots=True)
class Submit:
    id: int
    request: EngineRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends a request early. Its `EndFrame` (reason `cancel`), or one that crossed this frame, still comes."""

    id: int


@dataclass(frozen=True, slots=True)
class Ready:
    facts: EngineFacts
    sandbox: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Beat:
    """The worker's loop turns. Sent each second once loaded."""


@dataclass(frozen=True, slots=True)
class PrefillFrame:
    id: int
    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class PiecesFrame:
    id: int
    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogprobsFrame:
    id: int
    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class StepFrame:
    id: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ResultFrame:
    id: int
    skill: str
    """That was asked for."""
    result: WorkResult


@dataclass(frozen=True, slots=True)
class EndFrame:
    id: int
    reason: FinishReason
    tokens_in: int
    tokens_out: int
    tokens_cached: int


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    id: int
    code: str
    message: str


Frame = (
    Load
    | Submit
    | Cancel
    | Ready
    | LoadFailed
    | Beat
    | PrefillFrame
    | PiecesFrame
    | LogprobsFrame
    | StepFrame
    | ResultFrame
    | EndFrame
    | ErrorFrame
)
