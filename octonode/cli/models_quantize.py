"""`octonode models quantize`: a smaller model of one that is here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from octonode.cli.models import Reference, app, describe, open_client
from octonode.cli.output import JsonFlag, emit, shown, size, table
from octonode.errors import ConfigError

if TYPE_CHECKING:
    from octonode.api.schema.quantizing import QuantizeChoices, QuantizeModel, QuantizeOutcome
    from octonode.client import Client
    from octonode.models.quantized import Quantized


def register() -> None:
    """Adds the verb to `octonode models`."""
    app.command("quantize")(quantize)


def quantize(
    reference: Reference,
    to: Annotated[str, typer.Option("--to", metavar="KIND", help="Q4_K_M, Q8_0, INT8, ...; see --list.")] = "",
    name: Annotated[str, typer.Option(help="Its name; the parent's with the kind behind it when left out.")] = "",
    version: Annotated[str, typer.Option(help="Its version; the parent's when left out.")] = "",
    publish: Annotated[bool, typer.Option("--publish", help="Provide it to the network at once.")] = False,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Do not compare it with its parent.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="What can be made of this model here.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a smaller model of one that is here.

    It is a new model that names its parent, with its size and what was lost. Nothing serves it until you ask.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.quantizing import QuantizeModel, choices

    if listed == bool(to):
        raise ConfigError("say what to make, such as --to Q4_K_M, or see what can be made: --list")
    with open_client() as client:
        if listed:
            found = client.do(choices(reference))
            emit(to_json(found), as_json=as_json, text=_choices_text(found))
            return
        asked = QuantizeModel(reference, to, name, version, publish, measure=not no_measure)
        outcome = _perform(client, asked, quiet=as_json)
    emit(to_json(outcome), as_json=as_json, text=_outcome_text(outcome, published=publish))


def _perform(client: Client, asked: QuantizeModel, *, quiet: bool) -> QuantizeOutcome:
    """Leaving, as Ctrl-C does, cancels at the node."""
    from octonode.api.schema.quantizing import quantize as call
    from octonode.cli.run_show import steps

    with steps(f"{asked.reference} to {asked.to}", quiet=quiet) as bar, client.stream(call(asked)) as stream:
        for each in stream:
            bar(each)
    return stream.result.done()


def _choices_text(found: QuantizeChoices) -> str:
    head = f"{found.reference}: {found.format} {found.quantization}".rstrip() + f", {size(found.size_bytes)}"
    if not found.choices:
        return shown(f"{head}\n{found.note}")
    rows = [(each.kind, "no" if each.problem else "yes", each.problem or each.words) for each in found.choices]
    return shown(f"{head}\n{table(('KIND', 'HERE', 'WHAT'), rows)}")


def _outcome_text(outcome: QuantizeOutcome, *, published: bool) -> str:
    model = outcome.model
    lines = [f"made in {outcome.seconds:.1f} s", *describe(model), *quantized_lines(outcome.made)]
    if published:
        lines.append(f"  published  {outcome.records} peers hold records of it")
    if outcome.note:
        lines.append(f"  note       {outcome.note}")
    return shown("\n".join([*lines, f"serve it: octonode models serve {model.reference}@{model.version}"]))


def quantized_lines(made: Quantized | None) -> list[str]:
    """What a model was made of and what that cost, for a person; nothing where it was not made of another."""
    if made is None:
        return []
    lines = [f"  made of    {made.parent}, to {made.kind}", f"  weights    {_weights(made)}"]
    return [*lines, f"  quality    {_quality(made)}"]


def _weights(made: Quantized) -> str:
    parts = [f"{size(made.size_bytes)} of {size(made.parent_bytes)}"]
    if made.ratio_fp32:
        parts += [f"{made.ratio_fp32:.1%} of FP32", f"{made.ratio_fp16:.1%} of FP16"]
    return ", ".join(parts)


def _quality(made: Quantized) -> str:
    if made.measure == "perplexity":
        change = made.quality / made.quality_parent - 1 if made.quality_parent else 0.0
        return f"perplexity {made.quality_parent:.2f} -> {made.quality:.2f} ({change:+.1%}; lower is better)"
    if made.measure == "cosine":
        return f"cosine with the parent's embeddings {made.quality_mean:.4f}, at least {made.quality:.4f}"
    return f"not measured{': ' + made.reason if made.reason else ''}"
