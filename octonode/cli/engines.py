"""`octonode engines` and `octonode bench local`: what this machine runs, and how fast."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from octonode.cli.models import open_client
from octonode.cli.output import JsonFlag, emit, table
from octonode.errors import OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema.engines import EngineFacts, LoadedModel, Speed

bench_app = typer.Typer(help="Measure what is loaded here.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.command("engines")(engines)
    app.add_typer(bench_app, name="bench")


def engines(as_json: JsonFlag = False) -> None:
    """The engines of this node, and the speed of its models.

    For an engine that is not installed, what to type for it here.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.engines import list_engines

    with open_client() as client:
        found = client.do(list_engines())
    rows = [_engine_row(each) for each in found.engines]
    text = table(("ENGINE", "RUNS", "SKILLS", "ON", "STATE"), rows)
    if found.loaded:
        text += "\n\n" + _loaded_table(found.loaded)
    emit(to_json(found), as_json=as_json, text=text)


@bench_app.command("local")
def local(
    model: Annotated[str, typer.Argument(help="A loaded model by reference; all of them when left out.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Measure loaded models anew.

    The first token at two lengths of prompt, decoding at one and at many streams, results a second of other skills.

    Takes some seconds each, and gives way to whoever asks for the model.
    """
    from octonode.api.schema import to_json
    from octonode.api.schema.engines import list_engines, measure_model

    with open_client() as client:
        loaded = client.do(list_engines()).loaded
        wanted = [model] if model else [each.reference for each in loaded if each.state == "ready"]
        if not wanted:
            raise OctonodeError(
                "no model is loaded here; load one: octonode models serve PUBLISHER/NAME", code="MODEL_NOT_FOUND"
            )
        found = []
        for reference in wanted:
            if not as_json and sys.stderr.isatty():
                print(f"measuring {reference} ...", file=sys.stderr)
            found.append(client.do(measure_model(reference)))
    emit({"loaded": to_json(tuple(found))}, as_json=as_json, text=_loaded_table(tuple(found)))


def _engine_row(engine: EngineFacts) -> tuple[str, ...]:
    on = ",".join(engine.backends) or "cpu"
    state = engine.install or "installed"
    if engine.tested:
        state += f" ({engine.tested})"
    runs = f"{'/'.join(engine.formats) or 'any'} {','.join(engine.categories)}"
    skills = ",".join(engine.skills)
    return engine.name, runs, skills if len(skills) < 40 else "all", on if engine.installed else "-", state


def _loaded_table(loaded: tuple[LoadedModel, ...]) -> str:
    rows = []
    for each in loaded:
        backend = f"{each.engine} {each.backend}".strip()
        rows.append((each.reference, backend, each.state, *_figures(each.speed)))
    return table(("MODEL", "ENGINE", "STATE", "FIRST TOKEN", "SPEED", "TOGETHER"), rows)


def _figures(speed: Speed | None) -> tuple[str, str, str]:
    if speed is None:
        return "-", "not measured", "-"
    if speed.skills:
        alone = ", ".join(f"{skill} {each.per_second_alone:.1f}/s" for skill, each in speed.skills.items())
        both = ", ".join(f"{each.per_second_together:.1f}/s at {each.together}" for each in speed.skills.values())
        return "-", alone, both
    if not speed.tokens_per_second:
        return "-", "not measured", "-"
    first = f"{speed.first_token_ms:.0f} ms"
    if speed.long_tokens:
        first += f", {speed.first_token_long_ms:.0f} ms at {speed.long_tokens} tokens"
    together = f"{speed.tokens_per_second_together:.1f} tokens/s at {speed.streams}" if speed.streams else "-"
    return first, f"{speed.tokens_per_second:.1f} tokens/s", together
