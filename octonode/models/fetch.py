"""Fetching a model by its root: DAG nodes first, then runs of leaves from several sources at once.

Every leaf is verified before it is written. What was synced survives a kill; calling `fetch` again goes on from there.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Sequence

import trio

from octonode.errors import NotFound, OctonodeError, RemoteProtocolError, Unreachable, VerificationFailed
from octonode.ipfs.cid import DAG_CBOR, Cid
from octonode.ipfs.gateway_client import GatewayAddress
from octonode.ipfs.layout import DagWalk, Layout
from octonode.models.fetching import BlockPeers, FetchLimits, FetchProgress, FetchReport, Progress, add_peers
from octonode.models.held import HeldModel
from octonode.models.manifest import ModelManifest
from octonode.models.memory import FetchMemory
from octonode.models.session import FetchSession
from octonode.models.sources.source import Lane, Source
from octonode.models.sources.store import held_elsewhere
from octonode.models.store import DEFAULT_FILE_NAME, ModelStore
from octonode.models.writing import LeafWriter

__all__ = ["BlockPeers", "FetchLimits", "FetchProgress", "FetchReport", "GatewayAddress", "fetch"]


async def fetch(
    root: Cid,
    store: ModelStore,
    *,
    sources: Sequence[Source] = (),
    peers: BlockPeers | None = None,
    manifest: ModelManifest | None = None,
    progress: Progress | None = None,
    limits: FetchLimits | None = None,
    rng: random.Random | None = None,
    public: bool = True,
    memory: FetchMemory | None = None,
    priority: int = 0,
    own: str = "",
    prepared: Callable[[], Awaitable[None]] | None = None,
) -> FetchReport:
    """Fetch the model `root` into `store`, complete and verified when this returns.

    `sources` are used from the start, those that `peers` names as they appear. With a `manifest` its sizes and
    roots are compared with the DAG before disk is taken. `memory` is shared with other fetches, and of those that wait
    for it the one with the highest `priority` goes on. `own` is our peer id: with it, and with others that fetch the
    same model, each takes its share from those who have all (models.shares). `prepared` is awaited once the store has a
    place for the model: from then on others can take from us what we have. Raises NotFound (nobody is known to have it), Unreachable
    (those who have it do not give it; what came is kept), VerificationFailed (what they give is wrong),
    VerificationFailed (root or manifest lie), OctonodeError DISK_FULL, ALREADY_RUNNING. Cancelling loses at most the
    group that was not synced.
    """
    assert root.codec != DAG_CBOR, "resolve a manifest to its root first"
    limits = limits or FetchLimits()
    started = trio.current_time()
    report = FetchReport(root, 0, {}, {}, 0.0)
    model = await trio.to_thread.run_sync(store.get, root)
    if model is not None and model.row.complete:
        return FetchReport(root, model.row.size_bytes, {}, {}, 0.0)
    known = list(sources)
    if model is None:
        if progress is not None:
            progress(FetchProgress(root, "nodes", 0, 0, 0.0, math.inf, {}, {}))
        layout = await _fetch_nodes(root, known, peers, limits, report.banned)
        check_against(layout, manifest)
        model = await trio.to_thread.run_sync(lambda: _prepare(store, layout, manifest, public))
    else:
        layout = await trio.to_thread.run_sync(model.layout)
        check_against(layout, manifest)
    writer = await trio.to_thread.run_sync(LeafWriter, model)
    try:
        if prepared is not None:
            await prepared()
        near = await trio.to_thread.run_sync(held_elsewhere, store, layout)
        if near is not None:
            known.insert(0, near)
        session = FetchSession(
            layout, writer, limits=limits, rng=rng or random.Random(), progress=progress, banned=report.banned,
            memory=memory or FetchMemory(), priority=priority, own=own,
        )  # fmt: skip
        await session.run(known, peers)
        await trio.to_thread.run_sync(writer.finish)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_keep_what_came, writer)
    if not model.row.complete:
        raise OctonodeError(
            f"{root} was fetched but does not stand complete on disk; run: octonode models verify {root}"
        )
    return FetchReport(root, layout.size_bytes, dict(session.by_source), report.banned, trio.current_time() - started)


def _keep_what_came(writer: LeafWriter) -> None:
    """Sync and close, whatever ended the fetch; a disk that is full has been told of already."""
    try:
        with contextlib.suppress(OctonodeError):
            writer.sync()
    finally:
        writer.close()


def _prepare(store: ModelStore, layout: Layout, manifest: ModelManifest | None, public: bool) -> HeldModel:
    name = manifest.files[0].path if manifest is not None and len(manifest.files) == 1 else DEFAULT_FILE_NAME
    return store.prepare(layout, file_name=name, public=public)


def check_against(layout: Layout, manifest: ModelManifest | None) -> None:
    """Raises VerificationFailed when the DAG is not what the manifest promises."""
    if manifest is None:
        return
    promised = [(f.path, f.size_bytes, f.root) for f in manifest.files]
    found = [(f.path or manifest.files[0].path, f.size_bytes, f.root.v1) for f in layout.files]
    if manifest.root != layout.root.v1 or promised != found:
        raise VerificationFailed(
            f"{layout.root} holds {layout.size_bytes} bytes in {len(found)} files and does not match the manifest of "
            f"{manifest.reference} ({manifest.size_bytes} bytes in {len(promised)}); nothing was stored"
        )


async def _fetch_nodes(
    root: Cid, sources: list[Source], peers: BlockPeers | None, limits: FetchLimits, banned: dict[str, str]
) -> Layout:
    """Walk the DAG, asking source after source for each node. `sources` grows by the peers that are found."""
    walk = DagWalk(root)
    started = trio.current_time()
    deadline = started + limits.give_up_seconds
    last = "nobody is known to have it"
    while True:
        await add_peers(root, sources, peers, limits, banned)
        for source in sorted((s for s in sources if s.name not in banned), key=lambda each: each.rank):
            before = len(walk.wanted)
            lane = source.open()
            try:
                await _walk_with(walk, lane)
                return await trio.to_thread.run_sync(walk.layout)  # a second and more for a million leaves
            except VerificationFailed as error:
                banned[source.name] = error.message
                last = error.message
            except OctonodeError as error:
                if isinstance(error, RemoteProtocolError) and not isinstance(error, _LaneFault):
                    raise VerificationFailed(f"{root} is not the root of a model: {error.message}") from error
                last = error.message
            finally:
                lane.close()
            if len(walk.wanted) != before:
                deadline = trio.current_time() + limits.give_up_seconds
        if not sources and trio.current_time() > started + limits.nobody_seconds:
            raise NotFound(
                f"nobody known here has {root}: is it the right CID, and is a node that holds it online? See: "
                "octonode peers",
                code="MODEL_NOT_FOUND",
            )
        lied = bool(sources) and all(source.name in banned for source in sources)
        if lied and (peers is None or trio.current_time() > started + limits.nobody_seconds):
            raise VerificationFailed(
                f"nobody known gives true blocks of {root}: {last}. Nothing was written; run the same command again "
                "when another holder is online"
            )
        if peers is None or trio.current_time() > deadline:
            raise Unreachable(f"no source has {root}: {last}. Is a peer that holds it online? See: octonode peers")
        await trio.sleep(limits.retry_seconds)


class _LaneFault(RemoteProtocolError):
    """The source broke the protocol, as opposed to the DAG itself."""


async def _walk_with(walk: DagWalk, lane: Lane) -> None:
    while wanted := walk.wanted:
        for cid in wanted:
            try:
                block = await lane.block(cid)
            except RemoteProtocolError as error:
                raise _LaneFault(error.message) from error
            walk.add(cid, block)
