"""Uploads of models, and handing them to a Kubo node: what is asked, what is told, and the calls of both. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octonode.api.schema.calls import Call, Job, many, one
from octonode.api.schema.plain import quoted, to_json

UPLOADS_PATH = "/api/v1/models/uploads"
FINGERPRINT_CHARACTERS_MAX = 256


@dataclass(frozen=True, slots=True)
class UploadFile:
    path: str
    """In the model, relative, with `/` between its parts."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CreateUpload:
    """Announce an upload before its first byte, so that what cannot be taken is refused now."""

    files: tuple[UploadFile, ...]
    name: str = ""
    """Name under the node's peer id; may be left out for a single file."""
    version: str = ""
    license: str = ""
    publish: bool = False
    """Provide it in the DHT when it is finished."""
    fingerprint: str = ""
    """Whatever tells the client that its files are still those it began with; given back as it is."""


@dataclass(frozen=True, slots=True)
class UploadFileFacts:
    path: str
    size_bytes: int
    offset_bytes: int = 0
    """So much of it is on disk for good: go on from here."""


@dataclass(frozen=True, slots=True)
class UploadFacts:
    upload: str
    """Its id, 32 hex digits."""
    files: tuple[UploadFileFacts, ...]
    name: str = ""
    version: str = ""
    license: str = ""
    publish: bool = False
    fingerprint: str = ""
    expires_at_ms: int = 0
    """Removed then, unless a byte comes before; 0: never."""


@dataclass(frozen=True, slots=True)
class FinishUpload:
    """Import what was uploaded. `name` and `version` are for one whose own was refused."""

    root: str = ""
    """Root CID that the client computed of its files; other bytes are refused. Empty: it has none."""
    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class ExportToKubo:
    """Hand a model to the Kubo node of `models.kubo_rpc`."""

    reference: str
    rpc: str = ""
    """URL of another Kubo's RPC."""
    provide: bool = True
    """Tell the IPFS network that Kubo has it."""
    private: bool = False
    """Even one that is not public here: Kubo gives it to whoever asks."""


def create_upload(asked: CreateUpload) -> Call[UploadFacts]:
    return Call("POST", "/api/v1/models", one(UploadFacts), to_json(asked))


uploads: Call[tuple[UploadFacts, ...]] = Call("GET", UPLOADS_PATH, many(UploadFacts, "uploads"))


def upload(number: str) -> Call[UploadFacts]:
    return Call("GET", f"{UPLOADS_PATH}/{quoted(number)}", one(UploadFacts))


def abort_upload(number: str) -> Call[UploadFacts]:
    return Call("DELETE", f"{UPLOADS_PATH}/{quoted(number)}", one(UploadFacts))


def write_upload(number: str, path: str, first_byte: int, size_bytes: int, content: Any) -> Call[UploadFileFacts]:
    """The rest of a file from `first_byte` on. `content` gives its bytes: an iterable, an asynchronous one for trio."""
    return Call(
        "PUT",
        f"{UPLOADS_PATH}/{quoted(number)}/{quoted(path)}",
        one(UploadFileFacts),
        content=content,
        headers={
            "content-length": str(size_bytes - first_byte),
            "content-range": f"bytes {first_byte}-{size_bytes - 1}/{size_bytes}",
            "content-type": "application/octet-stream",
        },
    )


def finish_upload(number: str, asked: FinishUpload) -> Call[Job]:
    return Call("POST", f"{UPLOADS_PATH}/{quoted(number)}/finish", lambda _: Job(), to_json(asked))


def export_to_kubo(asked: ExportToKubo) -> Call[Job]:
    return Call("POST", "/api/v1/models/export/kubo", lambda _: Job(), to_json(asked))
