"""`/api/v1/models/{versions,outdated,update,rollback,deprecate}` and the import of trust. Spec: protocols/http.md."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from octonode.api.body import BodyLimits, read_json
from octonode.api.jobs import Job
from octonode.api.ports import Ports
from octonode.api.schema import RollbackModel, UpdateModel, parse, to_json
from octonode.api.schema.versions import DeprecateModel, ImportTrust


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    async def outdated(_: Request) -> Response:
        return JSONResponse({"models": to_json(await ports.versions.outdated())})

    async def versions(request: Request) -> Response:
        return JSONResponse(to_json(await ports.versions.versions(request.path_params["reference"])))

    async def deprecate(request: Request) -> Response:
        asked = parse(DeprecateModel, await read_json(request.scope, request.receive, limits))
        return JSONResponse(to_json(await ports.versions.deprecate(asked)))

    async def import_trust(request: Request) -> Response:
        asked = parse(ImportTrust, await read_json(request.scope, request.receive, limits))
        return JSONResponse(to_json(await ports.versions.import_trust(asked)))

    return [
        Route("/api/v1/models/outdated", outdated, methods=["GET"]),
        Route("/api/v1/models/versions/{reference:path}", versions, methods=["GET"]),
        Route("/api/v1/models/update", Job(UpdateModel, ports.versions.update, limits), methods=["POST"]),
        Route("/api/v1/models/rollback", Job(RollbackModel, ports.versions.roll_back, limits), methods=["POST"]),
        Route("/api/v1/models/deprecate", deprecate, methods=["POST"]),
        Route("/api/v1/models/trust/import", import_trust, methods=["POST"]),
    ]
