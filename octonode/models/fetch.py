"""Fetching a model by its root: DAG nodes first, then runs of leaves from several sources at once.

Every leaf is verified before it is written. What was synced survives a kill; calling `fetch` again goes on from there.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Sequence

import trio

from octonode.errors import OctonodeError, RemoteProtocolError, VerificationFailed
from octonode.ipfs.cid import DAG_CBOR, Cid
from octonode.ipfs.gateway_client import GatewayAddress
from octonode.ipfs.layout import Layout
from octonode.models.fetching import BlockPeers, FetchLimits, FetchProgress, FetchReport, Progress
from octonode.models.held import HeldModel
from octonode.models.manifest import ModelManifest
from octonode.models.memory import FetchMemory
from octonode.models.session import FetchSession
from octonode.models.sources.source import Source
from octonode.models.sources.store import held_elsewhere
from octonode.models.store import DEFAULT_FILE_NAME, ModelStore
from octonode.models.walking import fetch_nodes
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
    place for the model: from then on others can take from us what we have.

    Raises NotFound (nobody is known to have it), Unreachable (those who have it do not give it; what came is kept),
    VerificationFailed (what they give is wrong, root or manifest lie), RemoteProtocolError (a right block is no
    part of a model: nothing is kept), OctonodeError DISK_FULL, READ_ONLY, ALREADY_RUNNING. Cancelling loses at most the
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
    if model is None and progress is not None:
        progress(FetchProgress(root, "nodes", 0, 0, 0.0, math.inf, {}, {}))
    if model is None:
        layout = await fetch_nodes(root, known, peers, limits, report.banned)
    else:
        layout = await trio.to_thread.run_sync(model.layout)
    check_against(layout, manifest)
    if model is None:
        model = await trio.to_thread.run_sync(lambda: _prepare(store, layout, manifest, public))
    writer = await trio.to_thread.run_sync(LeafWriter, model)
    try:
        if prepared is not None:
            await prepared()
        known[:0] = await trio.to_thread.run_sync(_near, store, layout)
        session = FetchSession(
            layout, writer, limits=limits, rng=rng or random.Random(), progress=progress, banned=report.banned,
            memory=memory or FetchMemory(), priority=priority, own=own,
        )  # fmt: skip
        await session.run(known, peers)
        await trio.to_thread.run_sync(writer.finish)
    except RemoteProtocolError:  # a leaf that hashes right showed it: this root never becomes a model
        await trio.to_thread.run_sync(_keep_what_came, writer)
        await trio.to_thread.run_sync(lambda: store.remove(root, force=True))
        raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_keep_what_came, writer)
    if not model.row.complete:
        raise OctonodeError(
            f"{root} was fetched but does not stand complete on disk; run: octonode models verify {root}"
        )
    return FetchReport(root, layout.size_bytes, dict(session.by_source), report.banned, trio.current_time() - started)


def _near(store: ModelStore, layout: Layout) -> list[Source]:
    found = held_elsewhere(store, layout)
    return [] if found is None else [found]


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
