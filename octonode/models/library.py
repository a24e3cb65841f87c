"""Every verb of `octonode models`, with or without a daemon. Blocking: from trio, call in threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from octonode.errors import NotFound, OctonodeError, Refused, VerificationFailed
from octonode.identity import Signer
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.ipfs.unixfs import Progress, import_directory, import_file
from octonode.models.adding import collect, default_name, describe
from octonode.models.catalogue import Catalogue
from octonode.models.checking import VerifyReport, verify_model
from octonode.models.held import HeldModel
from octonode.models.index import ModelRow
from octonode.models.manifest import ModelManifest, Requirements, SignedManifest, check_rollback, sign, verify
from octonode.models.placing import Placement
from octonode.models.reference import (
    BareName,
    FileReference,
    HubReference,
    ManifestReference,
    NameReference,
    Reference,
    RootReference,
    choose_publisher,
    parse,
    publisher_of,
)
from octonode.models.store import ModelStore
from octonode.models.trust import Publisher, TrustTable
from octonode.models.version import ANY_VERSION, VersionRange, best

FIRST_VERSION: Final = "1.0.0"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model in the store."""

    root: Cid
    row: ModelRow
    manifest: SignedManifest | None
    held_bytes: int
    paths: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        return self.row.complete

    @property
    def name(self) -> str:
        """`publisher/name@version`, or the root where no manifest is known."""
        return self.manifest.manifest.reference if self.manifest else self.root.text

    @property
    def path(self) -> Path:
        """What an engine opens: the file of a model of one file, else the directory."""
        return self.paths[0] if len(self.paths) == 1 else Path(os.path.commonpath(self.paths))


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means here. `root` is None when the network must be asked for the manifest first."""

    reference: str
    root: Cid | None = None
    manifest: SignedManifest | None = None
    entry: ModelEntry | None = None
    publisher: PeerId | None = None
    name: str = ""
    versions: VersionRange = ANY_VERSION
    manifest_cid: Cid | None = None
    """Asked for by CID: the manifest to look for."""
    path: Path | None = None
    """`file:/path`: add it."""


class Library:
    """`signer` signs what `add` publishes. Nothing is read or written before the first call."""

    def __init__(
        self,
        store: ModelStore,
        trust: TrustTable,
        signer: Signer,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.store = store
        self.trust_table = trust
        self.catalogue = Catalogue(store.directory.parent)
        self._signer = signer
        self._now_ms = now_ms

    # -- add, cid -----------------------------------------------------------------------------------------------

    @staticmethod
    def cid(path: Path, progress: Progress | None = None) -> Cid:
        """The root CID of a file or directory. Imports nothing and looks at no format."""
        if path.is_file():
            return import_file(path, progress).root
        results = {name: import_file(item, progress) for name, item in collect(path)}
        return import_directory({name: (r.root, r.total_size_bytes) for name, r in results.items()}).root

    def add(
        self,
        path: Path,
        *,
        name: str = "",
        version: str = FIRST_VERSION,
        licence: str = "",
        category: str = "",
        context_tokens: int = 0,
        requirements: Requirements | None = None,
        derived_from: Sequence[Cid] = (),
        placement: Placement = "auto",
        public: bool = True,
        progress: Progress | None = None,
    ) -> ModelEntry:
        """Import a file or directory, and sign a manifest for it as `<our peer id>/name@version`.

        The store links the file where it can and copies it else; `placement="reference"` leaves it where it is. The
        same content under the same name and version again changes nothing. Raises NotFound, FormatRefused, Refused
        (the version exists with other content), OctonodeError (DISK_FULL).
        """
        name = name or default_name(path)
        described = describe(path, progress)
        info = described.info
        known = self.catalogue.named(self._signer.peer_id, name)
        manifest = ModelManifest(
            publisher=self._signer.peer_id,
            name=name,
            version=version,
            files=described.files,
            root=described.layout.root,
            category=category or info.category,
            architecture=info.architecture,
            quantization=info.quantization,
            requirements=requirements or Requirements(),
            context_tokens=context_tokens or info.context_tokens,
            licence=licence or info.licence,
            chat_template_sha256=info.chat_template_sha256,
            derived_from=tuple(derived_from),
            seq=known[-1].manifest.seq + 1 if known else 1,
            previous=known[-1].cid if known else None,
            created_ms=self._now_ms(),
        )
        signed = self._same_version(manifest, known) or sign(manifest, self._signer)
        file_name = described.files[0].path
        model = self.store.adopt(
            described.layout, described.sources, placement=placement, file_name=file_name, public=public
        )
        self._keep(signed, model)
        return self._entry(model)

    def _same_version(self, manifest: ModelManifest, known: Sequence[SignedManifest]) -> SignedManifest | None:
        for signed in known:
            if signed.manifest.version == manifest.version:
                if signed.manifest.root == manifest.root:
                    return signed
                raise Refused(
                    f"{manifest.name}@{manifest.version} was published before with other content; choose a new "
                    f"version, for example --version {_next_patch(manifest.version)}",
                    code="FORBIDDEN",
                )
        return None

    def _keep(self, signed: SignedManifest, model: HeldModel | None) -> None:
        self.catalogue.save(signed)
        if model is not None:
            model.set_manifest(signed.encode(), [(signed.cid, signed.manifest_bytes)])

    def accept(self, data: bytes, *, trust: bool = False, expected: Cid | None = None) -> SignedManifest:
        """Take in a signed manifest that a peer gave, or that lay in a file.

        `expected` is the manifest's CID where the user named it: then an older one is no rollback. `trust` adds the
        publisher to the trust table. Raises RemoteProtocolError, VerificationFailed (BAD_SIGNATURE, ROLLBACK),
        NotTrusted that shows the key.
        """
        signed = verify(data)
        manifest = signed.manifest
        if expected is not None and signed.cid != expected.v1:
            raise VerificationFailed(f"the manifest that came is {signed.cid}, not {expected}; ask another peer")
        if trust and not self.trust_table.is_named(manifest.publisher):
            self.trust_table.add(manifest.publisher, now_ms=self._now_ms())
        if manifest.publisher != self._signer.peer_id:
            self.trust_table.require(manifest.publisher, f"{manifest.name}@{manifest.version}")
        known = self.catalogue.named(manifest.publisher, manifest.name)
        if expected is None and known and signed.cid not in {k.cid for k in known}:
            check_rollback(manifest, known[-1].manifest.seq)
        self._keep(signed, self.store.get(manifest.root))
        return signed

    # -- look ---------------------------------------------------------------------------------------------------

    def list(self) -> list[ModelEntry]:
        """What is in the store, wholly or in part, by name."""
        return sorted((self._entry(model) for model in self.store.held()), key=lambda entry: entry.name)

    def entry(self, root: Cid) -> ModelEntry | None:
        model = self.store.get(root)
        return None if model is None else self._entry(model)

    def _entry(self, model: HeldModel) -> ModelEntry:
        data = model.manifest_bytes()
        signed = self.catalogue.of_root(model.root) if data is None else None
        if data is not None:
            try:
                signed = verify(data)
            except OctonodeError:
                signed = self.catalogue.of_root(model.root)
        return ModelEntry(model.root, model.row, signed, model.held_bytes, model.paths)

    def show(self, reference: str) -> ModelEntry:
        """The model in the store that `reference` names. Raises NotFound."""
        resolved = self.resolve(reference)
        if resolved.entry is None:
            raise NotFound(
                f"{reference} is not in the store; fetch it: octonode models fetch {reference}", code="MODEL_NOT_FOUND"
            )
        return resolved.entry

    def manifest(self, publisher: PeerId, name: str) -> bytes | None:
        """The signed manifest with the highest seq of a name, for peers that ask; None if private or unknown."""
        for signed in reversed(self.catalogue.named(publisher, name)):
            model = self.store.get(signed.manifest.root)
            if model is not None and model.row.public:
                return signed.encode()
        return None

    # -- resolve ------------------------------------------------------------------------------------------------

    def resolve(self, reference: str) -> Resolved:
        """What `reference` means with what is known here; nobody is asked. Raises BadReference, NotFound, NotTrusted,
        OctonodeError (UNSUPPORTED for hf:)."""
        parsed = parse(reference)
        if isinstance(parsed, HubReference):
            raise OctonodeError(
                "models of a hub (hf:) come later; download the GGUF and run: octonode models add FILE",
                code="UNSUPPORTED",
            )
        if isinstance(parsed, FileReference):
            return Resolved(reference, path=Path(parsed.path))
        if isinstance(parsed, RootReference):
            return self._known(Resolved(reference, root=parsed.cid, manifest=self.catalogue.of_root(parsed.cid)))
        if isinstance(parsed, ManifestReference):
            return self._resolved_manifest(reference, self.catalogue.get(parsed.cid), manifest_cid=parsed.cid)
        return self._resolve_name(reference, parsed)

    def _resolve_name(self, text: str, parsed: Reference) -> Resolved:
        assert isinstance(parsed, NameReference | BareName)
        if isinstance(parsed, NameReference):
            publisher = publisher_of(parsed, self.trust_table.aliases())
        else:
            found = {
                p: self.trust_table.alias_of(p) for p in self.catalogue.publishers_of(parsed.name) if self._trusts(p)
            }
            publisher = choose_publisher(parsed.name, found)
        known = self.catalogue.named(publisher, parsed.name)
        version = best(parsed.versions, [signed.manifest.version for signed in known])
        chosen = [signed for signed in known if signed.manifest.version == version]
        fields: dict[str, Any] = {"publisher": publisher, "name": parsed.name, "versions": parsed.versions}
        return self._resolved_manifest(text, chosen[-1] if chosen else None, **fields)

    def _trusts(self, publisher: PeerId) -> bool:
        return publisher == self._signer.peer_id or self.trust_table.is_trusted(publisher)

    def _resolved_manifest(self, text: str, signed: SignedManifest | None, **fields: Any) -> Resolved:
        if signed is None:
            return Resolved(text, **fields)
        manifest = signed.manifest
        fields = {"publisher": manifest.publisher, "name": manifest.name, "manifest_cid": signed.cid, **fields}
        if not self._trusts(manifest.publisher):
            self.trust_table.require(manifest.publisher, f"{manifest.name}@{manifest.version}")
        return self._known(Resolved(text, root=manifest.root, manifest=signed, **fields))

    def _known(self, resolved: Resolved) -> Resolved:
        assert resolved.root is not None
        return replace(resolved, entry=self.entry(resolved.root))

    # -- keep, check, let go ------------------------------------------------------------------------------------

    def pin(self, reference: str, pinned: bool = True) -> None:
        self.store.set_flags(self.show(reference).root, pinned=pinned)

    def publish(self, reference: str, public: bool = True) -> ModelEntry:
        """Make a model public (announced and served) or private. The entry as it is now."""
        self.store.set_flags(self.show(reference).root, public=public)
        return self.show(reference)

    def remove(self, reference: str, *, force: bool = False, other_holders: int | None = None) -> int:
        """Remove from the store; the bytes freed. Raises Refused for a pinned model, and for the last known copy
        (`other_holders` 0), unless `force`."""
        parsed = parse(reference)
        if isinstance(parsed, RootReference) and other_holders != 0:
            return self.store.remove(parsed.cid, force=force)  # also where its index is damaged
        entry = self.show(reference)
        if other_holders == 0 and not force:
            raise Refused(
                f"no other holder of {entry.name} is known; remove the last copy with --force", code="FORBIDDEN"
            )
        return self.store.remove(entry.root, force=force)

    def verify(self, reference: str, progress: Progress | None = None) -> VerifyReport:
        """Hash everything again. Damaged leaves are no longer held afterwards (a fetch repairs them), and files that
        were touched but are right are served again."""
        entry = self.show(reference)
        return verify_model(self.store.require(entry.root), entry.manifest, progress)

    def trust(self, peer_id: str, alias: str = "") -> Publisher:
        return self.trust_table.add(peer_id, alias, now_ms=self._now_ms())

    def distrust(self, publisher: str) -> None:
        self.trust_table.remove(publisher)

    def publishers(self) -> tuple[Publisher, ...]:
        return self.trust_table.publishers()


def _next_patch(version: str) -> str:
    core = version.partition("-")[0].partition("+")[0].split(".")
    return f"{core[0]}.{core[1]}.{int(core[2]) + 1}"
