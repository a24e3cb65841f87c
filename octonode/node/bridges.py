"""Handing models to programs of the IPFS world beside us: `api.ports.Bridges`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import trio

from octonode.api.ports import Report
from octonode.api.schema import ModelFacts, ModelOutcome, ModelProgress
from octonode.api.schema.uploads import ExportToKubo
from octonode.errors import ConfigError, Refused
from octonode.ipfs.cid import Cid
from octonode.ipfs.kubo_rpc import KuboError, KuboRPC
from octonode.models.archive import archive
from octonode.models.library import Library
from octonode.node.reporting import FromThread


class Facts(Protocol):
    """`node.models.Models`, as far as it is needed here."""

    async def resolve(self, reference: str) -> ModelFacts: ...


class Bridges:
    """`kubo_rpc` is the setting `models.kubo_rpc`; empty: none."""

    def __init__(self, library: Library, models: Facts, *, kubo_rpc: str) -> None:
        self._library = library
        self._models = models
        self._kubo_rpc = kubo_rpc

    async def export_to_kubo(self, asked: ExportToKubo, report: Report) -> ModelOutcome:
        """Imported, pinned, provided. Raises CONFIG (no Kubo is set), FORBIDDEN (private), MODEL_NOT_FOUND,
        Unreachable, KuboError."""
        began = time.monotonic()
        url = asked.rpc or self._kubo_rpc
        if not url:
            raise ConfigError(
                "no Kubo is set: octonode config set models.kubo_rpc http://127.0.0.1:5001, or give --rpc with its URL"
            )
        entry = await trio.to_thread.run_sync(self._library.show, asked.reference)
        if not entry.row.public and not asked.private:
            raise Refused(
                f"{entry.name} is private here, and Kubo gives what it has to whoever asks: publish it first, or use "
                "--private",
                code="FORBIDDEN",
            )
        model = self._library.store.require(entry.root)
        with KuboRPC(url) as rpc:
            report(ModelProgress("find"))
            version = await rpc.version()
            pieces = archive(model, FromThread(report, "import"))
            imported = await rpc.dag_import(_in_threads(pieces))
            report(ModelProgress("publish"))
            if not await rpc.pin_ls(entry.root):
                await rpc.pin_add(entry.root)
            records, note = await _provided(rpc, asked, entry.root)
        facts = await self._models.resolve(f"cid:{entry.root}")
        taken = f"Kubo {version} took {imported.blocks} blocks in and pinned {entry.root}"
        return ModelOutcome(facts, seconds=time.monotonic() - began, records=records, note=f"{taken}{note}")


async def _provided(rpc: KuboRPC, asked: ExportToKubo, root: Cid) -> tuple[int, str]:
    """Peers that were told, and what to say where none was. Not being able to provide loses nothing."""
    if not asked.provide:
        return 0, ""
    try:
        return await rpc.provide(root), ""
    except KuboError as error:
        return 0, f"; not provided yet: {error.message}"


async def _in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Reading and hashing blocks the loop for a millisecond each; a thread does it."""
    while (piece := await trio.to_thread.run_sync(next, pieces, None)) is not None:
        yield piece
