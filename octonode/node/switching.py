"""Puts one version of a served model in the place of another, without a gap where memory allows both at once."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from octonode.api.ports import Report
from octonode.models.manifest import SignedManifest
from octonode.node.models import Models
from octonode.node.wishes import Wishes
from octonode.tasks.residency import Residency

HEADROOM = 1.25
"""Memory that a model is taken to need while it is loaded beside another, by the size of its files."""


class Switcher:
    """`available_bytes` is the memory that may be used now."""

    def __init__(
        self, models: Models, residency: Residency, wishes: Wishes, *, available_bytes: Callable[[], int]
    ) -> None:
        self._models = models
        self._residency = residency
        self._wishes = wishes
        self._available_bytes = available_bytes

    def serves(self, root: str) -> bool:
        return self._residency.model(root) is not None

    def served_as(self, root: str) -> str:
        """The reference it is served under; empty where it is not."""
        status = self._residency.model(root)
        return status.reference if status else ""

    async def switch(self, old: SignedManifest, new: SignedManifest, reference: str, report: Report) -> str:
        """Serve `new`, which is held, where `old` is served; under `reference` from now on, over restarts too.

        The old one serves until the new one is loaded, and stays where that fails. Where the two do not fit beside each
        other it is unloaded first, and what is returned says so. Raises what keeps the new one from being served.
        """
        old_root, new_root = old.manifest.root.text, new.manifest.root.text
        before = self._residency.model(old_root)
        assert before is not None
        fits = new.manifest.size_bytes * HEADROOM <= self._available_bytes()
        if not fits:
            self._residency.remove(old_root)
        passing = f"cid:{new.cid}"
        self._residency.add(passing)
        try:
            await self._models.until_serving(passing, new_root, report)
        except BaseException:
            self._residency.remove(passing)
            if not fits:
                self._residency.add(f"cid:{old.cid}")  # its range may mean the new one by now
            raise
        self._residency.remove(old_root)
        if all(each.reference != reference for each in self._residency.status()):
            self._residency.rename(passing, reference)
        await self._keep(before.reference, reference)
        if fits:
            return ""
        return "the memory did not allow both at once: it was not served while the new version was loaded"

    async def _keep(self, before: str, now: str) -> None:
        """What is served after the next start. What the configuration names stays there."""
        wished = self._wishes.all()
        if before == now or (before not in wished and now in wished):
            return
        engine = wished.get(before, "")
        await self._wishes.remove(before)
        await self._wishes.add(now, engine)


def available_memory_bytes() -> int:
    """What can be used without swapping."""
    return int(psutil.virtual_memory().available)
