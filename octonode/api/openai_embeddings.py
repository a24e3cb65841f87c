"""OpenAI's face: `/v1/embeddings`. Spec: protocols/http.md."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from octonode.api.body import BodyLimits, privacy_header, read_json
from octonode.api.ports import Ports
from octonode.api.schema import AnswerFacts, to_json
from octonode.api.schema.embeddings import embeddings_json, parse_embeddings
from octonode.api.work import answer_work
from octonode.protocol.work.text import Embeddings


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    return [Route("/v1/embeddings", _Embeddings(ports, limits), methods=["POST"])]


class _Embeddings:
    def __init__(self, ports: Ports, limits: BodyLimits) -> None:
        self._ports = ports
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = parse_embeddings(await read_json(scope, receive, self._limits), privacy_header(scope))

        def render(found: Embeddings, facts: AnswerFacts) -> Response:
            return Response(embeddings_json(request, found, to_json(facts)), media_type="application/json")

        await answer_work(
            self._ports, scope, receive, send,
            terms=request.terms, work=request.work, result=Embeddings, render=render,
        )  # fmt: skip
