"""Jobs of real daemons: kill -9 in the middle of one, and it completes once; its end is posted, signed."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from octonode.api.schema.inference import Infer, InferenceCalls
from octonode.client import Client
from octonode.testing.daemon import Daemon
from tests.process.fleet import Fleet, fails, octonode, works

pytestmark = pytest.mark.process

SLOW = {
    "OCTONODE_ENGINES_SCRIPTED_TOKENS_PER_SECOND": "20",
    "OCTONODE_ENGINES_SCRIPTED_ANSWER_TOKENS": "5000",
}
HOOKS = {"OCTONODE_JOBS_WEBHOOK_HOSTS_ALLOWED": "127.0.0.1"}
PAGE = Path(__file__).resolve().parents[2] / "protocols" / "http.md"
TOKENS = 100


class Receiver:
    """A program that webhooks are posted to; it answers 500 to the first post, and remembers all."""

    def __init__(self) -> None:
        self.posted: list[tuple[dict[str, str], bytes]] = []
        posted = self.posted

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                posted.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(500 if len(posted) == 1 else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/done"

    @contextmanager
    def listening(self) -> Iterator[Receiver]:
        thread = threading.Thread(target=self._server.serve_forever, name="receiver")
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@pytest.fixture(scope="module")
def pair(fleet: Fleet, place: Path, scripted: Path) -> tuple[Daemon, Daemon, str]:
    """A serves a model slowly to anybody; C asks it."""
    a = fleet.start(place / "a", "--public", extra=SLOW)
    works(a.home, "models", "add", str(scripted), "--name", "words", "--publish")
    reference = works(a.home, "models", "serve", "words")["model"]["reference"]
    c = fleet.start(place / "c", "--bootstrap", a.address, extra=HOOKS)
    fleet.met(c, a)
    return a, c, reference


def test_the_shell_submits_lists_waits_and_cancels(pair: tuple[Daemon, Daemon, str]) -> None:
    _, c, reference = pair
    said = octonode(c.home, "task", "submit", reference, "hello", "--param", "max_tokens=10")
    assert said.code == 0, said.err
    job = said.out.split()[0]
    whole = octonode(c.home, "task", "wait", job)
    assert (whole.code, len(whole.out.split())) == (0, 10)
    slow = works(c.home, "task", "submit", reference, "more", "--param", "max_tokens=2000", "--priority", "9")
    assert slow["priority"] == 9
    assert works(c.home, "task", "cancel", slow["id"])["state"] == "canceled"
    listed = works(c.home, "task", "list")["jobs"]
    assert [(each["id"], each["state"]) for each in listed] == [(slow["id"], "canceled"), (job, "completed")]
    assert "canceled" in fails(c.home, "task", "wait", slow["id"], code="CANCELED", exit_code=1)
    now = works(c.home, "task", "submit", reference, "hello", "--mode", "realtime", "--param", "max_tokens=5")
    assert (now["state"], now["result"]["tokens_out"]) == ("completed", 5)
    assert "async, batch, realtime" in fails(
        c.home, "task", "submit", reference, "x", "--mode", "soon", code="BAD_REQUEST", exit_code=2
    )
    message = fails(
        c.home, "task", "submit", reference, "x", "--webhook", "http://10.0.0.1/", code="FORBIDDEN", exit_code=3
    )
    assert "10.0.0.1 is no public address" in message
    assert "octonode config set jobs.webhook_hosts_allowed" in message
    works(c.home, "task", "cancel", job)
    fails(c.home, "task", "get", job, code="NOT_FOUND", exit_code=4)


def test_a_job_outlives_kill_9_and_completes_once(fleet: Fleet, pair: tuple[Daemon, Daemon, str]) -> None:
    a, c, reference = pair
    before = _served(a)
    asked = Infer(
        reference, input={"messages": [{"role": "user", "content": "tell me more"}]},
        parameters={"max_tokens": TOKENS, "temperature": 0}, mode="async",
    )  # fmt: skip
    with Receiver().listening() as receiver:
        with Client.from_home(c.home) as client:
            job = client.do(InferenceCalls.submit(Infer(**{**_fields(asked), "webhook": receiver.url})))
            later = client.do(InferenceCalls.submit(asked))
        with Client.from_home(a.home) as client:
            fleet.until(lambda: client.node().tasks.running == 2)
        fleet.kill(c)
        fleet.again(c)
        done = works(c.home, "task", "wait", job.id)
        assert (done["state"], done["attempt"]) == ("completed", 2)
        assert done["result"]["tokens_out"] == TOKENS
        assert done["octonode"]["provider"] == a.peer_id
        assert done["octonode"]["verified"] is True, done["octonode"]["reason"]
        assert works(c.home, "task", "wait", later.id)["state"] == "completed"
        unbroken = works(c.home, "run", reference, "tell me more", "--max-tokens", str(TOKENS), "--temperature", "0")
        assert done["result"]["text"] == unbroken["answer"]
        fleet.until(lambda: len(receiver.posted) == 2)
        fleet.until(lambda: works(c.home, "task", "get", job.id)["webhook_state"] == "delivered")
    served = _served(a) - before
    assert served == {"canceled": 2, "completed": 3}  # both jobs were cut once
    check = _receivers_program()
    for number, (headers, body) in enumerate(receiver.posted, start=1):
        check(headers, body, c.peer_id)
        assert headers["x-octonode-try"] == str(number)
        assert json.loads(body)["id"] == job.id
        assert json.loads(body)["result"]["text"] == done["result"]["text"]
    with pytest.raises(Exception, match="forged"):
        check(receiver.posted[0][0], receiver.posted[0][1] + b" ", c.peer_id)


def _served(node: Daemon) -> Counter[str]:
    with Client.from_home(node.home) as client:
        return Counter(each.state for each in client.tasks() if each.role == "provider")


def _fields(asked: Infer) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in Infer.__dataclass_fields__}


def _receivers_program() -> Any:
    """`check` of the page, as a receiver would copy it."""
    (program,) = (
        each for each in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S) if "def check" in each
    )
    scope: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), scope)
    return scope["check"]
