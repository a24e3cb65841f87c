"""The error body of every face, OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

`code` is ours, a key of `errors.TABLE`; `type` and the HTTP status come from its row. `detail` is there when the error
has more to say, such as {"progress": {...}} of a model that is being loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from octonode.api.schema.plain import to_json
from octonode.errors import TABLE, OctonodeError

RETRY_AFTER_DEFAULT_SECONDS = 1
"""Retry-After of 429 and 503 answers whose error does not say when to come back."""


def bad_request(message: str, param: str | None = None, *, code: str = "BAD_REQUEST") -> OctonodeError:
    """A fault of the caller, in the body field `param`."""
    return OctonodeError(message, code=code, detail={"param": param} if param else {})


def error_body(error: OctonodeError) -> dict[str, Any]:
    detail = {key: value for key, value in error.detail.items() if key != "param"}
    body = {
        "message": error.message,
        "type": error.row.openai_type,
        "param": error.detail.get("param"),
        "code": error.code,
    }
    if error.retry_after_seconds is not None:
        body["retry_after_seconds"] = error.retry_after_seconds
    if detail:
        body["detail"] = to_json(detail)
    return {"error": body}


def error_headers(error: OctonodeError) -> dict[str, str]:
    """`retry-after` in whole seconds, rounded up, for what may be tried again; `www-authenticate` for 401."""
    if error.row.http_status in (429, 503):
        seconds = error.retry_after_seconds or RETRY_AFTER_DEFAULT_SECONDS
        return {"retry-after": str(max(1, int(-(-seconds // 1))))}
    if error.row.http_status == 401:
        return {"www-authenticate": 'Bearer realm="octonode"'}
    return {}


def error_from_body(body: Any, status: int) -> OctonodeError:
    """The error a daemon answered with, as it was raised there. Anything else becomes INTERNAL with the status."""
    fields = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(fields, Mapping) or not isinstance(fields.get("message"), str):
        return OctonodeError(f"the daemon answered HTTP {status} {_phrase(status)}, which is not one of its errors")
    code = fields.get("code")
    detail = dict(fields["detail"]) if isinstance(fields.get("detail"), Mapping) else {}
    if fields.get("param"):
        detail["param"] = fields["param"]
    if code not in TABLE:
        detail["peer_code"] = str(code)[:64]
        code = "INTERNAL"
    after = fields.get("retry_after_seconds")
    seconds = float(after) if isinstance(after, (int, float)) and not isinstance(after, bool) else None
    return OctonodeError(fields["message"], code=code, retry_after_seconds=seconds, detail=detail)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
