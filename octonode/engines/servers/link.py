"""The daemon's side of one server: its processes, its health, and the requests that run in it.

The same face to the supervisor as `engines.link`. A server that is not ours has no processes, and is only looked at.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import trio

from octonode.engines.calls import Call, LoadedEngine
from octonode.engines.contract import Finished, GenerateRequest, LoadRequest
from octonode.engines.files import Lease
from octonode.engines.life import EngineLife
from octonode.engines.plan import Phase
from octonode.engines.process import exit_text
from octonode.engines.servers import requests
from octonode.engines.servers.facts import Seen, look_at
from octonode.engines.servers.kinds import Launch, ServerKind, ServerLoad
from octonode.engines.servers.openai_http import Address, Health, OpenAiServer, ServerLost
from octonode.engines.servers.process import ServerProcess, end_all, family, listening, resident_bytes
from octonode.errors import EngineCrashed, OctonodeError

log = logging.getLogger(__name__)

READY_LOOK_SECONDS = 0.25
BEAT_SECONDS = 2.0
HEALTH_SECONDS = 5.0
"""Within which a living server answers for its health."""
JUDGE_SECONDS = 3.0
"""After a broken answer: within which a server shows whether it lives."""
ILL_MAX = 2
"""Answers in a row by which a loaded server says that it is ill, before it is ended."""


class ServerLink(EngineLife):
    """One life of a server, from its start to the end of its processes. `run` returns what it died of."""

    def __init__(
        self,
        root: str,
        request: LoadRequest,
        kind: ServerKind,
        *,
        lease: Lease | None,
        on_change: Callable[[], None],
    ) -> None:
        """`lease` stays the caller's to close."""
        super().__init__(root, request, on_change)
        self.load: ServerLoad | None = None
        """The last reading of its metrics."""
        self._kind = kind
        self._lease = lease
        self._process: ServerProcess | None = None
        self._seen: Seen | None = None
        self._family: list[psutil.Process] = []
        """Its processes that were seen and live."""
        self._server: OpenAiServer | None = None
        self._scopes: dict[int, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._over = trio.Event()
        """Set when we end it, which for a server that is not ours is all there is to do."""
        self._preparing = trio.CancelScope()

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def measure(self) -> None:
        """Nothing: its processes are looked at beside the loop, see `_weigh`."""

    def measure_gpu(self, by_process: Mapping[int, int]) -> None:
        """Takes its GPU memory from a reading, over all its processes."""
        self.gpu_bytes = sum(by_process.get(each.pid, 0) for each in self._family)

    def stop(self) -> None:
        """Tells it to end; what does not is killed after a grace."""
        self.unloaded = True
        self._enter(Phase.STOPPING)
        if self._process is not None:
            self._process.stop()
        self._cut()

    def kill(self, reason: str) -> None:
        self.kill_reason = self.kill_reason or reason
        self._enter(Phase.STOPPING)
        if self._process is not None:
            self._process.end_now()
        self._cut()

    def _cut(self) -> None:
        self._preparing.cancel()
        self._over.set()

    async def run(self) -> OctonodeError:
        """Serves until the server is gone and every open request was told why; the reason of the end."""
        directory: Path | None = None
        try:
            with self._preparing:
                await trio.lowlevel.checkpoint()  # it may have been told to stop already
                directory = Path(tempfile.mkdtemp(prefix="octonode-server-"))  # a socket's path has 107 bytes at most
                launch = await self._kind.launch(self.request, directory)
                self._start(launch, directory)
            if self._preparing.cancelled_caught:
                return self._explain(None)
            return await self._live(launch)
        except OSError as error:
            text = f"a server cannot be started: {error}; check the disk"
            self.load_error = OctonodeError(text, code="ENGINE_FAILED")
            return self._explain(None)
        except OctonodeError as error:
            self.load_error = error
            return self._explain(None)
        finally:
            if self._process is not None:
                await self._process.finish()
                end_all(self._family)  # its keeper did it, unless that was killed itself
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
            self._fail_calls(OctonodeError("the node is stopping its engines", code="LEAVING", retry_after_seconds=5.0))

    def _start(self, launch: Launch, directory: Path) -> None:
        self._server = OpenAiServer(launch.address, key=launch.key)
        if not launch.command:
            return
        descriptor = -1 if self._lease is None else self._lease.descriptor
        self._process = ServerProcess(
            launch.command,
            launch.environment,
            directory=directory,
            name=self.root,
            inherited=[descriptor] if descriptor >= 0 else (),
        )
        if self._lease is not None:
            self._lease.hand_to(self._process.pid)

    async def _live(self, launch: Launch) -> OctonodeError:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch, launch)
            status = None
            if self._process is None:
                await self._over.wait()
            else:
                nursery.start_soon(self._process.run_output)
                nursery.start_soon(self._weigh, self._process)
                await self._process.ended()
                status = await self._process.finish()
            end = self._explain(status)
            nursery.cancel_scope.cancel()
        return end

    async def _watch(self, launch: Launch) -> None:
        assert self._server is not None
        while await self._health() != "well":
            await trio.sleep(READY_LOOK_SECONDS)
        try:
            if self._process is not None:
                self._family = await trio.to_thread.run_sync(family, self._process.pid, self._family)
                await self._check_listener(launch.address)
            self._seen = await look_at(self._server, self._kind, launch, self.request, self._family)
        except OctonodeError as error:
            self.load_error = error
            self._end_failed_load()
            return
        self._take_ready(self._seen)
        ill = 0
        while True:
            await trio.sleep(BEAT_SECONDS)
            health = await self._health()
            ill = ill + 1 if health == "ill" else 0
            if ill >= ILL_MAX:
                self.kill("its engine died, as the server itself says")
            if health == "well":
                self.heard_at = trio.current_time()
                await self._read_metrics()

    def _end_failed_load(self) -> None:
        self._enter(Phase.STOPPING)
        if self._process is not None:
            self._process.end_now()
        self._cut()

    async def _health(self) -> Health:
        assert self._server is not None
        with trio.move_on_after(HEALTH_SECONDS):
            return await self._server.health()
        return "silent"

    async def _check_listener(self, address: Address) -> None:
        """A port is free until somebody takes it: prompts must not go to who was quicker than our server."""
        ports = {port for _, port in await trio.to_thread.run_sync(listening, self._family)}
        if address.host and address.port not in ports:
            text = f"another program answers on port {address.port}; the server is started anew on another one"
            raise OctonodeError(text, code="ENGINE_FAILED")

    def _take_ready(self, seen: Seen) -> None:
        if self.phase is not Phase.STARTING:
            return  # told to stop meanwhile
        self.facts, self.sandbox = seen.facts, seen.sandbox
        self.heard_at = trio.current_time()
        self.engine = LoadedEngine(self, seen.facts)
        self._enter(Phase.READY)
        log.info("model %s is loaded by %s (%s)", self.root, seen.facts.build, ", ".join(self.sandbox))

    async def _read_metrics(self) -> None:
        if self._server is None or not self._kind.metrics_path:
            return
        try:
            with trio.move_on_after(HEALTH_SECONDS):
                load = self._kind.read_metrics(await self._server.get_text(self._kind.metrics_path))
                if load is not None and (self.load is None or load.steps != self.load.steps):
                    self.progressed_at = trio.current_time()
                self.load = load or self.load
        except (OctonodeError, ValueError) as error:
            log.debug("the metrics of %s cannot be read: %s", self.root, error)

    async def _weigh(self, process: ServerProcess) -> None:
        """Looking at every process of the machine takes milliseconds: in a thread."""
        while True:
            self._family = await trio.to_thread.run_sync(family, process.pid, self._family)
            self.resident_bytes = await trio.to_thread.run_sync(resident_bytes, self._family) or self.resident_bytes
            await trio.sleep(BEAT_SECONDS)

    def open_call(self, call: Call) -> None:
        self._check_open()
        assert self._nursery is not None
        call.id = next(self._ids)
        self._keep_call(call)
        scope = self._scopes[call.id] = trio.CancelScope()
        self._nursery.start_soon(self._serve, call, scope)

    def close_call(self, call: Call) -> None:
        if self._calls.pop(call.id, None) is not None and call.id in self._scopes:  # else the server is being ended
            self._leaving.add(call.id)
            self._scopes[call.id].cancel()

    async def _serve(self, call: Call, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._answer(call)
        finally:
            del self._scopes[call.id]
        if scope.cancelled_caught:
            self._finish_call(call.id, Finished("cancel", 0, 0))

    async def _answer(self, call: Call) -> None:
        assert self._server is not None
        assert self._seen is not None
        request = call.request
        assert isinstance(request, GenerateRequest), "a server has no skill but chat"
        try:
            end = await requests.run(call, request, self._server, self._seen, self._heard)
        except ServerLost as error:
            await self._judge(call, error)
        except OctonodeError as error:
            self._finish_call(call.id, error)
        except Exception as bug:  # ours, and one request's: without its words, which may quote the prompt
            log.error("an answer of the server of %s failed by a bug: %s", self.root, type(bug).__name__)
            text = f"the engine's answer cannot be read: {type(bug).__name__}"
            self._finish_call(call.id, OctonodeError(text, code="ENGINE_FAILED"))
        else:
            self._heard()
            self._finish_call(call.id, end)

    def _heard(self) -> None:
        self.heard_at = self.progressed_at = trio.current_time()

    async def _judge(self, call: Call, error: ServerLost) -> None:
        """Whether a broken answer was the server's end, which then fails all requests, or this one's alone."""
        with trio.move_on_after(JUDGE_SECONDS):
            await trio.sleep(READY_LOOK_SECONDS)  # a server learns of its engine's end a moment later
            while await self._health() != "well":
                await trio.sleep(READY_LOOK_SECONDS)
            plain = OctonodeError(error.message, code="ENGINE_FAILED")
            self._finish_call(call.id, plain)
            return
        self.kill(f"it does not serve any more ({error.message})")

    def _explain(self, status: int | None) -> OctonodeError:
        """Why it ended, as the error of every request it took along."""
        tail = "" if self._process is None else self._process.stderr_tail
        if self.load_error is not None:
            error = self.load_error
            self._ended = OctonodeError(error.message, code=error.code, detail={**error.detail, "stderr_tail": tail})
        else:
            how, signal_name = ("is gone", "") if status is None else exit_text(status)
            why = f"was ended, since {self.kill_reason}" if self.kill_reason else how
            detail = {"signal": signal_name, "status": status, "stderr_tail": tail}
            self._ended = EngineCrashed(f"the server of {self.root} {why}", detail=detail)
        self._fail_calls(self._ended)
        return self._ended
