"""Leases of the store for the workers: what an engine has open is not removed. `engines.files.ModelFiles`."""

from __future__ import annotations

from octonode.engines.files import Lease
from octonode.ipfs.cid import Cid, CidError
from octonode.models.store import ModelStore


class EngineFiles:
    """A root that is not in the store, such as a file in its own place, has no lease."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def lease(self, model_root: str, owner: str) -> Lease | None:
        """Raises NotFound when the model is being removed."""
        try:
            model = self._store.get(Cid.parse(model_root))
        except CidError:
            return None
        return None if model is None else model.leases.take("engine", owner)
