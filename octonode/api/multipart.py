"""Reading a form with files (multipart/form-data) under limits: parts, bytes and time. Nothing touches the disk.

Fields keep their texts, aside from what HTML forms cannot say: `name[]` is a list, `octonode` is JSON and
`octonode[name]` one field of it, and those named as numbers are numbers. So one reader serves JSON and forms.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive, Scope

from octonode.api.body import BodyLimits, read_pieces
from octonode.api.schema import bad_request
from octonode.errors import OctonodeError

PARTS_MAX: Final = 32
FIELD_BYTES_MAX: Final = 64 * 1024
HEADER_BYTES_MAX: Final = 4096
HEADERS_MAX: Final = 8
"""Of one part."""
OUR_TEXTS: Final = frozenset({"peer", "mode", "negative_prompt"})
"""Fields of the `octonode` object that are texts, also where they read as a number."""
FORMS_AT_ONCE_MAX: Final = 16
"""Being received or answered: each may hold as much as an upload may have."""


@dataclass(frozen=True, slots=True)
class Form:
    fields: dict[str, Any]
    files: dict[str, bytes]

    def file(self, name: str) -> bytes:
        """Raises BAD_REQUEST where it did not come."""
        data = self.files.get(name)
        if not data:
            raise bad_request(f"{name} is missing: send the file as a part of multipart/form-data", name)
        return data


class FormRoom:
    """Room for so many forms at once."""

    def __init__(self) -> None:
        self._open = 0

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Raises OVERLOADED when it is full."""
        if self._open >= FORMS_AT_ONCE_MAX:
            message = f"{FORMS_AT_ONCE_MAX} uploads are being worked on; try again in a few seconds"
            raise OctonodeError(message, code="OVERLOADED", retry_after_seconds=2.0)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


async def read_form(
    scope: Scope, receive: Receive, limits: BodyLimits, *, files: frozenset[str], numbers: frozenset[str]
) -> Form:
    """The form in a body; `files` are the parts taken as files, `numbers` the fields that are numbers.

    Raises BAD_REQUEST, TOO_LARGE, EXPIRED, ClientGone.
    """
    kind, options = parse_options_header(dict(scope["headers"]).get(b"content-type", b""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 256:
        raise bad_request("the body must be multipart/form-data with a boundary, as forms with files are sent")
    parts = _Parts(files)
    parser = MultipartParser(
        boundary,
        parts.callbacks(),  # type: ignore[arg-type]  # its maps are of no TypedDict
        max_header_count=HEADERS_MAX,
        max_header_size=HEADER_BYTES_MAX,
    )
    try:
        await read_pieces(scope, receive, limits, lambda piece: _write(parser, piece))
        parser.finalize()
    except FormParserError as error:
        raise bad_request(f"the body is not multipart/form-data: {str(error)[:200]}") from None
    if not parts.whole:
        raise bad_request("the form ends before its last boundary")
    return Form(_fields(parts.fields, numbers), parts.files)


def _write(parser: MultipartParser, piece: bytes) -> None:
    if piece:
        parser.write(piece)


@dataclass
class _Parts:
    """Takes the parts of a form as the parser finds them."""

    taken: frozenset[str]
    fields: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    whole: bool = False
    _count: int = 0
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _name: str = ""
    _data: bytearray = field(default_factory=bytearray)

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._take,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > PARTS_MAX:
            raise bad_request(f"the form has over {PARTS_MAX} parts")
        self._disposition, self._name = b"", ""
        self._data = bytearray()

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if not self._name or len(self._name) > 128:
            raise bad_request("a part of the form has no name")
        is_file = b"filename" in options
        if is_file and self._name.removesuffix("[]") not in self.taken:
            known = ", ".join(sorted(self.taken))
            raise bad_request(f"{self._name} is no file that is taken here; {known} is", self._name)
        if not is_file and self._name.removesuffix("[]") in self.taken:
            raise bad_request(f"{self._name} must be a file: give its part a filename", self._name)

    def _take(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if self._name.removesuffix("[]") not in self.taken and len(self._data) > FIELD_BYTES_MAX:
            message = f"{self._name} has over {FIELD_BYTES_MAX} bytes"
            raise bad_request(message, self._name, code="TOO_LARGE")

    def _end(self) -> None:
        name = self._name.removesuffix("[]")
        if name in self.taken:
            if name in self.files:
                raise bad_request(f"the form has two files named {name}; send one", name, code="UNSUPPORTED")
            self.files[name] = bytes(self._data)
        else:
            try:
                self.fields.append((self._name, self._data.decode()))
            except UnicodeDecodeError:
                raise bad_request(f"{self._name} is not UTF-8", self._name) from None
        self._data = bytearray()

    def _finish(self) -> None:
        self.whole = True


def _fields(given: list[tuple[str, str]], numbers: frozenset[str]) -> dict[str, Any]:
    """As a JSON body would have them."""
    fields: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for name, value in given:
        if name.endswith("[]"):
            fields.setdefault(name.removesuffix("[]"), []).append(value)
        elif name.startswith("octonode[") and name.endswith("]"):
            field_name = name[len("octonode[") : -1]
            ours[field_name] = value if field_name in OUR_TEXTS else _json(value)
        elif name in fields:
            raise bad_request(f"the form has {name} twice", name)
        elif name == "octonode":
            fields[name] = _json(value)
        else:
            fields[name] = _json(value) if name in numbers else value
    if ours:
        known = fields.get("octonode", {})
        fields["octonode"] = {**known, **ours} if isinstance(known, dict) else known
    return fields


def _json(value: str) -> Any:
    """A number, a flag or an object where it reads as one, else the text."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
