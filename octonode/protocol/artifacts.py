"""Inputs and outputs above one frame, as chunks of at most 256 KiB in order from offset 0, both directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.protocol.limits import DEFAULT_LIMITS, Limits
from octonode.protocol.messages import ArtifactChunk


@dataclass(frozen=True, slots=True)
class Artifact:
    """A whole one, joined."""

    name: str
    data: bytes


def split(name: str, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Iterator[ArtifactChunk]:
    """Chunks of `data`, the final one marked `last`; one empty chunk for no data.

    Raises LocalProtocolError (TOO_LARGE) above `limits.artifact_bytes_max`, before the first chunk.
    """
    if len(data) > limits.artifact_bytes_max:
        message = f"{len(data)} bytes are over the {limits.artifact_bytes_max} an artifact may have"
        raise LocalProtocolError(message, code="TOO_LARGE")
    return _chunks(name, data, limits.artifact_chunk_bytes_max)


def _chunks(name: str, data: bytes, size: int) -> Iterator[ArtifactChunk]:
    for offset in range(0, max(len(data), 1), size):
        part = data[offset : offset + size]
        yield ArtifactChunk(name, offset, part, last=offset + size >= len(data))


class ArtifactJoiner:
    """Joins the chunks of one sender on one stream.

    Bounds: `artifact_bytes_max` for one artifact and for all unfinished ones together, `artifacts_open_max`
    unfinished, `artifacts_max` in all. Every breach is a RemoteProtocolError (TOO_LARGE or BAD_MESSAGE).
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._open: dict[str, bytearray] = {}
        self._names: set[str] = set()
        self.pending_bytes = 0
        """Bytes of unfinished artifacts held now."""

    @property
    def unfinished(self) -> int:
        return len(self._open)

    def add(self, chunk: ArtifactChunk) -> Artifact | None:
        """The whole artifact when `chunk` was its last one. Raises RemoteProtocolError."""
        parts = self._open.get(chunk.artifact)
        if parts is None:
            parts = self._begin(chunk.artifact)
        if chunk.offset_bytes != len(parts):
            raise RemoteProtocolError(f"an artifact chunk at offset {chunk.offset_bytes}; {len(parts)} is due")
        if not chunk.data and not chunk.last:
            raise RemoteProtocolError("an artifact chunk without data that is not the last")
        if len(chunk.data) > self._limits.artifact_chunk_bytes_max:
            raise RemoteProtocolError("an artifact chunk is too large", code="TOO_LARGE")
        if self.pending_bytes + len(chunk.data) > self._limits.artifact_bytes_max:
            message = f"artifacts of over {self._limits.artifact_bytes_max} bytes are not taken"
            raise RemoteProtocolError(message, code="TOO_LARGE")
        parts += chunk.data
        self.pending_bytes += len(chunk.data)
        if not chunk.last:
            return None
        del self._open[chunk.artifact]
        self.pending_bytes -= len(parts)
        return Artifact(chunk.artifact, bytes(parts))

    def _begin(self, name: str) -> bytearray:
        if name in self._names:
            raise RemoteProtocolError("an artifact was complete and goes on")
        if len(self._open) >= self._limits.artifacts_open_max or len(self._names) >= self._limits.artifacts_max:
            raise RemoteProtocolError("too many artifacts on one stream", code="TOO_LARGE")
        self._names.add(name)
        self._open[name] = bytearray()
        return self._open[name]
