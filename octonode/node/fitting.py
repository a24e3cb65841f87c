"""What the models known here need, against this machine and each tier: `api.ports.Fitting`, and the same offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from octonode.api.schema.fitting import FitFacts, FitMatrix, FitRow, InspectionFacts, MachineFacts
from octonode.config import EnginesConfig, load
from octonode.engines.select import ENGINES, engine_for
from octonode.errors import NotFound, OctonodeError
from octonode.hardware.facts import Gpu, Hardware
from octonode.hardware.probe import probe
from octonode.models.claims import subject_of_manifest
from octonode.models.formats import FormatInfo
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest
from octonode.models.requirements import Fit, Machine, Subject, in_words, judge, subject_of, tier_machines
from octonode.node.gate import Gate
from octonode.node.resolving import Resolver
from octonode.node.shelf import Held, Shelf

MODELS_MAX: Final = 200
"""In one matrix; those held come first."""
THIS_MACHINE: Final = "this machine"
FORMATS: Final = ("gguf", "safetensors", "onnx", "tensorrt", "scripted")


class Fitting:
    """Answers from headers where the model is here, and from its manifest where it is not."""

    def __init__(
        self,
        *,
        home: Path,
        library: Library,
        shelf: Shelf,
        resolver: Resolver,
        gate: Gate,
        settings: EnginesConfig | None = None,
    ) -> None:
        self._home = home
        self._settings = settings or EnginesConfig()
        self._library = library
        self._shelf = shelf
        self._resolver = resolver
        self._gate = gate

    async def fit(self, reference: str, *, context_tokens: int, streams: int) -> FitMatrix:
        """Of one model, or of all that are known here where `reference` is empty. Raises as `Resolver` does."""
        hardware = await trio.to_thread.run_sync(probe, self._home)
        machine = machine_of(hardware, engine_problems(self._settings.pythons))
        known = [await self._one(reference)] if reference else await self._all()
        facts = [_judged(each, machine, context_tokens, streams, self._settings) for each in known]
        if reference:
            others = [each for each in await self._all() if each.root != known[0].root]
            facts += [_judged(each, machine, 0, streams, self._settings) for each in others]
        return matrix_of(machine, hardware, facts[:1] if reference else facts, facts)

    async def inspect(self, reference: str) -> InspectionFacts:
        """What the headers of a model held here say. Raises MODEL_NOT_FOUND, FormatRefused."""
        root, _ = await self._resolver.root_and_manifest(reference)
        held = self._shelf.get(root.text)
        if held is None or not held.complete:
            raise NotFound(
                f"{reference} is not wholly here; fetch it: octonode models fetch {reference}", code="MODEL_NOT_FOUND"
            )
        return inspection(await self._gate.info(root.text), held.name or f"cid:{root}", root.text)

    async def _one(self, reference: str) -> Known:
        root, signed = await self._resolver.root_and_manifest(reference)
        held = self._shelf.get(root.text)
        return await self._of_held(held) if held is not None else _of_manifest(root.text, signed, reference)

    async def _all(self) -> list[Known]:
        held = self._shelf.all()
        here = {each.root for each in held}
        listed = await trio.to_thread.run_sync(self._library.catalogue.all)
        latest = {signed.manifest.root.text: signed for signed in listed if signed.manifest.root.text not in here}
        found = [await self._of_held(each) for each in held[:MODELS_MAX]]
        found += [_of_manifest(root, signed, "") for root, signed in list(latest.items())[: MODELS_MAX - len(found)]]
        return found

    async def _of_held(self, held: Held) -> Known:
        reference = held.name or f"cid:{held.root}"
        if not held.complete:
            missing = held.entry.row.size_bytes - held.held_bytes
            return _of_manifest(held.root, held.signed, reference, missing_bytes=missing)
        try:
            info = await self._gate.info(held.root)
        except OctonodeError as error:
            return Known(held.root, Subject(reference, "", 0, held.entry.row.size_bytes, known=False), error.message)
        return Known(held.root, subject_of(info, reference, held.entry.row.size_bytes))


@dataclass(frozen=True, slots=True)
class Known:
    """A model as far as its needs are known here."""

    root: str
    subject: Subject
    refused: str = ""
    """Why it is never loaded."""


def _of_manifest(root: str, signed: SignedManifest | None, reference: str, *, missing_bytes: int = -1) -> Known:
    if signed is None:
        return Known(root, Subject(reference or f"cid:{root}", "", 0, 0, known=False))
    manifest = signed.manifest
    named = f"{manifest.publisher}/{manifest.name}"
    missing = manifest.size_bytes if missing_bytes < 0 else missing_bytes
    return Known(root, subject_of_manifest(manifest, named, missing_bytes=missing))


def engine_problems(pythons: Sequence[str] = ()) -> Mapping[str, str]:
    """Format -> empty where an engine here runs some of it, else what to do."""
    found = {}
    for name in dict.fromkeys((*FORMATS, *(each for row in ENGINES for each in row.formats))):
        rows = [row for row in ENGINES if name in row.formats]
        problems = [_problem(name, row.categories[0], "".join(row.architectures), pythons) for row in rows]
        found[name] = "" if "" in problems else problems[0] if problems else _problem(name, "llm", "", pythons)
    return found


def _problem(model_format: str, category: str, architecture: str, pythons: Sequence[str], default: str = "auto") -> str:
    """Empty where an engine for such a model is installed, else what to do."""
    try:
        engine_for(model_format, default, category=category, architecture=architecture, pythons=pythons)
    except OctonodeError as error:
        return error.message
    return ""


def machine_of(hardware: Hardware, runs: Mapping[str, str]) -> Machine:
    """This machine as `requirements` sees it: the GPUs of the vendor that has most, as in the tiers."""
    gpus = _together(hardware)
    used = [gpu.memory_used_bytes for gpu in gpus]
    vram = hardware.usable_vram_bytes
    known = [count for count in used if count is not None]
    capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability]
    return Machine(
        THIS_MACHINE,
        vram_bytes=vram,
        memory_bytes=hardware.memory_bytes,
        vram_free_bytes=max(0, vram - sum(known)) if known else None,
        memory_free_bytes=hardware.memory_available_bytes,
        disk_free_bytes=hardware.disk_free_bytes,
        compute_capability=min(capabilities, default=None),
        runs=runs,
    )


def _together(hardware: Hardware) -> Sequence[Gpu]:
    whole = [gpu for gpu in hardware.gpus if not gpu.partitioned]
    sums: dict[str, int] = {}
    for gpu in whole:
        sums[gpu.vendor] = sums.get(gpu.vendor, 0) + (gpu.memory_bytes or 0)
    best = max(sums, key=lambda vendor: sums[vendor], default="")
    return [gpu for gpu in whole if gpu.vendor == best] if sums.get(best) == hardware.usable_vram_bytes else []


def _judged(known: Known, machine: Machine, context_tokens: int, streams: int, settings: EnginesConfig) -> FitFacts:
    subject = known.subject
    if known.subject.known:  # the engine is that of this model: a format has several
        problem = _problem(subject.format, subject.category, subject.architecture, settings.pythons, settings.default)
        machine = replace(machine, runs={subject.format: problem})
    machines = (machine, *tier_machines())
    fits = [] if known.refused else [judge(subject, each, context_tokens, parallel=streams) for each in machines]
    return FitFacts(
        reference=subject.reference,
        root=known.root,
        format=subject.format,
        quantization=subject.quantization,
        parameters=subject.shape.parameters,
        size_bytes=subject.size_bytes,
        context_tokens=subject.context_tokens,
        exact=subject.exact and subject.known,
        refused=known.refused,
        rows=tuple(_row(each) for each in fits),
    )


def _row(fit: Fit) -> FitRow:
    return FitRow(
        machine=fit.machine,
        fits=fit.fits,
        words=in_words(fit),
        context_tokens=fit.context_tokens,
        place=fit.place,
        need_bytes=fit.need.total_bytes,
        of_bytes=fit.of_bytes,
        weights_bytes=fit.need.weights_bytes,
        cache_bytes=fit.need.cache_bytes,
        overhead_bytes=fit.need.overhead_bytes,
        largest_context_tokens=fit.largest_context_tokens,
        blocks=tuple(block.kind for block in fit.blocks),
        smaller=fit.smaller,
    )


def matrix_of(
    machine: Machine, hardware: Hardware, shown: Sequence[FitFacts], compared: Sequence[FitFacts]
) -> FitMatrix:
    """`compared` are those among which the fitting ones are named."""
    capability = machine.compute_capability
    facts = MachineFacts(
        name=machine.name,
        tier=hardware.tier.name,
        vram_bytes=machine.vram_bytes,
        vram_free_bytes=machine.vram_free_bytes or 0,
        memory_bytes=machine.memory_bytes,
        memory_free_bytes=machine.memory_free_bytes or 0,
        disk_free_bytes=machine.disk_free_bytes or 0,
        compute_capability=".".join(map(str, capability)) if capability else "",
        runs=tuple(name for name, problem in (machine.runs or {}).items() if not problem),
    )
    fitting = tuple(each.reference for each in compared if each.rows and each.rows[0].fits)
    return FitMatrix(facts, tuple(shown), fitting)


def fit_of_file(
    info: FormatInfo, path: Path, size_bytes: int, home: Path, context_tokens: int, streams: int
) -> FitMatrix:
    """The matrix of one file or directory that no daemon knows. Blocking."""
    hardware = probe(home)
    settings = load(home=home).engines
    machine = machine_of(hardware, engine_problems(settings.pythons))
    facts = _judged(Known("", subject_of(info, path.name, size_bytes)), machine, context_tokens, streams, settings)
    return matrix_of(machine, hardware, [facts], [facts])


def inspection(info: FormatInfo, reference: str, root: str) -> InspectionFacts:
    """An inspection for the faces."""
    shape = info.shape
    return InspectionFacts(
        reference=reference,
        root=root,
        format=info.format,
        category=info.category,
        architecture=info.architecture,
        quantization=info.quantization,
        parameters=shape.parameters,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        embedding=shape.embedding,
        vocab=shape.vocab,
        experts=shape.experts,
        context_tokens=info.context_tokens,
        weights_bytes=info.weights_bytes,
        opens=info.opens,
        made_with=info.made_with,
        compute_capability=info.compute_capability,
        chat_template=bool(info.chat_template_sha256),
        notes=info.notes,
        files=dict(info.files),
    )
