"""A model's manifest: who publishes which files under which name, signed. Page: protocols/manifest.md. Sans-IO.

The manifest is dag-cbor with its own CID; signatures cover a domain prefix and those bytes as stored, never a
re-encoding, and travel beside them as dag-cbor `{manifest, signatures}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.identity import Signer
from octonode.identity import verify as verify_signature
from octonode.ids import MANIFEST_DOMAIN, PeerId, public_key_from_peer_id
from octonode.ipfs import dagcbor
from octonode.ipfs.cid import DAG_PB, RAW, Cid, dag_cbor_cid
from octonode.ipfs.unixfs import PROFILE
from octonode.models.version import Version

MANIFEST_VERSION: Final = 1
MANIFEST_BYTES_MAX: Final = 256 * 1024
SIGNED_BYTES_MAX: Final = MANIFEST_BYTES_MAX + 16 * 1024
SIGNATURES_MAX: Final = 16
FILES_MAX: Final = 1024
TEXT_CHARACTERS_MAX: Final = 256
LISTS_MAX: Final = 64
EXT_KEYS_MAX: Final = 32
INTEGER_MAX: Final = 2**62

WEIGHT_FORMATS: Final = ("scripted", "gguf", "safetensors", "tensorrt", "onnx", "ctranslate2")
"""Those of models, what engines here prefer first."""
CATEGORIES: Final = ("llm", "embeddings", "vision", "audio", "diffusion", "other")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,94}[a-z0-9])?\Z")


def is_model_name(text: str) -> bool:
    """Whether a manifest may carry it as its name."""
    return _NAME.match(text) is not None


@dataclass(frozen=True, slots=True)
class ModelFile:
    path: str
    """Relative POSIX path, unique in the manifest."""
    size_bytes: int
    root: Cid
    sha256: bytes
    """sha2-256 of the whole file, as hubs print it."""
    format: str
    """`gguf`, `safetensors`, `onnx`, `tensorrt`, `ctranslate2` or `other` for files beside the weights."""


@dataclass(frozen=True, slots=True)
class Requirements:
    vram_bytes: int = 0
    engines: tuple[str, ...] = ()
    compute_capability: str = ""
    """Lowest CUDA compute capability, such as `8.0`; empty: none is needed."""


@dataclass(frozen=True, slots=True)
class ModelManifest:
    publisher: PeerId
    name: str
    version: str
    files: tuple[ModelFile, ...]
    root: Cid
    """The one file's root, or the UnixFS directory of all files sorted by path."""
    profile: str = PROFILE
    category: str = "llm"
    architecture: str = ""
    quantization: str = ""
    requirements: Requirements = field(default_factory=Requirements)
    context_tokens: int = 0
    licence: str = ""
    chat_template_sha256: bytes = b""
    """Empty when the model brings no chat template."""
    derived_from: tuple[Cid, ...] = ()
    """Manifests or roots this model was made from."""
    seq: int = 1
    """Grows with every manifest of this publisher and name; a lower one than known is a rollback."""
    previous: Cid | None = None
    created_ms: int = 0
    ext: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def format(self) -> str:
        """Of the weights: what an engine would open, where files of several formats are there."""
        found = {file.format for file in self.files}
        return next((name for name in WEIGHT_FORMATS if name in found), "other")

    @property
    def reference(self) -> str:
        return f"{self.publisher}/{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Signature:
    peer_id: PeerId
    signature: bytes


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest with the bytes that were signed. Only `sign` and `verify` make one."""

    manifest: ModelManifest
    manifest_bytes: bytes
    signatures: tuple[Signature, ...]

    @property
    def cid(self) -> Cid:
        """The CID of the manifest itself: the name of this version of the model."""
        return dag_cbor_cid(self.manifest_bytes)

    def encode(self) -> bytes:
        """The bytes that travel."""
        signatures = [{"peer_id": s.peer_id, "signature": s.signature} for s in self.signatures]
        return dagcbor.encode({"manifest": self.manifest_bytes, "signatures": signatures})


def encode(manifest: ModelManifest) -> bytes:
    """Canonical bytes. Raises RemoteProtocolError when a field is outside the limits, as `decode` would."""
    data = dagcbor.encode(_to_value(manifest))
    decode(data)
    return data


def _to_value(m: ModelManifest) -> dict[str, Any]:
    return {
        "v": MANIFEST_VERSION,
        "publisher": m.publisher,
        "name": m.name,
        "version": m.version,
        "files": [
            {"path": f.path, "size": f.size_bytes, "root": f.root, "sha256": f.sha256, "format": f.format}
            for f in m.files
        ],
        "profile": m.profile,
        "root": m.root,
        "category": m.category,
        "architecture": m.architecture,
        "quantization": m.quantization,
        "requirements": {
            "vram_bytes": m.requirements.vram_bytes,
            "engines": m.requirements.engines,
            "compute_capability": m.requirements.compute_capability,
        },
        "context_tokens": m.context_tokens,
        "licence": m.licence,
        "chat_template_sha256": m.chat_template_sha256,
        "derived_from": m.derived_from,
        "seq": m.seq,
        "previous": m.previous,
        "created_ms": m.created_ms,
        "ext": m.ext,
    }


def decode(data: bytes) -> ModelManifest:
    """The manifest in canonical dag-cbor bytes. Raises RemoteProtocolError that names the field."""
    value = dagcbor.decode(data, bytes_max=MANIFEST_BYTES_MAX, depth_max=12)
    if not isinstance(value, dict):
        raise RemoteProtocolError("a manifest is a map")
    if value.get("v") != MANIFEST_VERSION:
        raise RemoteProtocolError(
            f"manifest version {value.get('v')!r:.20} is not read here; update octonode", code="UNSUPPORTED"
        )
    manifest = ModelManifest(
        publisher=_publisher(value),
        name=_matching(value, "name", _NAME, "lower-case letters, digits, dots and dashes, at most 96"),
        version=_semver(value),
        files=tuple(_file(item) for item in _list(value, "files", FILES_MAX)),
        root=_cid(value, "root"),
        profile=_text(value, "profile"),
        category=_text(value, "category"),
        architecture=_text(value, "architecture"),
        quantization=_text(value, "quantization"),
        requirements=_requirements(value.get("requirements")),
        context_tokens=_integer(value, "context_tokens"),
        licence=_text(value, "licence"),
        chat_template_sha256=_bytes(value, "chat_template_sha256", (0, 32)),
        derived_from=tuple(_cids(value, "derived_from")),
        seq=_integer(value, "seq"),
        previous=None if value.get("previous") is None else _cid(value, "previous"),
        created_ms=_integer(value, "created_ms"),
        ext=_ext(value),
    )
    if unknown := set(value) - _FIELDS:
        raise RemoteProtocolError(f"manifest: unknown field {min(unknown)!r:.40}; additions belong in ext")
    _check_whole(manifest)
    return manifest


_FIELDS: Final = frozenset(
    [
        *("v", "publisher", "name", "version", "files", "profile", "root", "category", "architecture"),
        *("quantization", "requirements", "context_tokens", "licence", "chat_template_sha256", "derived_from"),
        *("seq", "previous", "created_ms", "ext"),
    ]
)


def _check_whole(m: ModelManifest) -> None:
    if m.category not in CATEGORIES:
        raise RemoteProtocolError(f"manifest: category is one of {', '.join(CATEGORIES)}")
    paths = [file.path for file in m.files]
    if not paths or paths != sorted(set(paths), key=str.encode):
        raise RemoteProtocolError("manifest: files are sorted by path and each is named once, at least one")
    if any(other.startswith(path + "/") for path in paths for other in paths):
        raise RemoteProtocolError("manifest: a path is both a file and a directory")
    if len(m.files) == 1 and "/" not in m.files[0].path and m.root != m.files[0].root:
        raise RemoteProtocolError("manifest: the root of a model of one file is that file's root")
    if m.root.codec not in (RAW, DAG_PB) or any(f.root.codec not in (RAW, DAG_PB) for f in m.files):
        raise RemoteProtocolError("manifest: a root is raw or dag-pb")
    if m.size_bytes > INTEGER_MAX or m.seq < 1:
        raise RemoteProtocolError("manifest: sizes or seq out of range")


def _field(value: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    item = value.get(key)
    if not isinstance(item, kind) or (isinstance(item, bool) and kind is int):
        raise RemoteProtocolError(f"manifest: {key} is missing or of the wrong type")
    return item


def _text(value: dict[str, Any], key: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    text = str(_field(value, key, str))
    if len(text) > characters_max or not text.isprintable():
        raise RemoteProtocolError(f"manifest: {key} has at most {characters_max} printable characters")
    return text


def _matching(value: dict[str, Any], key: str, pattern: re.Pattern[str], what: str) -> str:
    text = _text(value, key)
    if not pattern.match(text):
        raise RemoteProtocolError(f"manifest: {key} {text!r} is not allowed: {what}")
    return text


def _semver(value: dict[str, Any]) -> str:
    try:
        return str(Version.parse(_text(value, "version", 64)))
    except ValueError as error:
        raise RemoteProtocolError(f"manifest: version: {error}") from None


def _publisher(value: dict[str, Any]) -> PeerId:
    text = _text(value, "publisher", 64)
    try:
        public_key_from_peer_id(text)
    except ValueError:
        raise RemoteProtocolError("manifest: publisher is not the peer id of an Ed25519 key") from None
    return PeerId(text)


def _integer(value: dict[str, Any], key: str) -> int:
    number = int(_field(value, key, int))
    if not 0 <= number <= INTEGER_MAX:
        raise RemoteProtocolError(f"manifest: {key} is out of range")
    return number


def _bytes(value: dict[str, Any], key: str, lengths: tuple[int, ...]) -> bytes:
    data = bytes(_field(value, key, bytes))
    if len(data) not in lengths:
        raise RemoteProtocolError(f"manifest: {key} has {len(data)} bytes")
    return data


def _list(value: dict[str, Any], key: str, items_max: int) -> list[Any]:
    items: list[Any] = _field(value, key, list)
    if len(items) > items_max:
        raise RemoteProtocolError(f"manifest: {key} has more than {items_max} items", code="TOO_LARGE")
    return items


def _cid(value: dict[str, Any], key: str) -> Cid:
    cid = _field(value, key, Cid)
    assert isinstance(cid, Cid)
    if cid.version != 1:
        raise RemoteProtocolError(f"manifest: {key} is a CID of version 1")
    return cid


def _cids(value: dict[str, Any], key: str) -> Sequence[Cid]:
    return [_cid({key: item}, key) for item in _list(value, key, LISTS_MAX)]


def _ext(value: dict[str, Any]) -> dict[str, Any]:
    ext: dict[str, Any] = _field(value, "ext", dict)
    if len(ext) > EXT_KEYS_MAX or any(len(key) > 64 for key in ext):
        raise RemoteProtocolError(f"manifest: ext has more than {EXT_KEYS_MAX} keys, or a key over 64 characters")
    return ext


def _map(value: Any, what: str, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != keys:
        raise RemoteProtocolError(f"manifest: {what} has exactly the fields {', '.join(sorted(keys))}")
    return value


def safe_path(path: str) -> bool:
    """True for a relative POSIX path that stays below where it is put, with printable names."""
    parts = path.split("/")
    return (
        0 < len(path) <= TEXT_CHARACTERS_MAX
        and len(parts) <= 8
        and path.isprintable()
        and "\\" not in path
        and not any(part in ("", ".", "..") for part in parts)
    )


def _file(item: Any) -> ModelFile:
    value = _map(item, "a file", {"path", "size", "root", "sha256", "format"})
    path = _text(value, "path")
    if not safe_path(path):
        raise RemoteProtocolError(f"manifest: the path {path!r} is not a plain relative path")
    return ModelFile(
        path, _integer(value, "size"), _cid(value, "root"), _bytes(value, "sha256", (32,)), _text(value, "format", 32)
    )


def _requirements(item: Any) -> Requirements:
    value = _map(item, "requirements", {"vram_bytes", "engines", "compute_capability"})
    engines = tuple(_text({"engines": e}, "engines", 64) for e in _list(value, "engines", LISTS_MAX))
    return Requirements(_integer(value, "vram_bytes"), engines, _text(value, "compute_capability", 16))


def sign(manifest: ModelManifest, signer: Signer, *more: Signer) -> SignedManifest:
    """Sign as the publisher, and with further keys if wanted. The first signer must be the publisher."""
    assert signer.peer_id == manifest.publisher
    data = encode(manifest)
    made = [Signature(s.peer_id, s.sign(MANIFEST_DOMAIN + data)) for s in (signer, *more)]
    return SignedManifest(manifest, data, tuple(made))


def verify(data: bytes, check: Callable[[str, bytes, bytes], bool] = verify_signature) -> SignedManifest:
    """The signed manifest in `data`, every signature checked and the publisher's among them.

    Raises RemoteProtocolError when it is malformed, VerificationFailed (BAD_SIGNATURE) when a signature is wrong.
    """
    value = dagcbor.decode(data, bytes_max=SIGNED_BYTES_MAX, depth_max=4)
    value = _map(value, "a signed manifest", {"manifest", "signatures"})
    manifest_bytes = bytes(_field(value, "manifest", bytes))
    manifest = decode(manifest_bytes)
    signatures = [_signature(item) for item in _list(value, "signatures", SIGNATURES_MAX)]
    if len({s.peer_id for s in signatures}) != len(signatures):
        raise RemoteProtocolError("manifest: a peer signs once")
    for signature in signatures:
        if not check(signature.peer_id, MANIFEST_DOMAIN + manifest_bytes, signature.signature):
            raise VerificationFailed(
                f"the signature of {signature.peer_id} on the manifest is wrong", code="BAD_SIGNATURE"
            )
    if manifest.publisher not in {s.peer_id for s in signatures}:
        raise VerificationFailed(
            f"the manifest is not signed by its publisher {manifest.publisher}", code="BAD_SIGNATURE"
        )
    return SignedManifest(manifest, manifest_bytes, tuple(signatures))


def _signature(item: Any) -> Signature:
    value = _map(item, "a signature", {"peer_id", "signature"})
    return Signature(PeerId(_text(value, "peer_id", 64)), _bytes(value, "signature", (64,)))


def check_rollback(manifest: ModelManifest, known_seq: int) -> None:
    """Raises VerificationFailed (ROLLBACK) when a newer manifest of this name was seen before."""
    if manifest.seq < known_seq:
        raise VerificationFailed(
            f"{manifest.reference} has seq {manifest.seq}, but seq {known_seq} of this name was seen before: an old "
            f"manifest is being passed off as the latest; ask another peer, or name the old one by its CID",
            code="ROLLBACK",
        )
