"""Where a model of ours came from, as its manifest's `ext` says it: a hub's repository at a commit. Pure."""

from __future__ import annotations

from typing import Any, Final

from octonode.models.manifest import ModelManifest
from octonode.models.reference import HubReference

HUB: Final = "hub"
"""Key in `ext`: {"repo", "commit", "file", "revision"}, all texts."""


def hub_origin(reference: HubReference, commit: str) -> dict[str, Any]:
    """For `ext`. `revision` is what was asked for, `commit` what it meant then."""
    return {
        HUB: {
            "repo": reference.repository,
            "commit": commit,
            "file": reference.file,
            "revision": reference.revision,
        }
    }


def origin_of(manifest: ModelManifest) -> dict[str, str]:
    """What the manifest says of a hub; empty when it says nothing."""
    said = manifest.ext.get(HUB)
    if not isinstance(said, dict):
        return {}
    return {key: value for key, value in said.items() if isinstance(key, str) and isinstance(value, str)}


def is_from(manifest: ModelManifest, reference: HubReference) -> bool:
    """Whether it is what `reference` meant when it was brought: the same repository and file, and of the revision that
    was asked for or the commit it meant."""
    origin = origin_of(manifest)
    if (origin.get("repo"), origin.get("file", "")) != (reference.repository, reference.file):
        return False
    return reference.revision in (origin.get("revision", ""), origin.get("commit"))
