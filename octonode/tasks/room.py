"""The memory of this machine as the loaded models share it: a seat for each, and who leaves for whom.

`engines.placement` decides, this remembers. What the machine has and what a model needs is told by a `Memory`, which
the node hands over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import trio

from octonode.engines.contract import LoadRequest
from octonode.engines.placement import RAM, Model, Seat, Shortage, Space, World, plan
from octonode.errors import OctonodeError
from octonode.hardware.devices import NO_GPU
from octonode.models.requirements import Fit, gigabytes, tokens
from octonode.tasks.resident import ResolvedModel

NAMED_MAX: Final = 3
"""Models that a refusal names as what could be unloaded."""


@dataclass(frozen=True, slots=True)
class Use:
    """How a loaded model is used."""

    reference: str
    busy: bool
    pinned: bool
    idle_seconds: float


class Memory(Protocol):
    """What there is, and what a model takes of it."""

    async def spaces(self, seats: Mapping[str, Seat]) -> tuple[Space, ...]:
        """GPUs and the machine's memory as they are now; what the models of `seats` use is not counted as others'."""
        ...

    async def need(self, model: ResolvedModel, request: LoadRequest) -> Model:
        """What loading it takes, on GPUs and on the CPU."""
        ...

    async def fit(self, model: ResolvedModel, request: LoadRequest, short: Shortage) -> Fit:
        """The same against what is free for it: tells what would fit instead."""
        ...


class NoRoom(OctonodeError):
    """A model needs more memory than there is. `detail` holds the bytes; the message says what to do."""

    code = "MODEL_UNAVAILABLE"

    def __init__(self, message: str, short: Shortage, *, asked: bool) -> None:
        detail = {"need_bytes": short.need_bytes, "free_bytes": short.free_bytes, "missing_bytes": short.missing_bytes}
        super().__init__(message, detail=detail)
        self.held = short.reason == "held"
        """Room comes by itself once other models leave."""
        self.asked = asked
        """Idle models were looked at too."""


@dataclass(frozen=True, slots=True)
class Taken:
    request: LoadRequest
    """With the devices it was given."""
    evicted: tuple[str, ...]
    """Roots of models that have lost their seats for it and are to be unloaded first."""


class Room:
    """Seats by model root. `use` tells of the models that have one."""

    def __init__(self, memory: Memory, *, gpu_reserve_bytes: int = 0, evict_idle_seconds: float = 0.0) -> None:
        self._memory = memory
        self._gpu_reserve_bytes = gpu_reserve_bytes
        self._evict_idle_seconds = evict_idle_seconds
        self._seated: dict[str, Model] = {}
        self._leaving: dict[str, Model] = {}
        self._lock = trio.Lock()

    def seat(self, root: str) -> Seat | None:
        model = self._seated.get(root)
        return None if model is None else model.seat

    @property
    def leaving(self) -> tuple[str, ...]:
        """Models without a seat whose process may still live, and hold its memory until it is `gone`."""
        return tuple(self._leaving)

    async def take(
        self, model: ResolvedModel, request: LoadRequest, *, asked: bool, use: Callable[[str], Use]
    ) -> Taken | None:
        """A seat for it, which it keeps until `leave`. Raises NoRoom. Cancelled, it has taken nothing.

        Only where it is `asked` for do idle models lose their seats for it. None: there may be room once those that
        are `leaving` are gone.
        """
        need = await self._memory.need(model, request)
        async with self._lock:
            self._seated.pop(model.root, None)
            seats = {root: each.seat for root, each in (*self._leaving.items(), *self._seated.items()) if each.seat}
            spaces = await self._memory.spaces(seats)
            await trio.lowlevel.checkpoint()  # cancelled meanwhile: nothing is taken
            done = plan(self._world(spaces, replace(need, asked=asked), use))
            seat = done.seats.get(model.root)
            if seat is None and self._leaving:
                return None
            if seat is None:
                short = done.shortages[model.root]
                fit = await self._memory.fit(model, request, short)
                holders = [use(root).reference for root in short.holders if root in self._seated]
                raise NoRoom(in_words(short, fit, holders, request.parallel), short, asked=asked)
            for root in done.evictions:
                self.leave(root)
            self._seated[model.root] = replace(need, seat=seat)
        has_gpus = any(space.kind in need.kinds for space in spaces if space.id != RAM)
        devices = seat.devices or ((NO_GPU,) if has_gpus else ())
        return Taken(replace(request, devices=devices), done.evictions)

    def _world(self, spaces: tuple[Space, ...], wish: Model, use: Callable[[str], Use]) -> World:
        models = [wish]
        for root, model in self._seated.items():
            how = use(root)
            models.append(replace(model, busy=how.busy, pinned=how.pinned, idle_seconds=how.idle_seconds))
        models += [replace(model, root=f"{root} (leaving)", busy=True) for root, model in self._leaving.items()]
        return World(spaces, tuple(models), self._gpu_reserve_bytes, self._evict_idle_seconds)

    def leave(self, root: str) -> bool:
        """It is to be unloaded, or could not be loaded. False where it had no seat."""
        model = self._seated.pop(root, None)
        if model is not None:
            self._leaving[root] = model
        return model is not None

    def gone(self, root: str) -> None:
        """Its process has ended, or it never had one."""
        self._leaving.pop(root, None)


def in_words(short: Shortage, fit: Fit, holders: list[str], parallel: int = 1) -> str:
    """`needs 45.2 GB of GPU memory and 12.1 GB are free: 33.1 GB are missing; unload ...`."""
    if short.reason == "no_gpu":
        return "its engine needs a GPU and none is here; ask a node that has one, or take a GGUF of it"
    what = "GPU memory" if short.where == "gpu" else "memory"
    needed, free = gigabytes(short.need_bytes), gigabytes(short.free_bytes)
    line = f"it needs {needed} of {what} and {free} are free for it: {gigabytes(short.missing_bytes)} are missing"
    ways = []
    if short.reason == "held":
        named = ", ".join(f"octonode models serve {each} --stop" for each in holders[:NAMED_MAX])
        ways.append(f"unload what has the rest ({named})")
    elif short.reason == "others":
        ways.append(f"end the other programs that use {what}")
    if fit.smaller:
        ways.append(f"serve a smaller quantization ({fit.smaller[0]} would fit)")
    if 0 < fit.largest_context_tokens < fit.context_tokens:
        ways.append(f"lower engines.context_tokens (to {tokens(fit.largest_context_tokens)})")
    fewer_bytes = fit.need.cache_bytes * (parallel - 1) // max(1, parallel)
    if fewer_bytes and fewer_bytes >= short.missing_bytes:
        ways.append("lower engines.parallel")
    if not ways:
        ways.append("serve a smaller model, or ask a node that has more")
    return f"{line}; {', or '.join(ways)}"
