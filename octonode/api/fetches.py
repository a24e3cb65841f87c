"""`/api/v1/fetches`: the models that are being fetched. Spec: protocols/http.md."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from octonode.api.body import BodyLimits, read_json
from octonode.api.ports import Ports
from octonode.api.schema import parse, to_json
from octonode.api.schema.fetches import ChangeFetch


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    async def look(_: Request) -> Response:
        return JSONResponse({"fetches": to_json(await ports.fetches.list())})

    async def change(request: Request) -> Response:
        asked = parse(ChangeFetch, await read_json(request.scope, request.receive, limits))
        return JSONResponse(to_json(await ports.fetches.change(asked)))

    return [
        Route("/api/v1/fetches", look, methods=["GET"]),
        Route("/api/v1/fetches", change, methods=["POST"]),
    ]
