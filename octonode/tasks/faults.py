"""Telling the world's faults from our own bugs."""

from __future__ import annotations

from octonode.errors import OctonodeError


def told(error: BaseException) -> OctonodeError | None:
    """The OctonodeError that `error` is or, as a group of one kind, holds; None for a bug."""
    if isinstance(error, OctonodeError):
        return error
    if isinstance(error, BaseExceptionGroup):
        inner = [told(one) for one in error.exceptions]
        if all(one is not None for one in inner):
            return inner[0]
    return None
