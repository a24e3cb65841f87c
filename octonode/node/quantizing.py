"""Making smaller models of those held here: `api.ports.Quantizing`.

The parent passes the gate, a child process makes the new files in a directory of its own, and what it made is looked at
as any stranger's files are. The new model is one of this node's own, with a manifest that names its parent; nothing
serves it until it is asked to. `OCTONODE_HOME/quantizing` holds what is being made, one at a time.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import psutil
import trio

from octonode.api.ports import Report
from octonode.api.schema import ModelFacts, ModelOutcome, ModelProgress, PublishModel
from octonode.api.schema.quantizing import QuantizeChoice, QuantizeChoices, QuantizeModel, QuantizeOutcome
from octonode.config import EnginesConfig
from octonode.engines.quantizing import child, needs
from octonode.engines.quantizing.job import KINDS, Job, Made, ratios
from octonode.engines.quantizing.said import Progress
from octonode.engines.select import default_threads
from octonode.errors import OctonodeError, Refused
from octonode.ids import PeerId
from octonode.models.entry import ModelEntry
from octonode.models.library import Library
from octonode.models.quantized import Quantized, ext_of, quantized_from
from octonode.node.evicting import require_room
from octonode.node.gate import Gate
from octonode.node.hub import MakeRoom
from octonode.node.quantizing_files import Parent, checked, parent_of, weights_bytes
from octonode.node.reporting import FromThread

WAITING_MAX: Final = 8
"""Callers that wait for their turn; more are refused."""


class Models(Protocol):
    """`node.models.Models`, as far as it is needed here."""

    def facts(self, root: str) -> ModelFacts: ...

    async def publish(self, request: PublishModel, report: Report) -> ModelOutcome: ...


class Quantizing:
    """`connect` it with the models before it is used."""

    def __init__(
        self, *, own: PeerId, home: Path, settings: EnginesConfig, library: Library, gate: Gate,
        refresh: Callable[[], Awaitable[None]], make_room: MakeRoom | None = None,
    ) -> None:  # fmt: skip
        self._own = own
        self._directory = home / "quantizing"
        self._settings = settings
        self._library = library
        self._gate = gate
        self._refresh = refresh
        self._make_room = make_room
        self._capability: Callable[[], tuple[int, int] | None] = lambda: None
        self._models: Models | None = None
        self._turn = trio.Lock()
        self._waiting = 0

    def connect(self, models: Models, capability: Callable[[], tuple[int, int] | None] = lambda: None) -> None:
        """`capability` gives the least compute capability of the GPUs here, as far as that is known by then."""
        self._models = models
        self._capability = capability

    async def run(self) -> None:
        """Removes what a daemon that was killed left, once."""
        async with self._turn:
            await trio.to_thread.run_sync(lambda: shutil.rmtree(self._directory, ignore_errors=True))

    # -- api.ports.Quantizing -----------------------------------------------------------------------------------

    async def choices(self, reference: str) -> QuantizeChoices:
        """Raises MODEL_NOT_FOUND, NOT_TRUSTED, FORMAT_REFUSED."""
        parent = await self._parent(reference)
        info = parent.info
        found = [
            QuantizeChoice(kind, words, self._problem(parent, kind)[1], self._bytes_for(parent, kind))
            for kind, words in KINDS.get(info.format, {}).items()
        ]
        note = "" if found else needs.problem(info.format, "")[1]
        return QuantizeChoices(
            parent.name, parent.root, info.format, info.quantization, parent.entry.row.size_bytes, tuple(found), note
        )

    async def quantize(self, asked: QuantizeModel, report: Report) -> QuantizeOutcome:
        """Raises MODEL_NOT_FOUND (also where it is not wholly here), NOT_TRUSTED, FORMAT_REFUSED, UNSUPPORTED, CONFIG
        (a library is missing), FORBIDDEN (the version is taken), DISK_FULL, OVERLOADED, and what `child.make` raises.
        Cancelling ends the child; nothing is left then."""
        began = time.monotonic()
        parent = await self._parent(asked.reference)
        if (problem := self._problem(parent, asked.to))[0]:
            raise OctonodeError(f"{parent.name}: {problem[1]}", code=problem[0])
        name, version = parent.child_name(asked.to, asked.name), asked.version or parent.version
        if (before := await trio.to_thread.run_sync(self._made_before, parent, asked.to, name, version)) is not None:
            entry, said, note = *before, "it was made before; nothing was done"
        else:
            async with _InTurn(self, report):
                entry, said = await self._make(parent, asked, name, version, report)
            note = "it is larger than its parent" if said.size_bytes > said.parent_bytes else ""
        return await self._published(asked, entry, said, note, time.monotonic() - began, report)

    async def _published(
        self, asked: QuantizeModel, entry: ModelEntry, said: Quantized, note: str, seconds: float, report: Report
    ) -> QuantizeOutcome:
        assert self._models is not None
        records = 0
        if asked.publish:
            published = await self._models.publish(PublishModel(f"cid:{entry.root}"), report)
            records, note = published.records, "; ".join(each for each in (note, published.note) if each)
        return QuantizeOutcome(self._models.facts(entry.root.text), said, seconds, records, note)

    # -- what is asked ------------------------------------------------------------------------------------------

    async def _parent(self, reference: str) -> Parent:
        entry = await trio.to_thread.run_sync(self._library.show, reference)
        if entry.manifest is not None and entry.manifest.manifest.publisher != self._own:
            manifest = entry.manifest.manifest
            self._library.trust_table.require(manifest.publisher, manifest.reference)
        return await parent_of(entry, self._gate)

    def _problem(self, parent: Parent, kind: str) -> tuple[str, str]:
        python = self._python(parent) if parent.info.format in needs.NEEDS else ""
        return needs.problem(
            parent.info.format, kind, python=python, capability=self._capability(), quantized=parent.info.quantization
        )

    def _python(self, parent: Parent) -> str:
        return needs.interpreter(parent.info.format, self._settings.pythons, self._settings.python)

    @staticmethod
    def _bytes_for(parent: Parent, kind: str) -> int:
        return needs.bytes_for(
            parent.info.format,
            kind,
            size_bytes=parent.entry.row.size_bytes,
            weights_bytes=parent.weights_bytes,
            parameters=parent.info.shape.parameters,
        )

    def _made_before(self, parent: Parent, kind: str, name: str, version: str) -> tuple[ModelEntry, Quantized] | None:
        """The same, where it is here. Raises FORBIDDEN where the name and version are another model's."""
        for signed in self._library.catalogue.named(self._own, name):
            manifest = signed.manifest
            if manifest.version != version:
                continue
            said, entry = quantized_from(manifest.ext), self._library.entry(manifest.root)
            if said is not None and said.kind == kind and parent.cid in manifest.derived_from:
                if entry is not None and entry.complete:
                    return entry, said
                continue  # it was made and removed; `Library.add` refuses it where it comes out differently
            raise Refused(
                f"{name}@{version} is another model of yours; choose a new version, or another name: --version, --name",
                code="FORBIDDEN",
            )
        return None

    # -- the work -----------------------------------------------------------------------------------------------

    async def _make(
        self, parent: Parent, asked: QuantizeModel, name: str, version: str, report: Report
    ) -> tuple[ModelEntry, Quantized]:
        bytes_max = self._bytes_for(parent, asked.to)
        scratch = needs.scratch_for(parent.info.format, asked.to, size_bytes=parent.entry.row.size_bytes)
        await require_room(self._library, self._directory, bytes_max, bytes_max + scratch, self._make_room)
        place = self._directory / secrets.token_hex(8)
        target = place / "made"
        model = self._library.store.require(parent.entry.root)
        lease = await trio.to_thread.run_sync(model.leases.take, "quantize", f"quantizing to {asked.to}")
        try:
            await trio.to_thread.run_sync(lambda: target.mkdir(parents=True, mode=0o700))
            made = await self._run(parent, asked, target, max(bytes_max, scratch), report)
            return await self._take_in(parent, asked, made, target, bytes_max, (name, version), report)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(place, ignore_errors=True))
                await trio.to_thread.run_sync(lease.close)

    async def _run(
        self, parent: Parent, asked: QuantizeModel, target: Path, file_bytes_max: int, report: Report
    ) -> Made:
        settings, threads = self._settings, self._settings.threads or default_threads()
        job = Job(
            format=parent.info.format,
            kind=asked.to,
            source=str(parent.source),
            target=str(target),
            category=parent.category,
            threads=threads,
            measure=asked.measure,
            files=parent.files,
            file_bytes_max=file_bytes_max,
            sandbox=settings.sandbox,
            parent=os.getpid(),
        )

        def tell(said: Progress) -> None:
            report(ModelProgress(said.stage, said.done, said.total))

        return await child.make(
            job,
            python=self._python(parent),
            directory=target.with_name("work"),
            threads=threads,
            memory_bytes_max=settings.memory_bytes_max or psutil.virtual_memory().total * 9 // 10,
            tell=tell,
        )

    async def _take_in(
        self, parent: Parent, asked: QuantizeModel, made: Made, target: Path, bytes_max: int,
        named: tuple[str, str], report: Report,
    ) -> tuple[ModelEntry, Quantized]:  # fmt: skip
        """Into the store, as a model of ours. Raises FormatRefused, ENGINE_FAILED for what is no model."""
        path = await trio.to_thread.run_sync(checked, made.path, target, bytes_max)
        size_bytes = await trio.to_thread.run_sync(weights_bytes, path)
        weights = parent.info.shape.parameters or made.weights
        fp32, fp16 = ratios(size_bytes, weights)
        quality = made.quality
        said = Quantized(
            asked.to, parent.name, parent.weights_bytes, size_bytes, fp32, fp16,
            quality.measure, quality.parent, quality.value, quality.mean, quality.reason,
        )  # fmt: skip
        progress = FromThread(report, "import")
        entry = await trio.to_thread.run_sync(
            lambda: self._library.add(
                path, name=named[0], version=named[1], licence=parent.licence, category=parent.category,
                quantization=asked.to, context_tokens=parent.context_tokens, derived_from=(parent.cid,), public=False,
                ext=ext_of(said), progress=progress,
            )
        )  # fmt: skip
        await self._refresh()
        return entry, said


class _InTurn:
    """One model is made at a time; those behind wait, and are told so."""

    def __init__(self, owner: Quantizing, report: Report) -> None:
        self._owner = owner
        self._report = report

    async def __aenter__(self) -> None:
        """Raises OVERLOADED."""
        owner = self._owner
        if owner._waiting >= WAITING_MAX:
            text = f"{WAITING_MAX} models wait to be made smaller; try again when some are done"
            raise Refused(text, code="OVERLOADED")
        owner._waiting += 1
        try:
            if owner._turn.locked():
                self._report(ModelProgress("wait"))
            await owner._turn.acquire()
        finally:
            owner._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._owner._turn.release()
