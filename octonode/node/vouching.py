"""Who vouches for a bare root: a model known by its root alone is taken from a signed manifest, or by the user's word.

A root says what the bytes are and not whose they are. So before one is fetched or served, a manifest that names it is
looked for: among those we hold, then among those that its holders announce. Where there is none the user must have
said that none is needed, for this root (`--allow-unsigned`, remembered in the trust table) or for all
(`models.allow_unsigned`).
"""

from __future__ import annotations

import logging

import trio

from octonode.errors import OctonodeError, Refused
from octonode.ipfs.cid import Cid
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest, verify
from octonode.models.trust import NotTrusted
from octonode.network.clock import wall_clock_ms
from octonode.network.discovery import Discovery
from octonode.network.peerbook import Peerbook
from octonode.node.shelf import Shelf
from octonode.protocol.announcement import Holding, Serving

log = logging.getLogger(__name__)

MANIFESTS_ASKED_MAX = 8
"""Announced manifests looked at for one root."""


class Voucher:
    """Finds the manifest of a root, or the user's word that it needs none."""

    def __init__(self, library: Library, shelf: Shelf, peerbook: Peerbook, *, allow_all: bool = False) -> None:
        """`allow_all`: the setting `models.allow_unsigned`."""
        self._library = library
        self._shelf = shelf
        self._peerbook = peerbook
        self._allow_all = allow_all
        self._discovery: Discovery | None = None

    def connect(self, discovery: Discovery) -> None:
        self._discovery = discovery

    async def manifest_for(self, root: Cid, *, allow_unsigned: bool = False) -> SignedManifest | None:
        """The manifest to take `root` under; None where it is taken without one. Its publisher may be unknown: what
        takes it in asks for trust.

        Raises UNSIGNED, and NotTrusted where several whom nobody here trusts have signed for it.
        """
        held = self._shelf.get(root.text)
        signed = held.signed if held else None
        signed = signed or await trio.to_thread.run_sync(self._library.catalogue.of_root, root)
        if signed is not None:
            return signed
        trust = self._library.trust_table
        allowed = allow_unsigned or self._allow_all or held is not None or root.text in trust.unsigned()
        if not allowed and self._discovery is not None:
            await self._discovery.holders(root.text)
        found = await self._announced(root)
        trusted = [each for each in found if trust.is_trusted(each.manifest.publisher)]
        if trusted or not allowed:
            return _one_of(root, trusted, found)
        if allow_unsigned:
            await trio.to_thread.run_sync(trust.allow_unsigned, root.text)
        return None

    async def _announced(self, root: Cid) -> list[SignedManifest]:
        """True manifests of `root` among those that its holders and servers announce."""
        now_ms = wall_clock_ms()
        peers = [*self._peerbook.holding(root.text, now_ms), *self._peerbook.serving(root.text, now_ms)]
        items: list[Holding | Serving] = []
        for peer in peers:
            items += [*peer.holding, *peer.serving]
        cids = dict.fromkeys(item.manifest for item in items if item.root == root.text and item.manifest)
        found: list[SignedManifest] = []

        async def look(cid: str) -> None:
            signed = await self._by_cid(cid)
            if signed is not None and signed.manifest.root == root.v1:
                found.append(signed)

        async with trio.open_nursery() as nursery:
            for cid in list(cids)[:MANIFESTS_ASKED_MAX]:
                nursery.start_soon(look, cid)
        return sorted(found, key=lambda signed: signed.manifest.seq, reverse=True)

    async def _by_cid(self, cid: str) -> SignedManifest | None:
        """Nothing where it cannot be had or does not verify: whoever announced it may have made it up."""

        async def genuine(data: bytes) -> bool:
            return await _named(cid, data) is not None

        if self._discovery is None:
            return None
        try:
            for shown in await self._discovery.find_manifest_by_cid(cid, genuine):
                if (signed := await _named(cid, shown.data)) is not None:
                    return signed
        except OctonodeError as error:
            log.debug("the announced manifest %s is of no use: %s", cid, error.message)
        return None


async def _named(cid: str, data: bytes) -> SignedManifest | None:
    """The manifest in `data` when it is rightly signed and has this CID."""
    try:
        signed = await trio.to_thread.run_sync(verify, data)
    except OctonodeError:
        return None
    return signed if signed.cid.text == cid else None


def _one_of(root: Cid, trusted: list[SignedManifest], found: list[SignedManifest]) -> SignedManifest:
    if trusted:
        return trusted[0]
    publishers = dict.fromkeys(signed.manifest.publisher for signed in found)
    if not publishers:
        raise Refused(
            f"no signed manifest of cid:{root} is known here or among the peers that were asked: nobody answers for "
            "what it is. Ask whoever named it for publisher/name, or take it as it is with --allow-unsigned",
            code="UNSIGNED",
            detail={"root": root.text},
        )
    if len(publishers) > 1:
        raise NotTrusted(
            f"cid:{root} is signed by several publishers whom you have not trusted ("
            + ", ".join(signed.manifest.reference for signed in found)
            + "); write the one that you mean by its name, or take the bytes alone with --allow-unsigned",
            detail={"root": root.text},
        )
    return found[0]
