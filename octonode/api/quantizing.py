"""`/api/v1/models/quantize`: what can be made of a model, and making it. Spec: protocols/http.md."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from octonode.api.body import BodyLimits
from octonode.api.jobs import Job
from octonode.api.ports import Ports
from octonode.api.schema import bad_request, to_json
from octonode.api.schema.quantizing import QUANTIZE_PATH, QuantizeModel


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    """Stand before the routes of a model by its reference, which would take this path for one."""

    async def choices(request: Request) -> Response:
        reference = request.query_params.get("reference", "").strip()
        if not reference:
            raise bad_request("name the model: ?reference=publisher/name", "reference")
        return JSONResponse(to_json(await ports.quantizing.choices(reference)))

    return [
        Route(QUANTIZE_PATH, choices, methods=["GET"]),
        Route(QUANTIZE_PATH, Job(QuantizeModel, ports.quantizing.quantize, limits), methods=["POST"]),
    ]
