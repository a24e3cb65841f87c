"""Real daemons for blocking tests: one trio loop in a thread starts them, watches them and ends them."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import trio

from octonode.api.schema import Answer
from octonode.client import Client
from octonode.errors import OctonodeError
from octonode.protocol.receipt import verify_receipt
from octonode.testing.daemon import Daemon

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""For whatever a test waits for; it fails after."""
COMMAND = (sys.executable, "-m", "octonode.cli.main")


@dataclass(frozen=True)
class Done:
    """What a run of the command line left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error that a verb with --json ends with."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return found


HEEDING_CTRL_C = (
    sys.executable, "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
)  # fmt: skip
"""Before a command that is to be sent one: what a shell starts in the background ignores it, and all below do."""


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """As of a user who has set OCTONODE_HOME and that models are not measured; HOME is beside it, so that what leaks
    there is seen."""
    user = home.parent / f"{home.name}-user"
    user.mkdir(exist_ok=True)
    chosen = {name: value for name, value in os.environ.items() if name == "OCTONODE_NETWORK_MUXER"}
    chosen["OCTONODE_ENGINES_MEASURE_SECONDS"] = "0"  # a second of work at each load that few tests are about
    return {"PATH": os.environ["PATH"], "HOME": str(user), "OCTONODE_HOME": str(home), **chosen, **(extra or {})}


def octonode(
    home: Path, *arguments: str, given: str = "", extra: Mapping[str, str] | None = None, seconds: float = 120
) -> Done:
    """Run the real command line; `given` is its standard input. It must never end in a traceback."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(home, extra), input=given, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def works(home: Path, *arguments: str, **options: Any) -> Any:
    """The JSON of a verb that must succeed."""
    done = octonode(home, *arguments, "--json", **options)
    assert done.code == 0, (arguments, done.err)
    return done.json


def fails(home: Path, *arguments: str, code: str, exit_code: int, **options: Any) -> str:
    """The message of a verb that must fail with this code, for scripts; its text for people says the same."""
    done = octonode(home, *arguments, "--json", **options)
    assert done.code == exit_code, (arguments, done.code, done.out, done.err)
    assert done.error["code"] == code, done.err
    return str(done.error["message"])


class Fleet:
    """Daemons of this test module. Every method may be called from the test's thread."""

    def __init__(self, token: trio.lowlevel.TrioToken, nursery: trio.Nursery, lasting: set[int]) -> None:
        self._token = token
        self._nursery = nursery
        self._lasting = lasting
        self._nodes: list[Daemon] = []

    def do(self, act: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run `act` in the loop of the daemons; fails after a minute."""

        async def bounded() -> T:
            with trio.fail_after(PATIENCE_SECONDS):
                return await act(*arguments)

        return trio.from_thread.run(bounded, trio_token=self._token)

    def start(self, home: Path, *flags: str, extra: Mapping[str, str] | None = None, **options: Any) -> Daemon:
        """A new daemon on `home`, ready, with the environment of `environment(home, extra)`."""
        home.parent.mkdir(parents=True, exist_ok=True)
        node = Daemon(home, *flags, environment=environment(home, extra), **options)
        self._nodes.append(node)
        self.again(node)
        return node

    def again(self, node: Daemon, *flags: str) -> None:
        """Start a daemon that has ended."""
        self.do(node.start, self._nursery, *flags)
        self._lasting.add(node.pid)

    def stop(self, node: Daemon) -> int:
        return self.do(node.stop)

    def kill(self, node: Daemon) -> None:
        """kill -9, and until it is gone."""
        node.kill()
        self.do(node.wait)

    def event(self, node: Daemon, event: str, **fields: Any) -> dict[str, Any]:
        """The first event of that name with those fields, past or to come."""

        async def wait() -> dict[str, Any]:
            return await node.wait_for(event, **fields)

        return self.do(wait)

    def until(self, condition: Callable[[], T]) -> T:
        """What `condition` gives once that is true; it runs in the test's thread."""
        for _ in range(int(PATIENCE_SECONDS / 0.1)):
            found = condition()
            if found:
                return found
            self.do(trio.sleep, 0.1)
        raise AssertionError(f"never came true: {condition}")

    def met(self, node: Daemon, *others: Daemon) -> None:
        """Until `node` is connected with all others and has their announcements."""
        with Client.from_home(node.home) as client:

            def known() -> bool:
                peers = {peer.peer_id for peer in client.peers() if peer.connected and peer.tier}
                return {other.peer_id for other in others} <= peers

            self.until(known)

    async def end(self) -> None:
        async with trio.open_nursery() as nursery:
            for node in self._nodes:
                nursery.start_soon(node.stop)


class Asking:
    """A streamed question to a node, asked by a thread of its own."""

    def __init__(self, node: Daemon, model: str, question: str = "tell me more", **options: Any) -> None:
        self._node = node
        self._call = (model, [{"role": "user", "content": question}])
        self._options = {"temperature": 0, **options}
        self.pieces: list[str] = []
        self.answer: Answer | None = None
        self.error: OctonodeError | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="asking")
        self._thread.start()

    def _ask(self) -> None:
        try:
            with Client.from_home(self._node.home) as client, client.chat(*self._call, **self._options) as stream:
                for text in stream:
                    self.pieces.append(text)
                    self._begun.set()
            self.answer = stream.result
        except OctonodeError as error:
            self.error = error
        finally:
            self._begun.set()

    def begun(self) -> None:
        """Until its first text is here."""
        assert self._begun.wait(PATIENCE_SECONDS)
        assert self.pieces, self.error

    def end(self) -> Asking:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        return self

    def whole(self) -> Answer:
        """The answer, which must be whole and have a good receipt."""
        self.end()
        assert self.error is None, self.error
        assert self.answer is not None
        assert self.answer.facts is not None
        assert self.answer.facts.verified, self.answer.facts.reason
        assert self.answer.text == "".join(self.pieces)
        return self.answer

    def failed(self) -> OctonodeError:
        self.end()
        assert self.error is not None, self.answer
        return self.error


@contextmanager
def running_fleet(lasting: set[int]) -> Iterator[Fleet]:
    made: queue.Queue[Fleet] = queue.Queue()
    over = threading.Event()

    async def host() -> None:
        async with trio.open_nursery() as nursery:
            fleet = Fleet(trio.lowlevel.current_trio_token(), nursery, lasting)
            made.put(fleet)
            await trio.to_thread.run_sync(over.wait)
            await fleet.end()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(host,), name="fleet")
    thread.start()
    try:
        yield made.get(timeout=PATIENCE_SECONDS)
    finally:
        over.set()
        thread.join(PATIENCE_SECONDS)


def known(client: Client, model: str) -> bool:
    """Whether a node has heard who serves the model, and what it can be asked for."""
    try:
        return bool(client.model(model).skills)
    except OctonodeError:
        return False


def proven(facts: Mapping[str, Any], a: Daemon, c: Daemon) -> None:
    """The answer is A's, and C keeps a receipt of it that A signed for C."""
    assert (facts["provider"], facts["local"]) == (a.peer_id, False)
    assert facts["verified"] is True, facts["reason"]
    with Client.from_home(c.home) as client:
        kept = client.receipt(facts["task"])
    receipt = verify_receipt(kept.receipt)
    assert kept.verified
    assert (receipt.provider, receipt.asker, receipt.model_root) == (a.peer_id, c.peer_id, facts["model_root"])
