"""`octonode models fit`: what models need, and which machines have it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octonode import config as settings
from octonode.cli.models import app, open_client
from octonode.cli.output import JsonFlag, emit, shown, size, table
from octonode.errors import ConfigError, NotFound, OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema import ModelFacts
    from octonode.api.schema.fitting import FitFacts, FitMatrix, InspectionFacts
    from octonode.client import Client


def register() -> None:
    """Adds the verb to `octonode models`."""
    app.command("fit")(fit)


def fit(
    reference: Annotated[str, typer.Argument(help="A model by reference; all models known here when left out.")] = "",
    file: Annotated[
        Path | None, typer.Option("--file", help="A model file or directory instead; needs no daemon.")
    ] = None,
    context: Annotated[
        int, typer.Option("--context", min=0, metavar="TOKENS", help="Tokens of context; 8192, or the model's limit.")
    ] = 0,
    streams: Annotated[int, typer.Option("--streams", min=1, max=1024, help="Answers at the same time.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """What models need, and which machines have it.

    Against this machine as it is now and the least of each tier, with what blocks a model and what would fit.

    Exits with 0 whether it fits or not; scripts read `fits` of --json.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.fitting import CONTEXT_TOKENS_MAX
    from octonode.api.schema.fitting import fit as asked

    if context > CONTEXT_TOKENS_MAX:
        raise ConfigError(f"--context is at most {CONTEXT_TOKENS_MAX}")
    if file is not None:
        if reference:
            raise ConfigError("name a model or a --file, not both")
        found = _of_file(file, context, streams)
    else:
        with open_client() as client:
            found = client.do(asked(reference, context, streams))
    one = reference or file is not None
    emit(to_json(found), as_json=as_json, text=_of_one(found) if one else _of_all(found))


def _of_file(path: Path, context: int, streams: int) -> FitMatrix:
    from octonode.models.adding import collect
    from octonode.models.inspecting import inspect_paths
    from octonode.node.fitting import fit_of_file

    if not path.exists():
        raise NotFound(f"{path} is not there")
    items = collect(path)
    size_bytes = sum(item.stat().st_size for _, item in items)
    info = inspect_paths(items, signed=True)
    return fit_of_file(info, path, size_bytes, settings.home_from(os.environ), context, streams)


def _of_one(found: FitMatrix) -> str:
    model = found.models[0]
    lines = [shown(_title(model)), ""]
    if model.refused:
        return "\n".join([*lines, shown(f"  not loaded: {model.refused}")])
    lines.append(table(("WHERE", "FITS", "WHY"), [(r.machine, "yes" if r.fits else "no", r.words) for r in model.rows]))
    here = model.rows[0]
    parts = (("weights", here.weights_bytes), ("cache", here.cache_bytes), ("overhead", here.overhead_bytes))
    context = f" ({here.context_tokens} tokens)" if here.context_tokens else ""
    lines += ["", f"  of which    {', '.join(f'{name} {size(count)}' for name, count in parts)}{context}"]
    if here.largest_context_tokens:
        lines.append(f"  context     {here.largest_context_tokens} tokens would fit on {here.machine}")
    if here.smaller:
        lines.append(f"  smaller     {', '.join(here.smaller)} of this model would fit")
    if not model.exact:
        lines.append("  note        its headers say too little: the cache is an estimate")
    others = [each for each in found.fitting if each != model.reference]
    if not here.fits and others:
        lines.append(f"  instead     {', '.join(others[:5])} would run here")
    return "\n".join(lines)


def _title(model: FitFacts) -> str:
    millions = model.parameters / 1e6
    parameters = f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions:.1f}M"
    parameters = f"{parameters} parameters" if model.parameters else ""
    limit = f"{model.context_tokens} tokens at most" if model.context_tokens else ""
    parts = (model.format, model.quantization, parameters, size(model.size_bytes), limit)
    return f"{model.reference}: {', '.join(part for part in parts if part)}"


def _of_all(found: FitMatrix) -> str:
    machine = found.machine
    memory = f"{size(machine.vram_bytes)} VRAM" if machine.vram_bytes else f"{size(machine.memory_bytes)} RAM, no GPU"
    head = f"this machine: {memory}, tier {machine.tier}, runs {', '.join(machine.runs) or 'nothing yet'}"
    tiers = [row.machine for row in found.models[0].rows[1:]] if found.models and found.models[0].rows else []
    headings = ("MODEL", "NEEDS HERE", *(name.upper() for name in tiers))
    rows: list[tuple[str, ...]] = []
    for each in found.models:
        if each.refused:
            rows.append((shown(each.reference), shown(f"not loaded: {each.refused}"[:80])))
            continue
        here, *others = each.rows
        rows.append((shown(each.reference), here.words, *("yes" if row.fits else "no" for row in others)))
    cells = [(*row, *[""] * (len(headings) - len(row))) for row in rows]
    return f"{head}\n{table(headings, cells)}\n{len(found.fitting)} of {len(found.models)} run here as it is now"


def inspected(client: Client, model: ModelFacts) -> tuple[dict[str, Any] | None, list[str]]:
    """(as JSON, as lines) what the headers of a model say; nothing for one that is not wholly here."""
    from octonode.api.schema import to_json
    from octonode.api.schema.fitting import inspect

    if not model.complete:
        return None, []
    try:
        found = client.do(inspect(f"cid:{model.root}"))
    except OctonodeError as error:
        if error.code != "FORMAT_REFUSED":
            raise
        return {"refused": error.message}, [shown(f"  REFUSED    {error.message}")]
    return to_json(found), inspection_lines(found)


def inspection_lines(found: InspectionFacts) -> list[str]:
    """What `models show` says of a model's headers."""
    numbers = (
        ("layers", found.layers),
        ("heads", found.heads),
        ("KV heads", found.kv_heads),
        ("head dimension", found.head_dim),
        ("embedding", found.embedding),
        ("vocabulary", found.vocab),
        ("experts", found.experts),
    )
    lines = [f"  category   {found.category}"]
    if found.parameters:
        lines.append(f"  parameters {found.parameters:,}, {size(found.weights_bytes)} of weights")
    if any(count for _, count in numbers):
        lines.append(f"  network    {', '.join(f'{name} {count}' for name, count in numbers if count)}")
    if found.made_with:
        lines.append(f"  made with  {found.made_with}")
    lines.append(
        f"  opens      {found.opens or 'the directory'}{', with a chat template' if found.chat_template else ''}"
    )
    lines += [f"  note       {note}" for note in found.notes]
    return [shown(line) for line in lines]
