"""Files by content path: a file's own root, or a path below a directory that a held model has."""

from __future__ import annotations

from collections.abc import Sequence

from octonode.ipfs.blocks import Body, FoundFile, IsDirectory
from octonode.ipfs.cid import DAG_PB, Cid
from octonode.ipfs.dagpb import DirectoryNode, interpret
from octonode.models.held import HeldModel


def find_file(models: Sequence[HeldModel], root: Cid, path: tuple[str, ...]) -> FoundFile | None:
    """The file at `path` below `root`, or `root` itself, in any of `models`; None when none of them has it. Its bytes
    come from the first model that holds all that is asked for. Raises IsDirectory."""
    found, directory = [], False
    for model in models:
        roots = _walk(model, root, path)
        if roots is None:
            continue
        file = model.file_of(roots[-1])
        if file is not None:
            found.append((model, file, roots))
        else:
            directory = directory or _directory(model, roots[-1]) is not None
    if not found:
        if directory:
            raise IsDirectory
        return None

    def read(first_byte: int, size_bytes: int) -> Body | None:
        for model, file, _ in found:
            try:
                body = model.read_file(file, first_byte, size_bytes)
            except FileNotFoundError:  # removed between two looks
                continue
            if body is not None:
                return body
        return None

    _, file, roots = found[0]
    return FoundFile(file.root, file.size_bytes, roots, read)


def _walk(model: HeldModel, root: Cid, path: tuple[str, ...]) -> tuple[Cid, ...] | None:
    """The roots of all steps, `root` first; None where one leads nowhere. An empty last name asks for a directory."""
    roots = [root]
    for name in path:
        directory = _directory(model, roots[-1])
        if directory is None:
            return None
        if name:
            entry = next((link.cid for link in directory.entries if link.name == name), None)
            if entry is None:
                return None
            roots.append(entry)
    return tuple(roots)


def _directory(model: HeldModel, cid: Cid) -> DirectoryNode | None:
    if cid.codec != DAG_PB:
        return None
    with model.lock:
        block = model.index.node(cid)
    node = interpret(block) if block is not None else None
    return node if isinstance(node, DirectoryNode) else None
