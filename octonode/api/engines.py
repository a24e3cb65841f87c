"""`/api/v1/engines`: the engines of this machine, and what models were measured to do. Spec: protocols/http.md."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from octonode.api.ports import Ports
from octonode.api.schema import to_json


def routes(ports: Ports) -> list[BaseRoute]:
    async def listing(_: Request) -> Response:
        return JSONResponse(to_json(await ports.engines.list()))

    async def measure(request: Request) -> Response:
        return JSONResponse(to_json(await ports.engines.measure(request.path_params["reference"])))

    return [
        Route("/api/v1/engines", listing, methods=["GET"]),
        Route("/api/v1/engines/measure/{reference:path}", measure, methods=["POST"]),
    ]
