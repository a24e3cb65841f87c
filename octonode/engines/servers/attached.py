"""A server that runs already and is not ours: any llama-server, vLLM or other one with OpenAI's API, by its URL.

It answers for a model of this node, whose owner says so in `engines.servers`. Only addresses of this machine and of
private networks are taken: prompts of strangers go there, and its answers are passed on as this node's own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from octonode.engines.contract import LoadRequest
from octonode.engines.servers.dialects import Dialect
from octonode.engines.servers.kinds import Launch, ServerLoad
from octonode.engines.servers.openai_http import Address
from octonode.errors import ConfigError

URL_OPTION: Final = "url"
"""In the options of a load request, as its owner wrote it."""
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class AttachedServer:
    """See `kinds.ServerKind`."""

    @property
    def name(self) -> str:
        return "openai-server"

    @property
    def dialect(self) -> Dialect | None:
        return None

    @property
    def metrics_path(self) -> str:
        return ""

    async def launch(self, request: LoadRequest, directory: Path) -> Launch:
        address, key = address_of(str(request.options.get(URL_OPTION, "")))
        return Launch(address=address, parallel=0, key=key)

    def read_metrics(self, text: str) -> ServerLoad | None:
        return None


def address_of(url: str) -> tuple[Address, str]:
    """The address and the key in `unix:/path`, `http://[KEY@]HOST:PORT[/PREFIX]`. Raises ConfigError.

    HOST is `localhost` or an address of this machine or of a private network: no name that could lead elsewhere.
    """
    if url.startswith("unix:"):
        return Address(socket_path=url.removeprefix("unix:")), ""
    try:
        parts = urlsplit(url)
        default_port = _PORTS[parts.scheme]
        port = parts.port or default_port
    except (ValueError, KeyError):
        raise ConfigError(f"{url!r} is not the URL of a server: http://HOST:PORT, or unix:/path") from None
    host = parts.hostname or ""
    if not _is_near(host) or parts.query or parts.fragment:
        text = f"{host!r} is not localhost or an address of a private network; write such an address (engines.servers)"
        raise ConfigError(text)
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Address(host=host, port=port, tls=parts.scheme == "https", prefix=prefix), parts.username or ""


def _is_near(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (address.is_private or address.is_loopback) and not address.is_unspecified and not address.is_multicast


def url_for(servers: Sequence[str], *names: str) -> str:
    """What `engines.servers` gives for a model that has these names; empty: nothing. Raises ConfigError."""
    for entry in servers:
        name, separator, url = entry.partition("=")
        if not separator or not name or not url:
            raise ConfigError(
                f"engines.servers: {entry!r} is not MODEL=URL, such as demo/smollm2=http://127.0.0.1:8080"
            )
        if name in names:
            address_of(url)
            return url
    return ""
