"""What a node says of itself over HTTP: the native JSON shapes, as frozen dataclasses. Spec: protocols/http.md.

The daemon fills them in (`api/ports.py`), `shape` turns them into JSON and back, `client.py` hands them out. Fields are
added, never renamed; a reader ignores what it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from octonode.models.quantized import Quantized


@dataclass(frozen=True, slots=True)
class Degraded:
    """A part of the node that does not work now. The node runs on and tries again."""

    part: str
    """`network`, `engine`, `gateway`, `store`, a model's reference, ..."""
    reason: str
    """What is wrong and what to do about it, in a line."""


@dataclass(frozen=True, slots=True)
class TaskCounts:
    running: int = 0
    queued: int = 0
    completed: int = 0
    failed: int = 0
    """Since the daemon started, asked and served together."""


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """Bytes at a node for what peers pin there."""

    total_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0
    peer_bytes_max: int = 0
    """Of one asker; 0: no bound of its own."""
    peer_bytes: int = 0
    """Of the asker now."""
    pins: int = 0


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU or MIG instance now; null where the driver does not say."""

    gpu: str
    """`0`, or `0.1` for the second MIG instance of the first GPU."""
    vendor: str
    name: str = ""
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """The process of one model."""

    root: str
    engine: str
    state: str
    """waiting, starting, ready, stopping, crashed or quarantined."""
    reason: str = ""
    """Why it is not ready."""
    pid: int = 0
    isolation: str = ""
    """`full`, `partial: why`, `off: why`; empty before it is loaded."""
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    """0 where no driver tells it."""
    devices: tuple[str, ...] = ()
    """GPUs it may see, such as `cuda:0`; `cpu`: none; empty: those that the node sees."""
    model: str = ""
    """Reference of what it runs; empty where that is not wanted any more."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """`GET /api/v1/node`."""

    peer_id: str
    version: str
    state: Literal["starting", "active", "leaving"] = "starting"
    addresses: tuple[str, ...] = ()
    """Multiaddrs to dial us at, each ending in /p2p/<peer id>."""
    api: str = ""
    """Base URL of this API, such as `http://127.0.0.1:8808`."""
    gateway: str = ""
    """HOST:PORT of the block gateway; empty when it is off."""
    join: str = ""
    """The join line. It carries the access token, so it is shown to admins alone."""
    pid: int = 0
    started_at_ms: int = 0
    tier: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    engines: tuple[str, ...] = ()
    role: str = ""
    """`full`, or `storage`: keeps models and runs none."""
    storage: StorageFacts | None = None
    """Room for models that peers pin here; null where nobody may."""
    access: str = ""
    region: str = ""
    muxer: str = ""
    """What carries the streams between peers: `own`, or `stock` by choice or for want of the right library."""
    peers_connected: int = 0
    peers_known: int = 0
    serving: tuple[str, ...] = ()
    """References of the models loaded here."""
    unsigned: tuple[str, ...] = ()
    """Those of `serving` that no publisher signed."""
    tasks: TaskCounts = field(default_factory=TaskCounts)
    degraded: tuple[Degraded, ...] = ()
    gpus: tuple[GpuFacts, ...] = ()
    """As last read, at most a few seconds ago."""
    workers: tuple[WorkerFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """One row of `GET /api/v1/peers`."""

    peer_id: str
    connected: bool = False
    addresses: tuple[str, ...] = ()
    tier: str = ""
    region: str = ""
    state: str = ""
    """`active` or `leaving`; empty before its first announcement."""
    engines: tuple[str, ...] = ()
    serving: tuple[str, ...] = ()
    """Models it says it serves: publisher/name where it has one, else the root CID."""
    holding: tuple[str, ...] = ()
    role: str = ""
    """`full`, or `storage`; empty before its first announcement."""
    storage_free_bytes: int = 0
    """Room for models that those it lists pin there."""
    seen_at_ms: int = 0
    expires_at_ms: int = 0
    """When its announcement ends."""
    round_trip_ms: float | None = None
    agent_version: str = ""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model, held here or known from peers."""

    reference: str
    """What to write to mean this model: `publisher/name`, else `cid:<root>`."""
    root: str
    """Root CID of its file or directory."""
    manifest: str = ""
    """CID of the signed manifest; empty when it is known by its root alone."""
    name: str = ""
    publisher: str = ""
    """Peer id of the publisher."""
    version: str = ""
    size_bytes: int = 0
    have_bytes: int = 0
    """Bytes held here; equal to `size_bytes` when complete."""
    complete: bool = False
    state: Literal["held", "fetching", "loading", "serving", "network"] = "network"
    """`network`: not held here, served or held by peers."""
    detail: str = ""
    """Why it is not serving though it should be, or how far it is."""
    format: str = ""
    architecture: str = ""
    quantization: str = ""
    category: str = ""
    """`llm`, `embeddings`, `vision`, `audio`, `diffusion` or `other`; empty where only its root is known."""
    skills: tuple[str, ...] = ()
    """What it can be asked for, as those who serve it announce: `chat`, `embed`, `classify`, ..."""
    context_tokens: int = 0
    license: str = ""
    created_at_ms: int = 0
    derived_from: tuple[str, ...] = ()
    """CIDs of the manifests or roots that it was made from."""
    quantized: Quantized | None = None
    """How it was made smaller, as its publisher says; None where it was not."""
    trusted: bool = False
    unsigned: bool = False
    """No manifest signed by a publisher is known of it: its bytes are what the root says, and nobody says more."""
    deprecated: str = ""
    """What its publisher says against this version and what to take instead; empty where it is not deprecated."""
    kept_as_previous: bool = False
    """It was updated, and is kept to go back to: `models rollback`. Let it go with `models unpin` or `models rm`."""
    pinned: bool = False
    last_used_at_ms: int = 0
    """By an engine here, or by a verb of the owner's; 0 where it is not held."""
    checked_at_ms: int = 0
    """When everything held of it was last hashed again; 0: not since it came."""
    damaged_blocks: int = 0
    """Found damaged by that check, and not repaired since."""
    servers: tuple[str, ...] = ()
    """Peer ids that announce that they serve it, ours among them."""
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelProgress:
    """How far a model verb is. Streamed; each replaces the one before."""

    stage: str
    """`import`, `sign`, `find`, `fetch`, `verify`, `publish`, `load`, ..."""
    done: int = 0
    total: int = 0
    """Bytes; 0 of 0 where unknown."""
    bytes_by_source: dict[str, int] = field(default_factory=dict)
    bytes_per_second: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class ModelOutcome:
    """What a model verb ended with."""

    model: ModelFacts
    bytes_by_source: dict[str, int] = field(default_factory=dict)
    """Fetched in this call, by source: `gateway:<peer id>`, `https://...`."""
    seconds: float = 0.0
    records: int = 0
    """Peers that took a provider record."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Publisher:
    """A publisher whose manifests are taken without asking."""

    peer_id: str
    note: str = ""
    """An alias of the owner's: `alias/model` works as a reference."""
    since_ms: int = 0
    public_key: str = ""
    """Its Ed25519 key, 64 hex digits."""
    fingerprint: str = ""
    """`SHA256:` and the digest of the key in base64, to be compared with what the publisher shows."""


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """One row of `GET /api/v1/tasks`. Prompts and answers are never kept."""

    task: str
    """Task id, 32 hex digits."""
    role: Literal["asker", "provider"]
    peer: str
    """The other side; our own peer id when the local engine answered."""
    model_root: str
    state: str
    """submitted, working, input_required, completed, failed, canceled or rejected."""
    code: str = ""
    """Why it failed or was rejected: a code of the error table."""
    started_at_ms: int = 0
    ended_at_ms: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    receipt: bool = False


@dataclass(frozen=True, slots=True)
class ReceiptFacts:
    """`GET /api/v1/receipts/{task}`: the receipt as signed, and what it says."""

    task: str
    receipt: bytes
    """dag-cbor bytes as signed; base64 in JSON. protocols/receipt.md says how to check them."""
    verified: bool
    """True when the signature is its signer's and the receipt is about our request."""
    request_header: bytes = b""
    """The signed header of the request; its sha256 is the receipt's `request`."""
    provider: str = ""
    asker: str = ""
    model_root: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """Every field of the receipt, by its name there; byte strings as hex."""


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """One candidate of `POST /api/v1/explain`: who might answer, why or why not. `tasks.asking.Candidate` in JSON."""

    peer: str
    local: bool
    accepted: bool
    reason: str
    rank: int = 0
    """Order in which accepted candidates are asked, from 0."""
    tier: str = ""
    tokens_per_second: float = 0.0
    first_token_ms: float = 0.0
    running: int = 0
    parallel: int = 0
    context_tokens: int = 0
    price_in_micro_octo: int = 0
    price_out_micro_octo: int = 0
    """Of the mode that was asked for."""
    price_basis: str = "tokens"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of `GET /api/v1/doctor`."""

    check: str
    status: Literal["ok", "warning", "failed"]
    summary: str
    fix: str = ""
    """What to do, in a line; empty when all is well."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What `POST /api/v1/peers` ended with."""

    peer_id: str
    address: str = ""
