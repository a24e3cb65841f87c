"""From whatever was raised while a request ran to the one error that is answered."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException

from octonode.errors import OctonodeError

log = logging.getLogger(__name__)


def name_fault(fault: Exception) -> tuple[OctonodeError, dict[str, str]]:
    """The error to answer a fault with, and headers of its own. A bug is logged and told nothing about."""
    if isinstance(fault, HTTPException):
        if fault.status_code == 405:
            allowed = (fault.headers or {}).get("Allow", "")
            return OctonodeError(f"this path takes {allowed}", code="UNSUPPORTED"), {"allow": allowed}
        return OctonodeError("there is nothing at this path; protocols/http.md lists the paths", code="NOT_FOUND"), {}
    known = find_error(fault)
    if known is not None:
        return known, {}
    log.error("a request failed by a bug", exc_info=fault)
    return OctonodeError("the node failed at this request by a bug of its own; its log says where"), {}


def find_error(fault: BaseException) -> OctonodeError | None:
    """The named error in a fault, which nurseries may have wrapped in groups."""
    if isinstance(fault, OctonodeError):
        return fault
    if isinstance(fault, BaseExceptionGroup):
        return next((found for each in fault.exceptions if (found := find_error(each)) is not None), None)
    return None
