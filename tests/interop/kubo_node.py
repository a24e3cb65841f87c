"""A Kubo node (0.22, as a library) on loopback, alone: no bootstrap, no routing, no discovery, no relays.

    python tests/interop/kubo_node.py LIBRARY FOLDER

It says who it is in one JSON line, then takes a JSON command a line and answers each with a line of the same id, as
js/peer.mjs does. Commands run at once, each in a thread. A fetch has no end where nobody has the file and cannot be
cancelled, so that a test ends the process. FOLDER must be new: it holds the repository.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octonode.identity import NodeKey
from octonode.ids import public_key_from_peer_id

ALONE: dict[str, Any] = {
    "Bootstrap": [],
    "Addresses": {"Swarm": ["/ip4/127.0.0.1/tcp/0"], "Announce": [], "AppendAnnounce": [], "NoAnnounce": []},
    "Discovery": {"MDNS": {"Enabled": False}},
    "Routing": {"Type": "none"},
}
ALONE_SWARM: dict[str, Any] = {
    "RelayClient": {"Enabled": False},
    "RelayService": {"Enabled": False},
    "EnableHolePunching": False,
    "DisableNatPortMap": True,
}


class Kubo:
    """The library's functions by the names of js/helia.mjs's commands. Raises RuntimeError where one fails."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("AddFile", "GetNodeID", "GetNodeMultiAddrs", "ListPeersIDs"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._library.AddFile.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_bool]
        self._repository = os.fsencode(folder)
        _worked("CreateRepo", self._library.CreateRepo(self._repository))
        settings = folder / "config"
        chosen = json.loads(settings.read_text())
        chosen.update(ALONE, Identity=_identity())
        chosen["Swarm"].update(ALONE_SWARM)
        settings.write_text(json.dumps(chosen))
        _worked("RunNode", self._library.RunNode(self._repository))

    def who(self) -> dict[str, Any]:
        peer_id = self._library.GetNodeID(self._repository).decode()
        places = json.loads(self._library.GetNodeMultiAddrs(self._repository))
        return {"peer": peer_id, "addresses": [f"{place}/p2p/{peer_id}" for place in places]}

    def add(self, path: str, only_hash: bool = False) -> dict[str, Any]:
        """The file as dag-pb leaves of 256 KiB, 174 links a node: all that this library can."""
        begun = time.perf_counter()
        cid = self._library.AddFile(self._repository, os.fsencode(path), only_hash)
        if not cid:
            raise RuntimeError(f"AddFile of {path} failed")
        return {"cid": cid.decode(), "seconds": time.perf_counter() - begun}

    def dial(self, address: str) -> None:
        _worked("ConnectToPeer", self._library.ConnectToPeer(self._repository, address.encode()))

    def connected(self) -> list[str]:
        peers: list[str] = json.loads(self._library.ListPeersIDs(self._repository))
        return peers

    def fetch(self, cid: str, path: str) -> dict[str, Any]:
        """The file of `cid`, by bitswap of whoever is connected, into `path`."""
        begun = time.perf_counter()
        _worked("Download", self._library.Download(self._repository, cid.encode(), os.fsencode(path)))
        seconds = time.perf_counter() - begun
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.path.getsize(path), "sha256": digest, "seconds": seconds}


def _identity() -> dict[str, str]:
    """An Ed25519 key, as Kubo's own `init` makes since 0.6. The library would make an RSA key."""
    seed = os.urandom(32)
    peer_id = NodeKey(seed).peer_id
    private = b"\x08\x01\x12\x40" + seed + public_key_from_peer_id(peer_id)  # protobuf of libp2p: {1: Ed25519, 2: both}
    return {"PeerID": peer_id, "PrivKey": base64.b64encode(private).decode()}


def _worked(function: str, result: int) -> None:
    if result < 0:
        raise RuntimeError(f"{function} failed: {result}")


def main(library: str, folder: str) -> None:
    words = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the library prints there as it likes
    lock = threading.Lock()

    def say(line: dict[str, Any]) -> None:
        with lock:
            words.write(json.dumps(line) + "\n")

    kubo = Kubo(Path(library), Path(folder))
    commands: dict[str, Callable[..., Any]] = {
        each.__name__: each for each in (kubo.add, kubo.dial, kubo.connected, kubo.fetch)
    }

    def answer(serial: int, what: str, details: dict[str, Any]) -> None:
        try:
            say({"id": serial, "ok": commands[what](**details)})
        except Exception as error:
            print(what, repr(error), file=sys.stderr, flush=True)
            say({"id": serial, "error": str(error)})

    say(kubo.who())
    for line in sys.stdin:
        details = json.loads(line)
        arguments = (details.pop("id"), details.pop("do"), details)
        threading.Thread(target=answer, args=arguments, daemon=True).start()
    os._exit(0)  # a fetch that waits is in nobody's hand


if __name__ == "__main__":
    main(*sys.argv[1:])
