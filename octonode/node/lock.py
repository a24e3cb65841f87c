"""One daemon a home: an exclusive lock for its life, and `daemon.json` that tells the command line where it is."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octonode.errors import ConfigError, OctonodeError


@contextmanager
def home_lock(home: Path) -> Iterator[None]:
    """Make `home` (0700) and hold its lock. Raises ALREADY_RUNNING with the pid of the daemon that has it.

    The kernel frees the lock when its holder dies, however it dies, so a stale file never keeps a node from starting.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot use {home} as OCTONODE_HOME: {error.strerror}; set OCTONODE_HOME to a folder you own"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise OctonodeError(
                f"a daemon runs on {home} already (pid {holder or 'unknown'}); stop it with: octonode stop, "
                "or start a second node with another OCTONODE_HOME",
                code="ALREADY_RUNNING",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def daemon_file(home: Path, facts: dict[str, Any]) -> Iterator[None]:
    """`daemon.json` while the daemon runs; written whole or not at all, readable by its owner alone."""
    path, temporary = home / "daemon.json", home / "daemon.json.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(facts, file)
    os.replace(temporary, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
