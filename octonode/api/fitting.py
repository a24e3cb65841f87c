"""`GET /api/v1/models/fit` and `/inspect`: what models need, and what their headers say. Spec: protocols/http.md."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from octonode.api.body import BodyLimits
from octonode.api.ports import Ports
from octonode.api.query import whole_number
from octonode.api.schema import bad_request, to_json
from octonode.api.schema.fitting import CONTEXT_TOKENS_MAX, STREAMS_MAX


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    async def fit(request: Request) -> Response:
        context = _number(request, "context", 0, CONTEXT_TOKENS_MAX)
        streams = _number(request, "streams", 1, STREAMS_MAX)
        reference = request.query_params.get("reference", "").strip()
        return JSONResponse(to_json(await ports.fitting.fit(reference, context_tokens=context, streams=streams)))

    async def inspect(request: Request) -> Response:
        reference = request.query_params.get("reference", "").strip()
        if not reference:
            raise bad_request("name the model: ?reference=publisher/name", "reference")
        return JSONResponse(to_json(await ports.fitting.inspect(reference)))

    return [
        Route("/api/v1/models/fit", fit, methods=["GET"]),
        Route("/api/v1/models/inspect", inspect, methods=["GET"]),
    ]


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, "")
    return whole_number(text, name, most) if text else default
