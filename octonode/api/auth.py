"""Who may do what over HTTP: a table and a pure decision, which `app.Faces` asks for before each request.

On a loopback bind what does not change the node is free; what does needs the token in `OCTONODE_HOME/api.token`. Any
other bind needs a key from `api.keys`, or the token. Host and Origin are checked first, against web pages that reach
for the API through the user's browser (DNS rebinding, cross-site requests). Spec: protocols/http.md.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from octonode.config import ApiConfig, split_host_port
from octonode.errors import ConfigError, OctonodeError, Refused
from octonode.identity import create_private

Scope = Literal["inference", "admin"]
Need = Literal["open", "inference", "read", "admin"]

KEY_CHARACTERS_MIN = 16
TOKEN_FILE = "api.token"

RULES: tuple[tuple[str, str, Need], ...] = (
    # (method or *, path or path/*, what it needs); the first that fits decides, what fits none needs `admin`
    ("GET", "/healthz", "open"),
    ("GET", "/readyz", "open"),
    ("*", "/v1/*", "inference"),
    ("GET", "/metrics", "inference"),
    ("GET", "/api/v1/node", "inference"),
    ("GET", "/api/v1/models", "inference"),
    ("GET", "/api/v1/receipts/*", "inference"),  # whoever was answered; a task's id is in its answer alone
    ("POST", "/api/v1/explain", "inference"),
    ("*", "/api/v1/inference", "inference"),
    ("*", "/api/v1/inference/*", "inference"),
    ("GET", "/*", "read"),
)

FREE_ON_LOOPBACK: frozenset[Need] = frozenset({"open", "inference", "read"})
SCOPES: dict[Need, frozenset[Scope]] = {
    "inference": frozenset({"inference", "admin"}),
    "read": frozenset({"admin"}),
    "admin": frozenset({"admin"}),
}
"""Which scopes of a key satisfy a need."""

CORS_HEADERS = ("authorization", "content-type", "content-range", "x-octonode-privacy")
"""What a page of an allowed origin may send, beside what its preflight asks for."""
EXPOSED_HEADERS = (
    b"x-request-id, retry-after, location, upload-offset, upload-length, x-octonode-provider, x-octonode-model-root, "
    b"x-octonode-task, x-octonode-verified, x-octonode-receipt, x-octonode-sample-rate-hz"
)
"""What it may read of an answer's headers."""
_HEADER_NAME = re.compile(r"[a-z0-9_-]{1,64}\Z", re.ASCII)
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_CROSS_SITE = frozenset({"cross-site", "same-site"})


@dataclass(frozen=True, slots=True)
class Access:
    """What one request may do."""

    admin: bool
    key: str = ""
    """A name of the key that was shown, from which the key cannot be told; empty: none was."""


def load_or_create_token(home: Path) -> str:
    """The token in `home/api.token` (0600), made at the first call. Raises ConfigError when others can read it."""
    create_private(home / TOKEN_FILE, secrets.token_urlsafe(32).encode())
    return read_token(home)


def read_token(home: Path) -> str:
    """The token of the node in `home`. Raises ConfigError."""
    path = home / TOKEN_FILE
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
    token = path.read_text(encoding="ascii").strip()
    if len(token) < KEY_CHARACTERS_MIN:
        raise ConfigError(f"{path} holds no token; remove it and start the node again")
    return token


class Rules:
    """The decision for one request, from its method, path, headers and the address it came from."""

    def __init__(self, config: ApiConfig, token: str) -> None:
        host, _ = split_host_port(config.listen, "api.listen")
        self._loopback = _is_loopback_name(host)
        self._names = frozenset({host.lower(), *(name.lower() for name in config.allowed_hosts)})
        self._origins = frozenset(origin.rstrip("/").lower() for origin in config.cors_origins)
        self._keys = {token: "admin", **_keys(config)}

    def decide(self, method: str, path: str, headers: Mapping[str, str], client: str) -> Access:
        """Raises UNAUTHORIZED or FORBIDDEN. `headers` have lower-case names; `client` is the IP address."""
        name = self._check_host(headers.get("host", ""))
        self._check_origin(method, headers)
        need = need_of(method, path)
        scope, key = self._scope(headers)
        ours = self._loopback and _is_loopback_name(client) and _is_loopback_name(name)
        free = need == "open" or (need in FREE_ON_LOOPBACK and ours and not any(each in headers for each in _FORWARDED))
        if not free and scope not in SCOPES[need]:
            raise self._refusal(need, scope, ours=ours)
        return Access(admin=scope == "admin", key=key)

    def cors(self, method: str, headers: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
        """The headers with which a page of an allowed origin may read the answer, whatever it is: without them its
        browser hides a 401 as well. Raises FORBIDDEN."""
        self._check_host(headers.get("host", ""))
        return self._check_origin(method, headers)

    def preflight(self, headers: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...] | None:
        """The headers that answer a CORS preflight; None when the request is not one. Raises FORBIDDEN."""
        if "origin" not in headers or "access-control-request-method" not in headers:
            return None
        # An origin that is allowed may send what it likes: OpenAI's own client sends eight headers about itself.
        asked = headers.get("access-control-request-headers", "").lower().split(",")
        allowed = dict.fromkeys([*CORS_HEADERS, *(each.strip() for each in asked if _HEADER_NAME.match(each.strip()))])
        return (
            *self.cors("OPTIONS", headers),
            (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
            (b"access-control-allow-headers", ", ".join(allowed).encode("ascii")),
            (b"access-control-max-age", b"600"),
        )

    def _check_host(self, header: str) -> str:
        """The name in the Host header. Addresses pass, since DNS cannot rebind them; names must be known."""
        name = _host_name(header)
        if name is None or not (_is_address(name) or _is_loopback_name(name) or name in self._names):
            shown = header[:64]
            raise Refused(f"Host {shown!r} is not a name of this node; add it to api.allowed_hosts", code="FORBIDDEN")
        return name

    def _check_origin(self, method: str, headers: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
        origin = headers.get("origin", "").rstrip("/").lower()
        if not origin:
            navigates = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
            if headers.get("sec-fetch-site") in _CROSS_SITE and not navigates:
                raise Refused("a page of another site may not reach this API", code="FORBIDDEN")
            return ()
        if origin in self._origins or "*" in self._origins:
            return (
                (b"access-control-allow-origin", headers["origin"].encode("latin-1")),
                (b"access-control-expose-headers", EXPOSED_HEADERS),
                (b"vary", b"origin"),
            )
        if origin in (f"http://{headers.get('host', '').lower()}", f"https://{headers.get('host', '').lower()}"):
            return ()
        raise Refused(f"origin {origin[:64]!r} is not in api.cors_origins", code="FORBIDDEN")

    def _scope(self, headers: Mapping[str, str]) -> tuple[str | None, str]:
        """What the key in the headers may do, and its name; (None, "") for none, and for one that is not known."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        found, name = None, ""
        if kind.lower() != "bearer":
            return found, name
        for key, scope in self._keys.items():  # every key is compared, so that time tells nothing
            if hmac.compare_digest(key.encode(), given.strip().encode("utf-8", "replace")):
                found, name = scope, _name_of(key)
        return found, name

    def _refusal(self, need: Need, scope: str | None, *, ours: bool) -> OctonodeError:
        if scope is not None:
            return Refused(f"this key has the scope {scope}; this needs admin", code="FORBIDDEN")
        if ours and need == "admin":
            where = f"the token in OCTONODE_HOME/{TOKEN_FILE}"
        else:
            where = "a key from api.keys" if need == "inference" else "a key from api.keys that begins with admin:"
        return Refused(f"this needs {where}: send the header Authorization: Bearer ...", code="UNAUTHORIZED")


def need_of(method: str, path: str) -> Need:
    method = "GET" if method == "HEAD" else method
    for rule_method, rule_path, need in RULES:
        fits = path.startswith(rule_path[:-1]) if rule_path.endswith("/*") else path == rule_path
        if fits and rule_method in ("*", method):
            return need
    return "admin"


def _name_of(key: str) -> str:
    return sha256(b"octonode/key/1\0" + key.encode()).hexdigest()[:16]


def _keys(config: ApiConfig) -> dict[str, str]:
    keys = {}
    for entry in config.keys:
        scope, key = ("admin", entry[len("admin:") :]) if entry.startswith("admin:") else ("inference", entry)
        if len(key) < KEY_CHARACTERS_MIN:
            raise ConfigError(f"api.keys: a key has {len(key)} characters; use {KEY_CHARACTERS_MIN} or more")
        keys[key] = scope
    return keys


def _host_name(header: str) -> str | None:
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname.rstrip(".") if parts.hostname else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback_name(name: str) -> bool:
    if _is_address(name):
        address = ipaddress.ip_address(name)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback
    return name == "localhost" or name.endswith(".localhost")
