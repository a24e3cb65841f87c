"""One table: error code on the wire <-> exception <-> HTTP status <-> exit code of the command line.

Every error a user or a peer may meet is an `OctonodeError` with a code from `TABLE`. Its message says what happened
and what to do next. Expected outcomes inside the program are values; programmer errors are asserts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What scripts may rely on; the same table is in the README."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    VERIFICATION_FAILED = 6


@dataclass(frozen=True, slots=True)
class Row:
    """How one code shows on each face."""

    http_status: int
    openai_type: str
    exit_code: ExitCode
    retryable: bool = False
    """True where another provider, or the same one later, may well succeed."""


_INVALID, _SERVER = "invalid_request_error", "server_error"

TABLE: dict[str, Row] = {
    "BAD_REQUEST": Row(400, _INVALID, ExitCode.USAGE),
    "BAD_MESSAGE": Row(400, _INVALID, ExitCode.FAILED),
    "BAD_SEQUENCE": Row(400, _INVALID, ExitCode.FAILED),
    "BAD_SIGNATURE": Row(401, "authentication_error", ExitCode.VERIFICATION_FAILED),
    "REPLAY": Row(409, _INVALID, ExitCode.REFUSED),
    "EXPIRED": Row(408, "timeout", ExitCode.REFUSED),
    "CLOCK_SKEW": Row(400, _INVALID, ExitCode.REFUSED),
    "MISADDRESSED": Row(400, _INVALID, ExitCode.REFUSED),
    "UNSUPPORTED": Row(400, _INVALID, ExitCode.REFUSED),
    "EXTENSION_REQUIRED": Row(400, _INVALID, ExitCode.REFUSED),
    "TOO_LARGE": Row(413, _INVALID, ExitCode.REFUSED),
    "CONTEXT_EXCEEDED": Row(400, _INVALID, ExitCode.REFUSED),
    "UNAUTHORIZED": Row(401, "authentication_error", ExitCode.REFUSED),
    "FORBIDDEN": Row(403, "permission_error", ExitCode.REFUSED),
    "RATE_LIMITED": Row(429, "rate_limit_error", ExitCode.REFUSED, retryable=True),
    "OVERLOADED": Row(429, "rate_limit_error", ExitCode.REFUSED, retryable=True),
    "LEAVING": Row(503, _SERVER, ExitCode.REFUSED, retryable=True),
    "MODEL_NOT_FOUND": Row(404, "not_found_error", ExitCode.NOT_FOUND),
    "MODEL_UNAVAILABLE": Row(503, _SERVER, ExitCode.NOT_FOUND, retryable=True),
    "MODEL_LOADING": Row(503, _SERVER, ExitCode.REFUSED, retryable=True),
    "NOT_FOUND": Row(404, "not_found_error", ExitCode.NOT_FOUND),
    "TASK_NOT_FOUND": Row(404, "not_found_error", ExitCode.NOT_FOUND),
    "PRIVACY_UNAVAILABLE": Row(422, _INVALID, ExitCode.REFUSED),
    "PREFIX_MISMATCH": Row(409, _INVALID, ExitCode.FAILED),
    "BUDGET_EXCEEDED": Row(402, "insufficient_quota", ExitCode.REFUSED),
    "HOP_LIMIT": Row(508, _INVALID, ExitCode.REFUSED),
    "LOOP": Row(508, _INVALID, ExitCode.REFUSED),
    "SLOW_READER": Row(408, "timeout", ExitCode.FAILED),
    "DEADLINE": Row(504, "timeout", ExitCode.FAILED, retryable=True),
    "CANCELED": Row(499, _INVALID, ExitCode.FAILED),
    "ENGINE_CRASHED": Row(502, _SERVER, ExitCode.FAILED, retryable=True),
    "ENGINE_FAILED": Row(502, _SERVER, ExitCode.FAILED, retryable=True),
    "PROVIDER_LOST": Row(502, _SERVER, ExitCode.UNREACHABLE, retryable=True),
    "UNREACHABLE": Row(503, _SERVER, ExitCode.UNREACHABLE, retryable=True),
    "VERIFICATION_FAILED": Row(502, _SERVER, ExitCode.VERIFICATION_FAILED),
    "FORMAT_REFUSED": Row(422, _INVALID, ExitCode.VERIFICATION_FAILED),
    "ROLLBACK": Row(409, _INVALID, ExitCode.VERIFICATION_FAILED),
    "NOT_TRUSTED": Row(403, "permission_error", ExitCode.REFUSED),
    "UNSIGNED": Row(403, "permission_error", ExitCode.REFUSED),
    "DISK_FULL": Row(507, _SERVER, ExitCode.FAILED),
    "READ_ONLY": Row(507, _SERVER, ExitCode.FAILED),
    "DISK_FAILED": Row(500, _SERVER, ExitCode.FAILED),
    "IN_USE": Row(409, _INVALID, ExitCode.REFUSED),
    "CONFIG": Row(500, _SERVER, ExitCode.USAGE),
    "ALREADY_RUNNING": Row(409, _INVALID, ExitCode.FAILED),
    "NOT_RUNNING": Row(503, _SERVER, ExitCode.UNREACHABLE),
    "INTERNAL": Row(500, _SERVER, ExitCode.FAILED),
}


class OctonodeError(Exception):
    """The root of every error this program raises on purpose.

    `code` is a key of `TABLE`; `message` is for the person who reads it; `retry_after_seconds` says when to come back.
    """

    code = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after_seconds: float | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        assert self.code in TABLE, f"{self.code} is missing in errors.TABLE"
        self.retry_after_seconds = retry_after_seconds
        self.detail = detail or {}

    @property
    def row(self) -> Row:
        return TABLE[self.code]


class Refused(OctonodeError):
    """A peer, or our own admission, said no; the code says why."""

    code = "OVERLOADED"


class RemoteProtocolError(OctonodeError):
    """The peer broke a rule of the protocol. Its stream is reset; nothing else is touched."""

    code = "BAD_MESSAGE"


class LocalProtocolError(OctonodeError):
    """We tried to break a rule of the protocol: a bug on our side, caught before a byte left."""

    code = "INTERNAL"


class Unreachable(OctonodeError):
    """No address of the peer answered, or the connection broke."""

    code = "UNREACHABLE"


class NotFound(OctonodeError):
    code = "NOT_FOUND"


class VerificationFailed(OctonodeError):
    """Bytes, a signature or a receipt are not what they claim to be."""

    code = "VERIFICATION_FAILED"


class EngineCrashed(OctonodeError):
    """The worker process died. `detail` holds `signal` or `status`, and `stderr_tail`."""

    code = "ENGINE_CRASHED"


class ConfigError(OctonodeError):
    code = "CONFIG"


PEER_WORDS_MAX = 1000
"""Characters of a peer's message; it is shown in terminals and logs."""


def printable(text: str, characters_max: int) -> str:
    """What a stranger wrote, for terminals and logs: cut, and a space for each character that is no print."""
    return "".join(each if each.isprintable() else " " for each in text[:characters_max])


def from_wire(code: str, message: str, retry_after_seconds: float | None = None) -> OctonodeError:
    """The exception for an error a peer sent, its words made printable. An unknown code becomes INTERNAL and is kept
    in `detail`."""
    message = printable(message, PEER_WORDS_MAX)
    if code not in TABLE:
        return OctonodeError(message, code="INTERNAL", detail={"peer_code": ascii(code[:64])[1:-1]})
    return OctonodeError(message, code=code, retry_after_seconds=retry_after_seconds)


@contextmanager
def one_error() -> Iterator[None]:
    """A nursery's group of our own errors leaves as the first of them: the others follow from it."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(OctonodeError)
        if ours is None or others is not None:
            raise
        error: BaseException = ours
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
