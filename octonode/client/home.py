"""Where the node of this machine answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

from octonode.errors import ConfigError, OctonodeError


def daemon_running(home: Path | None = None) -> bool:
    """True when the node of this home answers."""
    from octonode.client.blocking import Client  # which finds its node here

    try:
        url, token = find_daemon(home)
        with Client(url, token) as client:
            client.node()
    except OctonodeError:
        return False
    return True


def find_daemon(home: Path | None = None) -> tuple[str, str]:
    """(base URL, token) of the node whose state is in `home` (default: OCTONODE_HOME). Raises NOT_RUNNING, CONFIG."""
    home = home or Path(os.environ.get("OCTONODE_HOME") or Path.home() / ".octonode").expanduser()
    try:
        url = str(json.loads((home / "daemon.json").read_text(encoding="utf-8"))["api"])
    except FileNotFoundError:
        raise OctonodeError(f"no node runs in {home}; start one: octonode start", code="NOT_RUNNING") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{home / 'daemon.json'} cannot be read ({error}); start the node again") from None
    try:
        token = (home / "api.token").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        token = ""  # reads and questions work without; the daemon says what else needs it
    return url, token
