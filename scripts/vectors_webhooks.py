"""Vectors of webhooks: what is signed, and addresses that are posted to and that are not. See vectors.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vectors_agent import MODEL, NOW_MS, PROVIDER, keys

from octonode.errors import OctonodeError
from octonode.ids import WEBHOOK_DOMAIN
from octonode.tasks.job import Job, job_id
from octonode.tasks.webhook_rule import WebhookRule
from octonode.tasks.webhooks import signed_headers

URLS = (
    *("https://example.org/done?job=1", "http://93.184.216.34:8080/", "https://[2606:4700:4700::1111]/x"),
    *("http://127.0.0.1/", "http://10.1.2.3/", "http://169.254.169.254/latest/meta-data", "http://[::1]/"),
    *("http://[::ffff:10.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://[fe80::1]/"),
    *("http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://127.0.0.1./"),
    *("ftp://example.org/", "https://user@example.org/", "https://example.org/#done", "https://example.org:0/"),
)


def webhook() -> dict[str, Any]:
    job = Job(
        job_id(NOW_MS, bytes(10)), "", "tiny", MODEL, "chat", 5, "", "public", "https://example.org/done", 60.0, NOW_MS
    )
    body = b'{"id": "x", "state": "completed"}'
    headers = signed_headers(PROVIDER, replace(job, hook_tries=1), body, NOW_MS + 1500)
    return {
        "page": "protocols/http.md",
        "keys": keys(),
        "domain": WEBHOOK_DOMAIN.hex(),
        "body": body.decode(),
        "headers": headers,
        "urls": [{"url": url, "code": _code(url)} for url in URLS],
    }


def _code(url: str) -> str:
    """Empty where the URL may be posted to, as far as it tells by itself."""
    try:
        WebhookRule().target(url)
    except OctonodeError as error:
        return error.code
    return ""
