"""Answering requests that are no chat, on OpenAI's face: asked, followed, and told in the shape of their route."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octonode.api.answering import ask_on, begin
from octonode.api.ports import Ports
from octonode.api.schema import AnswerFacts
from octonode.api.schema.fields import Terms
from octonode.api.streaming import cancel_when_gone
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import WorkRequest

Result = TypeVar("Result")


async def answer_work(
    ports: Ports, scope: Scope, receive: Receive, send: Send,
    *, terms: Terms, work: WorkRequest, result: type[Result], render: Callable[[Result, AnswerFacts], Response],
) -> None:  # fmt: skip
    """Ask for `work` and answer what `render` makes of its result. A client that goes away cancels it.

    The body must have been read. `render` runs in a thread: results may be large.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
        model = await ports.models.resolve(terms.model)
        ask = ask_on(terms, model, work=work)
        answering = await begin(ports, ask, model, terms)
        async with ports.asking.ask(ask) as events:
            await answering.follow(events)
        made = answering.made
        if not isinstance(made, result):
            raise OctonodeError("the answer is of another kind than was asked for; ask again", code="PROVIDER_LOST")
        response = await trio.to_thread.run_sync(render, made, answering.facts())
        await response(scope, receive, send)
        nursery.cancel_scope.cancel()
