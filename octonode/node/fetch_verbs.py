"""The verbs of `/api/v1/fetches` over `node.fetches`: `api.ports.Fetches`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import trio

from octonode.api.schema.fetches import ChangeFetch, FetchFacts
from octonode.errors import NotFound
from octonode.ipfs.cid import Cid, CidError
from octonode.models.catalogue import Catalogue
from octonode.node.fetches import Fetch, Fetches
from octonode.node.resolving import Resolver


class FetchVerbs:
    """What runs, and changing it."""

    def __init__(self, fetches: Fetches, catalogue: Catalogue, resolver: Resolver) -> None:
        self._fetches = fetches
        self._catalogue = catalogue
        self._resolver = resolver

    async def list(self) -> Sequence[FetchFacts]:
        return [await self._facts(each) for each in self._fetches.all()]

    async def change(self, asked: ChangeFetch) -> FetchFacts:
        root = await self._root(asked.reference)
        match asked.action:
            case "pause":
                changed = await self._fetches.pause(root)
            case "resume":
                changed = await self._fetches.resume(root)
            case "cancel":
                changed = await self._fetches.cancel(root)
            case "prioritize":
                changed = await self._fetches.prioritize(root, asked.priority)
        return await self._facts(changed)

    async def _root(self, reference: str) -> Cid:
        """By CID without asking anybody. Raises MODEL_NOT_FOUND."""
        try:
            cid = Cid.parse(reference.removeprefix("cid:")).v1
        except CidError:
            cid = None
        if cid is not None and any(each.root == cid for each in self._fetches.all()):
            return cid
        for each in self._fetches.all():
            if reference in ((await self._facts(each)).reference, each.root.text):
                return each.root
        try:
            return (await self._resolver.root_and_manifest(reference))[0]
        except NotFound:
            raise NotFound(
                f"{reference} is not being fetched here; see: octonode models fetches", code="MODEL_NOT_FOUND"
            ) from None

    async def _facts(self, each: Fetch) -> FetchFacts:
        signed = await trio.to_thread.run_sync(self._catalogue.of_root, each.root)
        progress = each.progress
        facts = FetchFacts(
            root=each.root.text,
            reference=signed.manifest.reference if signed else f"cid:{each.root}",
            state=each.state,
            priority=each.priority,
            background=each.background,
            reason=each.reason,
        )
        if progress is None:
            return facts
        running = each.state == "running"
        return replace(
            facts,
            done_bytes=progress.done_bytes,
            total_bytes=progress.total_bytes,
            bytes_per_second=progress.bytes_per_second if running else 0.0,
            seconds_left=progress.seconds_left if running and math.isfinite(progress.seconds_left) else None,
            bytes_by_source=dict(progress.by_source),
            speed_by_source=dict(progress.speed_by_source) if running else {},
        )
