"""What this machine's memory is and what a model takes of it: `tasks.room.Memory`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Protocol

import psutil
import trio

from octonode.config import Config, EnginesConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.installing import gpu_kinds
from octonode.engines.placement import DEVICES_MAX, RAM, Model, Seat, Shortage, Space
from octonode.engines.select import BY_NAME, python_for
from octonode.engines.supervisor import WorkerStatus
from octonode.hardware.devices import INTERFACES, Device, devices_of
from octonode.hardware.live import Reading
from octonode.hardware.probe import memory
from octonode.models.formats import FormatInfo
from octonode.models.requirements import (
    BATCH_TOKENS,
    GPU_PROCESS_BYTES,
    PROCESS_BYTES,
    Fit,
    Machine,
    Subject,
    judge,
    need_of,
    subject_of,
)
from octonode.tasks.resident import ResolvedModel

SPLITTING = ("llama", "llama-cpp-python", "transformers")
"""Workers' engines that spread one model over several GPUs by themselves."""
READS_NOTHING = ("scripted", "probe")
GPU_BATCH_TOKENS = 512
"""Taken in at a time on a GPU where the settings do not say: what llama.cpp is loaded with at first."""
ELSEWHERE = "openai-server"
"""An engine that somebody else runs: its memory is not ours to give."""


class Inspected(Protocol):
    """`node.gate.Gate`."""

    async def info(self, root: str) -> FormatInfo: ...


class Workers(Protocol):
    """`engines.supervisor.Supervisor`."""

    def note_gpu_memory(self, by_process: Mapping[int, int]) -> None: ...

    def status(self) -> list[WorkerStatus]: ...


class Readings(Protocol):
    """`node.gpus.Gpus`."""

    async def read(self) -> Reading: ...


class MachineMemory:
    """Reads the machine anew each time it is asked."""

    def __init__(
        self,
        *,
        gate: Inspected,
        workers: Workers,
        gpus: Readings,
        settings: EnginesConfig,
        server_devices: Mapping[str, int] | None = None,
        server_machines: Mapping[str, int] | None = None,
    ) -> None:
        """`server_devices`: of engines that are servers, how many GPUs of this machine they are configured for;
        `server_machines`: over how many machines they split a model."""
        self._server_devices = server_devices or {}
        self._server_machines = server_machines or {}
        self._gate = gate
        self._workers = workers
        self._gpus = gpus
        self._settings = settings
        self._kinds: dict[str, tuple[str, ...]] = {}
        """Of engines that have been loaded here: what they really used."""

    async def spaces(self, seats: Mapping[str, Seat]) -> tuple[Space, ...]:
        reading = await self._gpus.read()
        self._workers.note_gpu_memory(reading.process_bytes)
        workers = {each.model_root: each for each in self._workers.status()}
        self._learn(workers)
        total_bytes, available_bytes = await trio.to_thread.run_sync(memory)
        pids = [workers[root].pid for root, seat in seats.items() if not seat.devices and root in workers]
        own_bytes = await trio.to_thread.run_sync(_private_bytes, pids)
        found = [
            Space(
                device.id,
                device.memory_bytes,
                max(0, device.memory_used_bytes - _own_bytes(device.id, seats, workers)),
                INTERFACES[device.vendor],
                device.alone,
            )
            for device in self._devices(reading)
        ]
        ram = Space(RAM, total_bytes, max(0, total_bytes - available_bytes - own_bytes))
        return (*found, ram)

    def _devices(self, reading: Reading) -> tuple[Device, ...]:
        return devices_of(reading.gpus, os.environ)

    def _learn(self, workers: Mapping[str, WorkerStatus]) -> None:
        """An engine that is loaded says where it runs, which its package may not have told."""
        for worker in workers.values():
            if worker.facts is not None:
                backend = worker.facts.backend.lower()
                known = {"cuda": "cuda", "rocm": "hip", "hip": "hip", "metal": "metal", "mps": "metal"}
                used = tuple(kind for name, kind in known.items() if name in backend)
                self._kinds[worker.engine] = tuple(dict.fromkeys(used))

    async def need(self, model: ResolvedModel, request: LoadRequest) -> Model:
        if request.engine in READS_NOTHING:
            return Model(model.root, ram_bytes=PROCESS_BYTES)
        if request.engine == ELSEWHERE:
            return Model(model.root, ram_bytes=0)
        subject = await self._subject(model)
        own_python = bool(python_for(request.engine, self._settings.pythons))
        kinds = self._kinds.get(request.engine)
        if kinds is None:
            kinds = await trio.to_thread.run_sync(lambda: gpu_kinds(request.engine, elsewhere=own_python))
        server = _is_server(request.engine)
        wanted = self._server_devices.get(request.engine, 0) if server else 0
        machines = self._server_machines.get(request.engine, 1)
        return Model(
            model.root,
            gpu_bytes=_need(subject, request, "vram", machines) if kinds else None,
            ram_bytes=None if subject.format == "tensorrt" else _need(subject, request, "ram", machines),
            kinds=kinds,
            device_bytes=GPU_PROCESS_BYTES,
            devices_min=wanted or 1,
            devices_max=wanted or (DEVICES_MAX if request.engine in SPLITTING else 1),
            exclusive=server,
        )

    async def fit(self, model: ResolvedModel, request: LoadRequest, short: Shortage) -> Fit:
        on_gpu = short.where == "gpu"
        machine = Machine(
            "what is free here",
            vram_bytes=short.free_bytes if on_gpu else 0,
            memory_bytes=0 if on_gpu else short.free_bytes,
        )
        subject = Subject(model.root, model.format, PROCESS_BYTES, PROCESS_BYTES)
        if request.engine not in READS_NOTHING:
            subject = await self._subject(model)
        return judge(subject, machine, request.context_tokens, parallel=_contexts(request))

    async def _subject(self, model: ResolvedModel) -> Subject:
        info = await self._gate.info(model.root)
        subject = subject_of(info, model.name or f"cid:{model.root}", model.size_bytes or info.weights_bytes)
        return replace(subject, category=model.category)


def _need(subject: Subject, request: LoadRequest, place: Literal["vram", "ram"], machines: int = 1) -> int:
    """On this machine, where as many share the layers."""
    guess = GPU_BATCH_TOKENS if place == "vram" else BATCH_TOKENS  # measured once it is loaded
    batch = request.options.get("prefill_chunk_tokens") or guess
    need = need_of(subject, request.context_tokens, place=place, parallel=_contexts(request), batch_tokens=int(batch))
    return -(-(need.weights_bytes + need.cache_bytes) // machines) + need.overhead_bytes


def _contexts(request: LoadRequest) -> int:
    """Whole contexts that there must be room for: a server pages its cache, starts with one, and lets others wait."""
    return 1 if _is_server(request.engine) else request.parallel


def _is_server(engine: str) -> bool:
    row = BY_NAME.get(engine)
    return row is not None and row.where == "server"


def server_devices(config: Config) -> dict[str, int]:
    """GPUs of this machine that each kind of server takes. Over Ray each machine has one group of layers."""
    vllm, tensorrt = config.vllm, config.tensorrt_llm
    return {
        "vllm": vllm.tensor_parallel_size * vllm.pipeline_parallel_size // server_machines(config)["vllm"],
        "tensorrt-llm": tensorrt.tensor_parallel_size * tensorrt.pipeline_parallel_size,
    }


def server_machines(config: Config) -> dict[str, int]:
    """Machines over which each kind of server splits a model, docs/vllm-ray.md: this one holds its share alone."""
    over_ray = config.vllm.distributed_executor_backend == "ray"
    return {"vllm": max(1, config.vllm.pipeline_parallel_size) if over_ray else 1}


def _own_bytes(device: str, seats: Mapping[str, Seat], workers: Mapping[str, WorkerStatus]) -> int:
    """What the processes of seated models hold of a device, as far as it can be told.

    A driver tells the bytes of a process over all GPUs: they are taken to lie as the seat says. Where it tells none
    though the model is loaded, as in a container, the seat itself is what counts.
    """
    found = 0
    for root, seat in seats.items():
        shares, worker = dict(seat.shares), workers.get(root)
        if worker is None or device not in shares:
            continue
        if worker.gpu_bytes:
            found += worker.gpu_bytes * shares[device] // max(1, sum(shares.values()))
        elif worker.state in ("ready", "stopping"):
            found += shares[device]
    return found


def _private_bytes(pids: list[int]) -> int:
    """Memory of processes and their children that nobody else has: without files they map, which can be dropped."""
    found = 0
    for pid in pids:
        try:
            first = psutil.Process(pid)
            for each in (first, *first.children(recursive=True)):
                info = each.memory_info()
                found += max(0, info.rss - getattr(info, "shared", 0))
        except (psutil.Error, ValueError):
            continue  # it ended meanwhile, or was never started
    return found
