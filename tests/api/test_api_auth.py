"""Who may do what: the whole matrix as a table, then the doors a browser page would try."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from octonode.api.auth import Rules, load_or_create_token, need_of, read_token
from octonode.config import ApiConfig
from octonode.errors import ConfigError, OctonodeError
from octonode.testing.faces import TOKEN, Stage

INFERENCE_KEY = "an-inference-key-0123"
ADMIN_KEY = "an-admin-key-01234567"
LOOPBACK = ApiConfig(listen="127.0.0.1:8808", keys=(INFERENCE_KEY, f"admin:{ADMIN_KEY}"), allowed_hosts=("node.test",))
OPEN_BIND = ApiConfig(listen="0.0.0.0:8808", keys=(INFERENCE_KEY, f"admin:{ADMIN_KEY}"))

REQUESTS = {
    "open": ("GET", "/healthz"),
    "inference": ("POST", "/v1/chat/completions"),
    "read": ("GET", "/api/v1/tasks"),
    "admin": ("POST", "/api/v1/models/fetch"),
}
OK, NO_KEY, NOT_ENOUGH = "ok", "UNAUTHORIZED", "FORBIDDEN"

MATRIX: list[tuple[str, ApiConfig, dict[str, str], str, dict[str, str]]] = [
    # (case, bind, headers, client, {need: verdict})
    ("loopback, no key", LOOPBACK, {}, "127.0.0.1", {"open": OK, "inference": OK, "read": OK, "admin": NO_KEY}),
    ("loopback, any text as key", LOOPBACK, {"authorization": "Bearer none"}, "127.0.0.1",
     {"inference": OK, "admin": NO_KEY}),
    ("loopback, token", LOOPBACK, {"authorization": f"Bearer {TOKEN}"}, "127.0.0.1", {"inference": OK, "admin": OK}),
    ("loopback, inference key", LOOPBACK, {"authorization": f"Bearer {INFERENCE_KEY}"}, "127.0.0.1",
     {"inference": OK, "admin": NOT_ENOUGH}),
    ("loopback, admin key", LOOPBACK, {"authorization": f"bearer {ADMIN_KEY}"}, "127.0.0.1", {"read": OK, "admin": OK}),
    ("loopback, wrong scheme", LOOPBACK, {"authorization": f"Basic {TOKEN}"}, "127.0.0.1", {"admin": NO_KEY}),
    ("IPv6 loopback", LOOPBACK, {"host": "[::1]:8808"}, "::1", {"read": OK, "admin": NO_KEY}),
    ("mapped loopback", LOOPBACK, {"host": "localhost"}, "::ffff:127.0.0.1", {"read": OK}),
    ("through a proxy", LOOPBACK, {"x-forwarded-for": "192.0.2.1"}, "127.0.0.1", {"open": OK, "inference": NO_KEY}),
    ("proxy's name", LOOPBACK, {"host": "node.test"}, "127.0.0.1", {"inference": NO_KEY, "read": NO_KEY}),
    ("proxy's name, key", LOOPBACK, {"host": "node.test", "authorization": f"Bearer {INFERENCE_KEY}"}, "127.0.0.1",
     {"inference": OK, "read": NOT_ENOUGH}),
    ("open bind, no key", OPEN_BIND, {"host": "192.0.2.1:8808"}, "192.0.2.9",
     {"open": OK, "inference": NO_KEY, "read": NO_KEY, "admin": NO_KEY}),
    ("open bind, from loopback", OPEN_BIND, {"host": "127.0.0.1"}, "127.0.0.1", {"open": OK, "inference": NO_KEY}),
    ("open bind, inference key", OPEN_BIND, {"authorization": f"Bearer {INFERENCE_KEY}"}, "192.0.2.9",
     {"open": OK, "inference": OK, "read": NOT_ENOUGH, "admin": NOT_ENOUGH}),
    ("open bind, admin key", OPEN_BIND, {"authorization": f"Bearer {ADMIN_KEY}"}, "192.0.2.9",
     {"inference": OK, "read": OK, "admin": OK}),
    ("open bind, token", OPEN_BIND, {"authorization": f"Bearer {TOKEN}"}, "192.0.2.9", {"read": OK, "admin": OK}),
    ("open bind, key cut short", OPEN_BIND, {"authorization": f"Bearer {ADMIN_KEY[:-1]}"}, "192.0.2.9",
     {"read": NO_KEY}),
    ("open bind, empty key", OPEN_BIND, {"authorization": "Bearer "}, "192.0.2.9", {"inference": NO_KEY}),
]  # fmt: skip


def verdict(rules: Rules, method: str, path: str, headers: dict[str, str], client: str) -> str:
    try:
        rules.decide(method, path, {"host": "localhost:8808", **headers}, client)
    except OctonodeError as error:
        return error.code
    return OK


@pytest.mark.parametrize(("case", "config", "headers", "client", "expected"), MATRIX, ids=[row[0] for row in MATRIX])
def test_the_matrix(
    case: str, config: ApiConfig, headers: dict[str, str], client: str, expected: dict[str, str]
) -> None:
    rules = Rules(config, TOKEN)
    assert {need: verdict(rules, *REQUESTS[need], headers, client) for need in expected} == expected


@pytest.mark.parametrize(
    ("method", "path", "need"),
    [
        ("GET", "/readyz", "open"),
        ("HEAD", "/healthz", "open"),
        ("POST", "/healthz", "admin"),
        ("GET", "/v1/models/a/b", "inference"),
        ("GET", "/metrics", "inference"),
        ("GET", "/api/v1/node", "inference"),
        ("GET", "/api/v1/models", "inference"),
        ("GET", "/api/v1/models/trust", "read"),
        ("POST", "/api/v1/explain", "inference"),
        ("GET", "/api/v1/receipts/00", "inference"),
        ("GET", "/api/v1/events", "read"),
        ("GET", "/nothing/here", "read"),
        ("POST", "/nothing/here", "admin"),
        ("DELETE", "/api/v1/models/x", "admin"),
        ("POST", "/api/v1/stop", "admin"),
        ("POST", "/api/v1/peers", "admin"),
        ("PATCH", "/api/v1/node", "admin"),
        ("GET", "/v1", "read"),
        ("POST", "/v1x", "admin"),
    ],
)
def test_what_a_path_needs(method: str, path: str, need: str) -> None:
    assert need_of(method, path) == need


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("localhost", True),
        ("LOCALHOST:8808", True),
        ("localhost.", True),
        ("a.localhost", True),
        ("127.0.0.1:8808", True),
        ("[::1]:8808", True),
        ("node.test", True),
        ("evil.test", False),
        ("localhost.evil.test", False),
        ("evil.test:8808", False),
        ("127.0.0.1.nip.test", False),
        ("localhost@evil.test", False),
        ("localhost/evil", False),
        ("localhost:port", False),
        ("", False),
        ("[::1", False),
        ("2130706433", False),
    ],
)
def test_host_names_that_dns_could_rebind_are_refused(host: str, passes: bool) -> None:
    rules = Rules(LOOPBACK, TOKEN)
    assert verdict(rules, "GET", "/healthz", {"host": host}, "127.0.0.1") == (OK if passes else "FORBIDDEN")


CORS = ApiConfig(listen="127.0.0.1:8808", cors_origins=("https://app.test",))


@pytest.mark.parametrize(
    ("config", "headers", "expected"),
    [
        (LOOPBACK, {"origin": "http://evil.test"}, "FORBIDDEN"),
        (LOOPBACK, {"origin": "null"}, "FORBIDDEN"),
        (LOOPBACK, {"origin": "http://localhost:3000"}, "FORBIDDEN"),
        (LOOPBACK, {"origin": "http://localhost:8808"}, OK),
        (CORS, {"origin": "https://app.test"}, OK),
        (CORS, {"origin": "https://app.test.evil.test"}, "FORBIDDEN"),
        (CORS, {"origin": "http://app.test"}, "FORBIDDEN"),
        (LOOPBACK, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, "FORBIDDEN"),
        (LOOPBACK, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, OK),
        (LOOPBACK, {"sec-fetch-site": "same-origin"}, OK),
        (LOOPBACK, {"sec-fetch-site": "none"}, OK),
    ],
)
def test_pages_of_other_sites_are_refused(config: ApiConfig, headers: dict[str, str], expected: str) -> None:
    assert verdict(Rules(config, TOKEN), "GET", "/api/v1/node", headers, "127.0.0.1") == expected


async def test_over_the_wire_rebinding_and_cross_site_requests_reach_nothing() -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        for headers in ({"host": "evil.test"}, {"origin": "http://evil.test"}, {"origin": "null"}):
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
            assert "access-control-allow-origin" not in answer.headers
        assert stage.asking.asked == []


async def test_a_page_that_is_allowed_sees_what_it_needs() -> None:
    config = ApiConfig(listen="127.0.0.1:0", cors_origins=("https://app.test",))
    origin = {"origin": "https://app.test"}
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with Stage(config=config).run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        asked = await client.options("/v1/chat/completions", headers=preflight)
        refused = await client.options("/v1/chat/completions", headers={**preflight, "origin": "https://evil.test"})
        answer = await client.get("/v1/models", headers=origin)
        missing = await client.get("/v1/models/nothing", headers=origin)
    assert (asked.status_code, refused.status_code) == (204, 403)
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in refused.headers
    for each in (asked, answer, missing):
        assert each.headers["access-control-allow-origin"] == "https://app.test"
        assert "x-request-id" in each.headers["access-control-expose-headers"]
        assert each.headers["vary"] == "origin"


async def test_a_page_may_use_every_method_of_the_api_and_openais_own_client() -> None:
    """Which tells of itself in headers that a browser asks about first."""
    config = ApiConfig(listen="127.0.0.1:0", cors_origins=("https://app.test",))
    own = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-timeout"
    async with Stage(config=config).run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        for method, asked in (("POST", own), ("PUT", "Content-Range"), ("PATCH", ""), ("DELETE", "bad name,x\u00e4")):
            head = {"origin": "https://app.test", "access-control-request-method": method}
            answer = await client.options("/v1/x", headers={**head, "access-control-request-headers": asked.encode()})
            assert method in answer.headers["access-control-allow-methods"].split(", ")
            allowed = answer.headers["access-control-allow-headers"].split(", ")
            good = {each for each in asked.lower().split(",") if each.isascii() and " " not in each}
            assert good - {""} <= {*allowed}
            assert all(each.isascii() and " " not in each for each in allowed)
    assert "x-octonode-receipt" in answer.headers["access-control-expose-headers"].split(", ")


async def test_a_page_is_told_why_it_was_refused() -> None:
    """Without these headers a browser shows its script no status and no body, only that something failed."""
    config = ApiConfig(listen="127.0.0.1:0", cors_origins=("https://app.test",), keys=(INFERENCE_KEY,))
    async with Stage(config=config).run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        for headers, status in (({}, 401), ({"authorization": f"Bearer {INFERENCE_KEY}"}, 403)):
            answer = await client.post("/api/v1/stop", headers={"origin": "https://app.test", **headers})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://app.test"


async def test_what_changes_the_node_needs_the_token_and_so_does_the_join_line() -> None:
    changing: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/api/v1/peers", {"address": "/ip4/1.2.3.4/tcp/1/p2p/x"}),
        ("POST", "/api/v1/models/add", {"path": "/x"}),
        ("POST", "/api/v1/models/fetch", {"reference": "tiny"}),
        ("POST", "/api/v1/models/publish", {"reference": "tiny"}),
        ("POST", "/api/v1/models/serve", {"reference": "tiny"}),
        ("POST", "/api/v1/models/verify", {"reference": "tiny"}),
        ("POST", "/api/v1/models/trust", {"publisher": "x"}),
        ("DELETE", "/api/v1/models/tiny", {}),
        ("POST", "/api/v1/stop", {}),
    ]
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        for method, path, body in changing:
            refused = await client.request(method, path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "UNAUTHORIZED"), path
        assert (await client.get("/api/v1/node")).json()["join"] == ""
        client.headers["authorization"] = f"Bearer {TOKEN}"
        assert (await client.get("/api/v1/node")).json()["join"] == "octonode:secret"
        for method, path, body in changing:
            assert (await client.request(method, path, json=body)).status_code in (200, 202), path


def test_the_token_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    token = load_or_create_token(tmp_path)
    assert load_or_create_token(tmp_path) == token == read_token(tmp_path)
    assert len(token) >= 32
    path = tmp_path / "api.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_or_create_token(tmp_path)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(ConfigError, match="no token"):
        read_token(tmp_path)


def test_the_token_of_the_api_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    start = threading.Barrier(16)

    def read() -> str:
        start.wait()
        return load_or_create_token(tmp_path)

    with ThreadPoolExecutor(16) as pool:
        assert len({made.result() for made in [pool.submit(read) for _ in range(16)]}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["api.token"]


def test_a_key_that_is_too_short_is_a_config_error() -> None:
    for key in ("short", "admin:short", "admin:"):
        with pytest.raises(ConfigError, match="16 or more"):
            Rules(ApiConfig(keys=(key,)), TOKEN)
