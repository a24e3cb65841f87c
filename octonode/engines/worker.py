"""The child process: one model, one engine, one socket to the daemon. Started as `python -m octonode.engines.worker`.

In order: die with the daemon, read `Load`, set limits, enter the sandbox, and only then import an engine and open the
model. Requests for text run at the same time, as many as the model has slots; more wait here in order. Those for
results go through a batcher (`making`). The process ends when the socket does. It is given no keys, and nothing it says
is believed unchecked (`frame_codec`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn, cast

import trio

from octonode.engines import lora, sandbox
from octonode.engines.adapters.base import Adapter, Maker, make_adapter
from octonode.engines.channel import RECEIVE_BYTES, FrameChannel
from octonode.engines.contract import EngineFacts, EngineRequest, Finished, GenerateRequest, TokenLogprob
from octonode.engines.frame_codec import FrameDecoder
from octonode.engines.frames import (
    TEXT_CHARACTERS_MAX,
    Beat,
    Cancel,
    EndFrame,
    ErrorFrame,
    Load,
    LoadFailed,
    LogprobsFrame,
    PrefillFrame,
    Ready,
    ResultFrame,
    StepFrame,
    Submit,
)
from octonode.engines.making import MEASURE_SECONDS, Making
from octonode.engines.slots import Slots
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import CHAT, WorkRequest, skill_of

BEAT_SECONDS = 1.0
EXIT_LOAD_FAILED = 3
EXIT_NO_LOAD = 4
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> NoReturn:
    """`arguments`: the number of the inherited socket, and the process id of the daemon."""
    descriptor, parent = (int(argument) for argument in arguments)
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the daemon's terminal is the daemon's to handle
    sock = socket.socket(fileno=descriptor)
    load = _read_load(sock)
    layers = [sandbox.limit_resources()]
    if load.sandbox:
        adapters = [path for path, _ in lora.files_of(load.request.options.get(lora.OPTION))]
        access = sandbox.access_for(load.request.model_path, load.temporary_directory, adapters)
        layers += sandbox.enter(access)
    else:
        layers.append("sandbox: off (engines.sandbox = false)")
    status = trio.run(_Worker(sock, load, tuple(layers)).run)
    _exit(status)


def _die_with(parent: int) -> None:
    """SIGKILL when the thread that started us ends, even if we hang or are stopped then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        _exit(EXIT_NO_LOAD)


def _read_load(sock: socket.socket) -> Load:
    decoder = FrameDecoder()
    while True:
        data = sock.recv(RECEIVE_BYTES)
        frames = decoder.feed(data)
        if frames:
            load = frames[0]
            assert isinstance(load, Load), "the first frame is Load"
            return load
        if not data:
            _exit(EXIT_NO_LOAD)


def _exit(status: int) -> NoReturn:
    """Without destructors: engines' threads may still run, and there is nothing to save."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Worker:
    def __init__(self, sock: socket.socket, load: Load, layers: tuple[str, ...]) -> None:
        self._socket = sock
        self._load = load
        self._layers = layers
        self._scopes: dict[int, trio.CancelScope] = {}
        self._making: Making | None = None

    async def run(self) -> int:
        """The exit status, once the daemon closed the line or the model could not be loaded."""
        self._channel = FrameChannel(self._socket)
        status = 0
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._channel.run_writer)
                nursery.start_soon(self._serve, nursery)
                if not await self._open_model():
                    status = EXIT_LOAD_FAILED
                    await self._channel.flush()
                    nursery.cancel_scope.cancel()
                elif self._making is not None:
                    nursery.start_soon(self._making.run)
                while True:
                    await trio.sleep(BEAT_SECONDS)
                    self._channel.send(Beat())
        except* OSError:
            pass  # the daemon is gone
        return status

    async def _open_model(self) -> bool:
        request = self._load.request
        try:
            facts = await self._load_adapter(make_adapter(request.engine, request.category))
        except OctonodeError as error:
            self._channel.send(LoadFailed(error.code, error.message[:TEXT_CHARACTERS_MAX]))
            return False
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            text = f"loading failed: {type(error).__name__}: {error}"
            self._channel.send(LoadFailed("ENGINE_FAILED", text[:TEXT_CHARACTERS_MAX]))
            return False
        self._channel.send(Ready(facts, self._layers))
        return True

    async def _load_adapter(self, adapter: Adapter | Maker) -> EngineFacts:
        request = self._load.request
        facts = await adapter.load(request, self._load.temporary_directory)
        if CHAT in facts.skills:
            self._adapter = cast(Adapter, adapter)
        else:
            self._making = Making(cast(Maker, adapter))
            seconds_max = float(request.options.get("measure_seconds", MEASURE_SECONDS))
            facts = await self._making.measured(facts, seconds_max)
        self._slots = Slots(facts.parallel)
        self._turn = trio.CapacityLimiter(facts.parallel)
        return facts

    async def _serve(self, nursery: trio.Nursery) -> None:
        """Reads frames until the end of the stream, then ends the process, whatever still runs."""
        while (frames := await self._channel.receive()) is not None:
            for frame in frames:
                if isinstance(frame, Submit):
                    scope = self._scopes[frame.id] = trio.CancelScope()
                    nursery.start_soon(self._run_request, frame.id, frame.request, scope)
                elif isinstance(frame, Cancel) and frame.id in self._scopes:
                    self._scopes[frame.id].cancel()
        _exit(0)

    async def _run_request(self, id_: int, request: EngineRequest, scope: trio.CancelScope) -> None:
        output = _Output(id_, self._channel)
        end: EndFrame | ErrorFrame = EndFrame(id_, "cancel", 0, output.count, 0)
        with scope:
            try:
                if isinstance(request, GenerateRequest):
                    done = await self._generate(request, output)
                else:
                    done = await self._make(request, output)
                end = EndFrame(id_, done.reason, done.tokens_in, done.tokens_out, done.tokens_cached)
            except OctonodeError as error:
                end = ErrorFrame(id_, error.code, error.message[:TEXT_CHARACTERS_MAX])
            except Exception as error:  # a bug in an adapter costs one request, not the others'
                # The traceback says where, its message is left out: it may quote the prompt.
                where = error.__traceback__
                while where is not None and where.tb_next is not None:
                    where = where.tb_next
                place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else "?"
                print(f"request failed: {type(error).__name__} at {place}", file=sys.stderr, flush=True)
                end = ErrorFrame(id_, "ENGINE_FAILED", f"the engine failed: {type(error).__name__}")
        del self._scopes[id_]
        self._channel.send(end)

    async def _generate(self, request: GenerateRequest, output: _Output) -> Finished:
        async with self._turn:
            slot = self._slots.take(request.cache_scope)
            try:
                return await self._adapter.generate(request, slot, output)
            finally:
                self._slots.give_back(slot)

    async def _make(self, request: WorkRequest, output: _Output) -> Finished:
        assert self._making is not None
        result = await self._making.make(request, output.step)
        self._channel.send(ResultFrame(output.id, skill_of(request).name, result))
        return Finished("stop", getattr(result, "tokens_in", 0), 0)


class _Output:
    """Events of one request as frames."""

    def __init__(self, id_: int, channel: FrameChannel) -> None:
        self.id = id_
        self._channel = channel
        self.count = 0
        self.room = channel.room
        self.flush = channel.flush

    def prefill(self, done_tokens: int, total_tokens: int) -> None:
        self._channel.send(PrefillFrame(self.id, done_tokens, total_tokens))

    def step(self, done: int, total: int) -> None:
        self._channel.send(StepFrame(self.id, done, total))

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> None:
        if tokens:
            self._channel.send(LogprobsFrame(self.id, tuple(tokens)))

    def pieces(self, pieces: Sequence[str]) -> None:
        if pieces:
            self.count += len(pieces)
            # Half a surrogate pair is no Unicode and could not be written
            whole = tuple(p if p.isascii() else p.encode("utf-8", "replace").decode() for p in pieces)
            self._channel.send_pieces(self.id, whole)


if __name__ == "__main__":
    main(sys.argv[1:])
