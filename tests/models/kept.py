"""What a held model gives out."""

from __future__ import annotations

from octonode.ipfs.cid import DAG_PB, Cid
from octonode.models.held import HeldModel


def blocks_of(model: HeldModel) -> dict[Cid, bytes]:
    """Every block that the model is made of, as it gives them out; its manifest is not one of them."""
    layout = model.layout()
    found = {}
    for cid in [*(cid for cid in layout.nodes if cid.codec == DAG_PB), *(leaf.cid for leaf in layout.leaves)]:
        body = model.block(cid)
        assert body is not None
        found[cid] = body.read()
        body.close()
    return found
