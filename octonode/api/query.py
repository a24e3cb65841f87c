"""What stands behind the question mark of a URL."""

from __future__ import annotations

from octonode.api.schema import bad_request

DIGITS_MAX = 12


def whole_number(text: str, name: str, most: int) -> int:
    """Raises BAD_REQUEST, with `name` as what is at fault, for all but a whole number from 1 to `most`."""
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS_MAX) or not 1 <= int(text) <= most:
        raise bad_request(f"{name} must be a whole number from 1 to {most}", name)
    return int(text)
