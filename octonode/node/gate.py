"""The gate before every load: no engine sees a byte of a model that was not inspected. `tasks.residency.Gate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from octonode.errors import NotFound
from octonode.ipfs.cid import Cid
from octonode.models.formats import FormatInfo
from octonode.models.held import HeldModel
from octonode.models.inspecting import Admitted, Inspector
from octonode.models.library import Library
from octonode.tasks.residency import ResolvedModel


class Gate:
    """Looks at the files of a held model, once for each root as long as they stay as they are."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._inspector = Inspector()

    async def admit(self, model: ResolvedModel, path: Path) -> tuple[ResolvedModel, Path, Path]:
        """The model with the format that its content has, and the file and the folder to open. Raises FormatRefused.

        `path` is where the model lies; what counts are the files that the store has for this root.
        """
        admitted = await trio.to_thread.run_sync(self._admit, Cid.parse(model.root))
        context = model.context_tokens or admitted.info.context_tokens
        model = replace(
            model,
            format=admitted.info.format,
            context_tokens=context,
            category=model.category if model.manifest else admitted.info.category,
            architecture=model.architecture or admitted.info.architecture,
        )
        return model, admitted.opens, admitted.folder

    async def info(self, root: str) -> FormatInfo:
        """What a complete model here is. Raises FormatRefused, NotFound."""
        return await trio.to_thread.run_sync(lambda: self._info(Cid.parse(root)))

    def _admit(self, root: Cid) -> Admitted:
        held, signed = self._held(root)
        return self._inspector.admit(held, signed=signed)

    def _info(self, root: Cid) -> FormatInfo:
        held, signed = self._held(root)
        return self._inspector.info(held, signed=signed)

    def _held(self, root: Cid) -> tuple[HeldModel, bool]:
        """The model, and whether a publisher signed it whom the user has named: `trust_all` is no trust in code."""
        held, entry = self._library.store.get(root), self._library.entry(root)
        if held is None or entry is None or not entry.complete:
            raise NotFound(f"cid:{root} is not wholly here; fetch it: octonode models fetch cid:{root}")
        publisher = entry.manifest.manifest.publisher if entry.manifest else None
        return held, publisher is not None and self._library.trust_table.is_named(publisher)
