"""OpenAI's face: `/v1/images/generations` and `/v1/images/edits`. Spec: protocols/http.md."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from octonode.api.body import BodyLimits, privacy_header, read_json
from octonode.api.multipart import FormRoom, read_form
from octonode.api.ports import Ports
from octonode.api.schema import AnswerFacts, to_json
from octonode.api.schema.images import PictureRequest, images_json, parse_images
from octonode.api.work import answer_work
from octonode.protocol.work.image import Images

FILES_REFUSED: Final = frozenset({"mask", "markup"})
FILES: Final = FILES_REFUSED | {"image"}
NUMBERS: Final = frozenset({"n", "stream", "partial_images", "output_compression", "frame_count", "frame_duration_ms"})
"""Fields of the form that are numbers or flags."""

_Act = Callable[[Scope, Receive, Send], Awaitable[None]]


def routes(ports: Ports, limits: BodyLimits, uploads: BodyLimits, room: FormRoom) -> list[BaseRoute]:
    pictures = _Pictures(ports, limits, uploads, room)
    return [
        Route("/v1/images/generations", _Route(pictures.generate), methods=["POST"]),
        Route("/v1/images/edits", _Route(pictures.edit), methods=["POST"]),
    ]


class _Route:
    """A method as an ASGI application: Starlette takes bare functions for something else."""

    def __init__(self, act: _Act) -> None:
        self._act = act

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._act(scope, receive, send)


class _Pictures:
    def __init__(self, ports: Ports, limits: BodyLimits, uploads: BodyLimits, room: FormRoom) -> None:
        self._ports = ports
        self._limits = limits
        self._uploads = uploads
        self._room = room

    async def generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = parse_images(await read_json(scope, receive, self._limits), privacy_header(scope))
        await self._answer(request, scope, receive, send)

    async def edit(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._room.enter():
            form = await read_form(scope, receive, self._uploads, files=FILES, numbers=NUMBERS)
            for name in FILES_REFUSED & form.files.keys():
                form.fields[name] = "a file"  # refused by name, as everything that is not served
            request = parse_images(form.fields, privacy_header(scope), image=form.file("image"))
            await self._answer(request, scope, receive, send)

    async def _answer(self, request: PictureRequest, scope: Scope, receive: Receive, send: Send) -> None:
        created = int(time.time())

        def render(made: Images, facts: AnswerFacts) -> Response:
            return Response(images_json(made, created, to_json(facts)), media_type="application/json")

        await answer_work(
            self._ports, scope, receive, send,
            terms=request.terms, work=request.work, result=Images, render=render,
        )  # fmt: skip
