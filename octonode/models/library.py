"""Every verb of `octonode models`, with or without a daemon. Blocking: from trio, call in threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from octonode.errors import NotFound, OctonodeError, Refused, VerificationFailed
from octonode.identity import Signer
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.ipfs.unixfs import UNIXFS_V1_2025, Profile, Progress, import_directory, import_file
from octonode.models import naming
from octonode.models.adding import collect, default_name, describe
from octonode.models.catalogue import Catalogue
from octonode.models.checking import VerifyReport, verify_model
from octonode.models.claims import ext_of, requirements_of
from octonode.models.entry import ModelEntry, Resolved
from octonode.models.following import Following
from octonode.models.held import HeldModel
from octonode.models.manifest import ModelManifest, Requirements, SignedManifest, check_rollback, sign, verify
from octonode.models.origin import is_from
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
from octonode.models.version import best

__all__ = ["FIRST_VERSION", "Library", "ModelEntry", "Resolved"]

FIRST_VERSION: Final = "1.0.0"


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
        self.following = Following(store.directory.parent)
        self._signer = signer
        self._now_ms = now_ms

    # -- add, cid -----------------------------------------------------------------------------------------------

    @staticmethod
    def cid(path: Path, progress: Progress | None = None, profile: Profile = UNIXFS_V1_2025) -> Cid:
        """The root CID of a file or directory. Imports nothing and looks at no format."""
        if path.is_file():
            return import_file(path, progress, profile).root
        results = {name: import_file(item, progress, profile) for name, item in collect(path)}
        return import_directory({name: (r.root, r.total_size_bytes) for name, r in results.items()}, profile).root

    def add(
        self,
        path: Path,
        *,
        name: str = "",
        version: str = FIRST_VERSION,
        licence: str = "",
        category: str = "",
        quantization: str = "",
        context_tokens: int = 0,
        requirements: Requirements | None = None,
        derived_from: Sequence[Cid] = (),
        placement: Placement = "auto",
        public: bool = True,
        profile: Profile = UNIXFS_V1_2025,
        vouched: bool = False,
        ext: Mapping[str, Any] | None = None,
        expected_root: Cid | None = None,
        progress: Progress | None = None,
    ) -> ModelEntry:
        """Import a file or directory, and sign a manifest for it as `<our peer id>/name@version`.

        The store links the file where it can and copies it else; `placement="reference"` leaves it where it is. The
        same content under the same name and version again changes nothing. `vouched`: the user says that it is theirs,
        which a TensorRT engine needs: from a hub it never is. Raises NotFound, FormatRefused, Refused (the version
        exists with other content), OctonodeError (DISK_FULL).
        """
        name = name or default_name(path)
        described = describe(path, progress, profile, vouched=vouched)
        if expected_root is not None and described.layout.root != expected_root.v1:
            raise VerificationFailed(
                f"{path} has the root {described.layout.root}, not {expected_root} as said: its bytes changed on the "
                "way; bring it again. Nothing was stored"
            )
        info = described.info
        known = self.catalogue.named(self._signer.peer_id, name)
        manifest = ModelManifest(
            publisher=self._signer.peer_id,
            name=name,
            version=version,
            files=described.files,
            root=described.layout.root,
            profile=profile.name,
            category=category or info.category,
            architecture=info.architecture,
            quantization=quantization or info.quantization,
            requirements=requirements or requirements_of(info),
            context_tokens=context_tokens or info.context_tokens,
            licence=licence or info.licence,
            chat_template_sha256=info.chat_template_sha256,
            derived_from=tuple(derived_from),
            seq=known[-1].manifest.seq + 1 if known else 1,
            previous=known[-1].cid if known else None,
            created_ms=self._now_ms(),
            ext={**ext_of(info), **(ext or {})},
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
        if model is None:
            return
        try:
            model.set_manifest(signed.encode(), [(signed.cid, signed.manifest_bytes)])
        except OctonodeError as error:  # on a disk that is read-only the catalogue knows it all the same
            if error.code != "READ_ONLY":
                raise

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
        entries = []
        for model in self.store.held():
            with contextlib.suppress(FileNotFoundError):  # removed between two looks
                entries.append(self._entry(model))
        return sorted(entries, key=lambda entry: entry.name)

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
        MODEL_NOT_FOUND for hf: that was not brought yet."""
        parsed = parse(reference)
        if isinstance(parsed, HubReference):
            return self._resolved_manifest(reference, self._from_hub(parsed))
        if isinstance(parsed, FileReference):
            return Resolved(reference, path=Path(parsed.path))
        if isinstance(parsed, RootReference):
            return self._known(Resolved(reference, root=parsed.cid, manifest=self.catalogue.of_root(parsed.cid)))
        if isinstance(parsed, ManifestReference):
            return self._resolved_manifest(reference, self.catalogue.get(parsed.cid), manifest_cid=parsed.cid)
        return self._resolve_name(reference, parsed)

    def _from_hub(self, reference: HubReference) -> SignedManifest:
        """Raises MODEL_NOT_FOUND."""
        mine = [each for each in self.catalogue.all() if each.manifest.publisher == self._signer.peer_id]
        found = [each for each in mine if is_from(each.manifest, reference)]
        if not found:
            raise NotFound(
                f"{reference} is not here yet; bring it: octonode models fetch {reference}", code="MODEL_NOT_FOUND"
            )
        return max(found, key=lambda each: each.manifest.created_ms)

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
        held = [signed for signed in known if self.store.get(signed.manifest.root) is not None]
        avoid = self.avoided(publisher, parsed.name)
        version = None
        for shelf in (held, known):  # what is held comes first, as for whoever serves and asks
            version = version or best(parsed.versions, [signed.manifest.version for signed in shelf], avoid=avoid)
        chosen = [signed for signed in known if signed.manifest.version == version]
        fields: dict[str, Any] = {"publisher": publisher, "name": parsed.name, "versions": parsed.versions}
        return self._resolved_manifest(text, chosen[-1] if chosen else None, **fields)

    def avoided(self, publisher: PeerId, name: str) -> frozenset[str]:
        """Versions that a range passes over where it has others: deprecated ones, and those the user went back from."""
        manifests = self.catalogue.named(publisher, name)
        back = {
            signed.manifest.version for signed in manifests if self.following.of(signed.manifest.root.text).rolled_back
        }
        return naming.avoided(self.catalogue.names.record(publisher, name)) | back

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
        """Never evict it; or again: then a previous version is no longer kept either."""
        root = self.show(reference).root
        self.store.set_flags(root, pinned=pinned)
        if not pinned:
            self.following.let_go(root.text)

    def publish(self, reference: str, public: bool = True) -> ModelEntry:
        """Make a model public (announced and served) or private. The entry as it is now."""
        self.store.set_flags(self.show(reference).root, public=public)
        return self.show(reference)

    def remove(self, reference: str, *, force: bool = False, other_holders: int | None = None) -> int:
        """Remove from the store; the bytes freed. Raises Refused for a pinned model, and for the last known copy
        (`other_holders` 0), unless `force`."""
        parsed = parse(reference)
        if isinstance(parsed, RootReference) and other_holders != 0:
            root = parsed.cid  # also where its index is damaged
        else:
            entry = self.show(reference)
            root = entry.root
            if other_holders == 0 and not force:
                raise Refused(
                    f"no other holder of {entry.name} is known; remove the last copy with --force", code="FORBIDDEN"
                )
        freed_bytes = self.store.remove(root, force=force)
        self.following.forget(root.text)
        self.trust_table.disallow_unsigned(root.text)
        return freed_bytes

    def verify(self, reference: str, progress: Progress | None = None) -> VerifyReport:
        """Hash everything again. Damaged leaves are no longer held afterwards (a fetch repairs them), and files that
        were touched but are right are served again."""
        entry = self.show(reference)
        model = self.store.require(entry.root)
        with model.leases.take("verify", "a check"):
            return verify_model(model, entry.manifest, progress)

    def trust(self, peer_id: str, alias: str = "") -> Publisher:
        return self.trust_table.add(peer_id, alias, now_ms=self._now_ms())

    def import_trust(self, rows: Sequence[tuple[str, str]]) -> tuple[int, int, tuple[str, ...]]:
        return self.trust_table.add_all(rows, now_ms=self._now_ms())

    def distrust(self, publisher: str) -> None:
        self.trust_table.remove(publisher)

    def publishers(self) -> tuple[Publisher, ...]:
        return self.trust_table.publishers()


def _next_patch(version: str) -> str:
    core = version.partition("-")[0].partition("+")[0].split(".")
    return f"{core[0]}.{core[1]}.{int(core[2]) + 1}"
