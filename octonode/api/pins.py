"""`/api/v1/models/{pin,unpin,pins}`: models that are kept, here and at other nodes. Spec: protocols/http.md."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from octonode.api.body import BodyLimits, read_json
from octonode.api.jobs import Job
from octonode.api.ports import Ports
from octonode.api.schema import parse, to_json
from octonode.api.schema.pins import PinModel, UnpinModel


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    async def pins(request: Request) -> Response:
        return JSONResponse(to_json(await ports.pins.list(request.query_params.get("on", ""))))

    async def unpin(request: Request) -> Response:
        asked = parse(UnpinModel, await read_json(request.scope, request.receive, limits))
        return JSONResponse(to_json(await ports.pins.unpin(asked)))

    return [
        Route("/api/v1/models/pins", pins, methods=["GET"]),
        Route("/api/v1/models/pin", Job(PinModel, ports.pins.pin, limits), methods=["POST"]),
        Route("/api/v1/models/unpin", unpin, methods=["POST"]),
    ]
