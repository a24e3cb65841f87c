"""Uploads of models: `POST /api/v1/models`, `/api/v1/models/uploads/...`. Spec: protocols/http.md.

The bytes of a file go by PUT or PATCH, whole or from where the last answer said (Content-Range). They are handed on as
they come and never held: a file may be larger than memory. What came before a client left is kept.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from octonode.api.body import BodyLimits, ClientGone, read_json
from octonode.api.jobs import Job
from octonode.api.ports import Ports
from octonode.api.schema import bad_request, parse, to_json
from octonode.api.schema.uploads import UPLOADS_PATH, CreateUpload, ExportToKubo, FinishUpload
from octonode.errors import NotFound, OctonodeError

STALL_SECONDS: Final = 30.0
"""A client that sends nothing for so long in the middle of a body is given up; what came is kept."""
_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)\Z", re.ASCII)


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    """Stand before the routes of a model by its reference, which would take these paths for one."""
    verbs = _Verbs(ports, limits)
    file = f"{UPLOADS_PATH}/{{upload}}/{{path:path}}"
    return [
        Route("/api/v1/models", verbs.create, methods=["POST"]),
        Route(UPLOADS_PATH, verbs.list, methods=["GET"]),
        Route(f"{UPLOADS_PATH}/{{upload}}", verbs.one, methods=["GET"]),
        Route(f"{UPLOADS_PATH}/{{upload}}", verbs.abort, methods=["DELETE"]),
        Route(f"{UPLOADS_PATH}/{{upload}}/finish", _Finish(ports, limits), methods=["POST"]),
        Route(file, verbs.offset, methods=["GET"]),
        Route(file, verbs.write, methods=["PUT", "PATCH"]),
        Route("/api/v1/models/export/kubo", Job(ExportToKubo, ports.bridges.export_to_kubo, limits), methods=["POST"]),
    ]


class _Verbs:
    def __init__(self, ports: Ports, limits: BodyLimits) -> None:
        self._uploads = ports.uploads
        self._limits = limits

    async def create(self, request: Request) -> Response:
        asked = parse(CreateUpload, await read_json(request.scope, request.receive, self._limits))
        return JSONResponse(to_json(await self._uploads.create(asked)), 201)

    async def list(self, _: Request) -> Response:
        return JSONResponse({"uploads": to_json(await self._uploads.list())})

    async def one(self, request: Request) -> Response:
        return JSONResponse(to_json(await self._uploads.get(request.path_params["upload"])))

    async def abort(self, request: Request) -> Response:
        return JSONResponse(to_json(await self._uploads.abort(request.path_params["upload"])))

    async def offset(self, request: Request) -> Response:
        upload = await self._uploads.get(request.path_params["upload"])
        path = request.path_params["path"]
        file = next((each for each in upload.files if each.path == path), None)
        if file is None:
            raise NotFound(f"upload {upload.upload} has no file {path[:200]!r}; its files were named when it began")
        headers = {"upload-offset": str(file.offset_bytes), "upload-length": str(file.size_bytes)}
        return JSONResponse(to_json(file), headers=headers)

    async def write(self, request: Request) -> Response:
        first, end, total = _span(request)
        file = await self._uploads.write(
            request.path_params["upload"],
            request.path_params["path"],
            _pieces(request.receive, None if end is None else end - first),
            first_byte=first,
            total_bytes=total,
        )
        return JSONResponse(to_json(file), headers={"upload-offset": str(file.offset_bytes)})


def _span(request: Request) -> tuple[int, int | None, int | None]:
    """(first byte, end, size of the file) as the headers say; None where they do not. Raises BAD_REQUEST."""
    given = request.headers.get("content-range", "")
    if not given:
        length = request.headers.get("content-length", "")
        return 0, int(length) if length.isdecimal() else None, None
    found = _RANGE.match(given)
    if found is None:
        raise bad_request("write Content-Range: bytes FIRST-LAST/SIZE", "content-range")
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise bad_request("Content-Range ends before it begins", "content-range")
    return first, last + 1, None if found[3] == "*" else int(found[3])


async def _pieces(receive: Receive, due_bytes: int | None) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises ClientGone, EXPIRED for a client that stalls, BAD_REQUEST for another length."""
    size = 0
    while True:
        with trio.move_on_after(STALL_SECONDS) as scope:
            message = await receive()
        if scope.cancelled_caught:
            raise OctonodeError(f"nothing came for {STALL_SECONDS:g} s; what came is kept, go on later", code="EXPIRED")
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if due_bytes is not None and size > due_bytes:
            raise bad_request("the body is longer than its Content-Range says", "content-range")
        if piece:
            yield piece
        if not message.get("more_body", False):
            if due_bytes is not None and size < due_bytes:
                raise bad_request("the body is shorter than its Content-Range says", "content-range")
            return


class _Finish:
    """`POST .../finish`, a job."""

    def __init__(self, ports: Ports, limits: BodyLimits) -> None:
        self._uploads = ports.uploads
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        act = partial(self._uploads.finish, scope["path_params"]["upload"])
        await Job(FinishUpload, act, self._limits)(scope, receive, send)
