"""`POST /api/v1/models/gc`: room on the disk. Spec: protocols/http.md."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from octonode.api.body import BodyLimits, read_json
from octonode.api.ports import Ports
from octonode.api.schema import parse, to_json
from octonode.api.schema.cache import CollectGarbage


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    async def collect(request: Request) -> Response:
        asked = parse(CollectGarbage, await read_json(request.scope, request.receive, limits))
        return JSONResponse(to_json(await ports.cache.collect(asked)))

    return [Route("/api/v1/models/gc", collect, methods=["POST"])]
