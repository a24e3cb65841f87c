"""The life of a server as the daemon sees it, where it goes wrong before or beside the server itself."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import EngineFacts, Finished, GenerateRequest, LoadRequest
from octonode.engines.plan import Phase
from octonode.engines.servers import requests
from octonode.engines.servers.dialects import PLAIN, Dialect
from octonode.engines.servers.facts import Seen
from octonode.engines.servers.kinds import Launch, ServerLoad
from octonode.engines.servers.link import ServerLink
from octonode.engines.servers.openai_http import Address, OpenAiServer, ServerLost
from octonode.engines.supervisor import Supervisor
from octonode.errors import OctonodeError

USER = ({"role": "user", "content": "hi"},)


@dataclass(frozen=True)
class Kind:
    """A server of a command line that says nothing and never ends; `fault` is raised instead of it."""

    fault: Exception | None = None
    name: str = "openai-server"
    dialect: Dialect | None = None
    metrics_path: str = ""

    async def launch(self, request: LoadRequest, directory: Path) -> Launch:
        if self.fault is not None:
            raise self.fault
        command = (sys.executable, "-c", "import time; time.sleep(1000)")
        return Launch(Address(socket_path=str(directory / "none")), 1, command, dict(os.environ))

    def read_metrics(self, text: str) -> ServerLoad | None:
        return None


def server_link(kind: Kind) -> ServerLink:
    request = LoadRequest("openai-server", None, "root", context_tokens=512)
    return ServerLink("root", request, kind, lease=None, on_change=lambda: None)


async def test_a_server_that_is_told_to_stop_before_its_start_is_not_started():
    link = server_link(Kind())
    link.stop()
    with trio.fail_after(30):
        await link.run()
    assert link.pid == 0


@pytest.mark.parametrize("where", ["directory", "launch"])
async def test_a_full_disk_fails_the_load_and_nothing_else(monkeypatch, where):
    full = OSError(errno.ENOSPC, "No space left on device")

    def no_room(**options: str) -> str:
        raise full

    if where == "directory":
        monkeypatch.setattr(tempfile, "mkdtemp", no_room)
    error = await server_link(Kind(full if where == "launch" else None)).run()
    assert error.code == "ENGINE_FAILED"
    assert "No space left" in error.message


@asynccontextmanager
async def ready_link(monkeypatch: pytest.MonkeyPatch, answer: Exception) -> AsyncIterator[ServerLink]:
    """Its server fails every request by `answer`, and nobody is at its address."""

    async def run(*_: object) -> Finished:
        raise answer

    monkeypatch.setattr(requests, "run", run)
    link = server_link(Kind())
    link._server = OpenAiServer(Address(socket_path="/nowhere"))
    link._seen = Seen(EngineFacts("openai-server", "", "cpu", "", 512, 1, ""), PLAIN, "m", ())
    link._take_ready(link._seen)
    async with trio.open_nursery() as nursery:
        link._nursery = nursery
        yield link


async def test_a_bug_in_the_reading_of_one_answer_costs_that_answer_alone(monkeypatch):
    async with ready_link(monkeypatch, ZeroDivisionError()) as link:
        assert link.engine is not None
        async with link.engine.generate(GenerateRequest(USER, 7)) as events:
            with pytest.raises(OctonodeError) as caught:
                await anext(events)
    assert (caught.value.code, link.running) == ("ENGINE_FAILED", 0)


async def test_who_leaves_while_its_lost_server_is_being_ended_leaves_in_peace(monkeypatch):
    monkeypatch.setattr("octonode.engines.servers.link.JUDGE_SECONDS", 0.01)
    async with ready_link(monkeypatch, ServerLost("it broke off")) as link:
        assert link.engine is not None
        with trio.move_on_after(0.5) as left:
            async with link.engine.generate(GenerateRequest(USER, 7)) as events:
                await anext(events)
    assert left.cancelled_caught
    assert (link.phase, link.running) == (Phase.STOPPING, 0)


async def test_a_bug_in_the_life_of_an_engine_fails_its_model_and_not_the_node(monkeypatch, tmp_path):
    monkeypatch.setattr("octonode.engines.supervisor.kind_of", lambda *_: Kind(ZeroDivisionError()))
    supervisor = Supervisor(EnginesConfig(crashes_before_quarantine=1), directory=tmp_path / "workers")
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.set_desired({"root": LoadRequest("openai-server", None, "root")})
        with trio.fail_after(30), pytest.raises(OctonodeError) as caught:
            await supervisor.wait_ready("root")
        assert caught.value.code == "ENGINE_FAILED"
        assert [each.state for each in supervisor.status()] == ["quarantined"]
        nursery.cancel_scope.cancel()
