"""One exchange with a node, whatever carries it: what is sent, what comes back, and faults that say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from octonode.api.schema import Call, ModelProgress, error_from_body
from octonode.errors import OctonodeError, Unreachable

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 5.0
SILENCE_TIMEOUT_SECONDS = 60.0
"""The daemon says something at least every 15 s while it streams."""

OnProgress = Callable[[ModelProgress], None]


def settings(url: str, token: str) -> dict[str, Any]:
    return {
        "base_url": url,
        "headers": {"authorization": f"Bearer {token}"} if token else {},
        "timeout": httpx.Timeout(SILENCE_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
        "trust_env": False,  # a proxy from the environment has no business between us and our own node
    }


def sent(call: Call[Any]) -> dict[str, Any]:
    """What httpx is told of a call. Raises BAD_REQUEST for what no JSON can hold."""
    timeout = httpx.Timeout(call.silence_seconds or SILENCE_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
    told = {"content": call.content, "headers": dict(call.headers), "timeout": timeout}
    if call.body is not None:
        told |= {"content": _json(call.body), "headers": {"content-type": "application/json", **call.headers}}
    return told


def _json(body: Any) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        message = "a text holds half of a surrogate pair, which is no character: is its source UTF-8?"
    except ValueError:
        message = "NaN and infinity are no numbers that can be sent"
    raise OctonodeError(message, code="BAD_REQUEST")


def decode(call: Call[T], response: httpx.Response) -> T:
    if response.is_error:
        raise refusal(response)
    return call.decode(response.json())


def refusal(response: httpx.Response) -> OctonodeError:
    try:
        body = response.json()
    except ValueError:
        body = None
    return error_from_body(body, response.status_code)


@contextmanager
def named_faults() -> Iterator[None]:
    """Faults of the wire as errors that say what to do."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout):
        message = "the node does not answer; see octonode logs, or start it again: octonode start"
        raise OctonodeError(message, code="NOT_RUNNING") from None
    except httpx.TimeoutException:
        raise Unreachable("the node said nothing for too long; see octonode logs") from None
    except json.JSONDecodeError:
        message = "what answers at the node's address is no octonode node; start it again: octonode start"
        raise OctonodeError(message, code="NOT_RUNNING") from None
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unreachable(f"the connection to the node broke ({type(error).__name__}); is it still running?") from None
