"""One model as the faces show it, put together from the shelf, the residency and what peers announce. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from octonode.api.schema import ModelFacts
from octonode.ids import PeerId
from octonode.models import naming
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest
from octonode.models.quantized import quantized_from
from octonode.models.scrubbing import ScrubNote
from octonode.node.shelf import Held
from octonode.protocol.announcement import Announcement, Holding, Serving
from octonode.protocol.work.skills import SKILLS
from octonode.tasks.residency import ModelStatus

State = Literal["held", "fetching", "loading", "serving", "network"]


def facts_of(
    root: str,
    own: PeerId,
    *,
    library: Library,
    held: Held | None = None,
    signed: SignedManifest | None = None,
    serving: Sequence[Announcement] = (),
    holding: Sequence[Announcement] = (),
    status: ModelStatus | None = None,
    note: ScrubNote | None = None,
    own_skills: Sequence[str] = (),
) -> ModelFacts:
    """What is not known here is empty; `own_skills` are those of our own loaded engine. `serving` and `holding` are
    announcements of peers that have this root.

    Names are a manifest's as signed, else as announced: anybody may announce any name, so such a model is never shown
    as trusted, and a question by name goes where the signed manifest says.
    """
    servers = [announcement.peer_id for announcement in serving]
    holders = [announcement.peer_id for announcement in holding]
    if status is not None and status.state == "serving":
        servers.insert(0, own)
    if held is not None and held.public:
        holders.insert(0, own)
    said: list[Serving | Holding] = [item for each in serving for item in each.serving]
    said += [item for each in holding for item in each.holding]
    announced = next((item for item in said if item.root == root and item.name), None)
    if held is not None and signed is None:
        announced = None  # taken as it is, by its root: nobody's name counts for it
    manifest = signed.manifest if signed else None
    publisher, name, version = _names(signed, announced)
    skills = _skills(root, said, own_skills)
    return ModelFacts(
        reference=f"{publisher}/{name}" if name else f"cid:{root}",
        root=root,
        manifest=signed.cid.text if signed else announced.manifest if announced else "",
        name=name,
        publisher=publisher,
        version=version,
        size_bytes=manifest.size_bytes if manifest else held.entry.row.size_bytes if held else 0,
        have_bytes=held.held_bytes if held else 0,
        complete=held.complete if held else False,
        state=_state(held, status),
        detail=status.reason if status else "",
        format=manifest.format if manifest else "",
        architecture=manifest.architecture if manifest else "",
        quantization=manifest.quantization if manifest else getattr(announced, "quantization", ""),
        category=manifest.category if manifest else _category(skills),
        skills=skills,
        context_tokens=manifest.context_tokens if manifest else getattr(announced, "context_tokens", 0),
        license=manifest.licence if manifest else "",
        created_at_ms=manifest.created_ms if manifest else 0,
        derived_from=tuple(each.text for each in manifest.derived_from) if manifest else (),
        quantized=quantized_from(manifest.ext) if manifest else None,
        unsigned=signed is None and not (announced and announced.manifest),
        trusted=signed is not None and (publisher == own or library.trust_table.is_trusted(publisher)),
        deprecated=naming.advice(library.catalogue.names.record(publisher, name), version) if signed else "",
        kept_as_previous=library.following.is_previous(root),
        pinned=held.entry.row.pinned if held else False,
        last_used_at_ms=held.entry.row.last_used_ms if held else 0,
        checked_at_ms=note.checked_ms if held and note else 0,
        damaged_blocks=note.damaged if held and note and not held.complete else 0,
        servers=tuple(servers),
        holders=tuple(holders),
    )


def _skills(root: str, said: Sequence[Serving | Holding], own: Sequence[str]) -> tuple[str, ...]:
    served = [item.skills for item in said if isinstance(item, Serving) and item.root == root]
    return tuple(dict.fromkeys([*own, *(skill for skills in served for skill in skills)]))


def _category(skills: Sequence[str]) -> str:
    """Of a model that is known by what is announced of it alone."""
    known = [SKILLS[skill].category for skill in skills if skill in SKILLS]
    return "llm" if "chat" in skills else known[0] if known else ""


def _names(signed: SignedManifest | None, announced: Serving | Holding | None) -> tuple[str, str, str]:
    if signed is not None:
        return signed.manifest.publisher, signed.manifest.name, signed.manifest.version
    if announced is None:
        return "", "", ""
    publisher, _, name = announced.name.partition("/")
    return publisher, name, announced.version


def _state(held: Held | None, status: ModelStatus | None) -> State:
    if status is not None and status.state in ("serving", "loading"):
        return "serving" if status.state == "serving" else "loading"
    if status is not None and status.state in ("resolving", "fetching"):
        return "fetching"
    if held is None:
        return "network"
    return "held" if held.complete else "fetching"
