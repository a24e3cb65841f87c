"""A whole model as one CAR, block by block out of the store: for who takes archives, such as a Kubo node. Blocking."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from octonode.errors import NotFound, VerificationFailed
from octonode.ipfs import car
from octonode.ipfs.cid import Cid
from octonode.models.held import HeldModel

Progress = Callable[[int, int], None]


def archive(model: HeldModel, progress: Progress | None = None) -> Iterator[bytes]:
    """The CAR of a complete model: its nodes, then each of its leaves once, every block hashed as it is read.

    `progress` gets (bytes of the model's files, their sum). Raises NotFound or VerificationFailed where a block is
    gone or damaged: `octonode models verify` repairs it.
    """
    layout = model.layout()
    yield car.header([layout.root])
    for cid, node in layout.nodes.items():
        yield car.section_prefix(cid, len(node)) + node
    seen: set[Cid] = set()
    done = 0
    for leaf in layout.leaves:
        done += leaf.size_bytes
        if leaf.cid in seen or leaf.cid in layout.nodes:
            continue
        seen.add(leaf.cid)
        block = _read(model, leaf.cid)
        yield car.section_prefix(leaf.cid, len(block)) + block
        if progress is not None:
            progress(done, layout.size_bytes)


def _read(model: HeldModel, cid: Cid) -> bytes:
    body = model.block(cid)
    if body is None:
        raise NotFound(f"{cid} of {model.root} is not here; repair it: octonode models verify cid:{model.root}")
    try:
        block = body.read()
    except (OSError, EOFError) as error:
        raise NotFound(f"{cid} of {model.root} cannot be read: {error}") from error
    finally:
        body.close()
    if not cid.matches(block):
        raise VerificationFailed(
            f"{cid} of {model.root} is damaged; repair it: octonode models verify cid:{model.root}"
        )
    return block
