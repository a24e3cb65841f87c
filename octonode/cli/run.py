"""`octonode run`: anything that a model can do, from the shell, done by whoever does it best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from octonode.cli import ask
from octonode.cli.output import JsonFlag, emit
from octonode.cli.run_show import Shown, show, steps
from octonode.errors import NotFound, OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema import ModelFacts
    from octonode.client import Client

CHAT: Final = "chat"
FILE_BYTES_MAX: Final = 15 << 20
"""Of what goes with a request, as protocol.work bounds it."""

COUNT_MAX: Final = 8
"""Of pictures, as protocol.work bounds it."""


@dataclass(frozen=True, slots=True)
class _Takes:
    """What one skill takes from the command line."""

    prompt: str = ""
    """Field of its request that the prompt is; empty: it takes none."""
    file: str = ""
    """Field that the file of --input is."""
    file_needed: bool = False
    options: tuple[str, ...] = ()


_TAKES: Final[dict[str, _Takes]] = {
    CHAT: _Takes("messages", options=("max_tokens", "temperature", "seed")),
    "embed": _Takes("texts"),
    "classify": _Takes(file="image", file_needed=True),
    "detect": _Takes(file="image", file_needed=True),
    "read": _Takes(file="image", file_needed=True),
    "transcribe": _Takes(file="audio", file_needed=True, options=("language", "temperature", "words")),
    "voice_activity": _Takes(file="audio", file_needed=True),
    "speak": _Takes("text", options=("voice", "speed")),
    "sound": _Takes("prompt", options=("negative", "seconds", "steps", "guidance", "seed")),
    "image": _Takes("prompt", "image", options=("negative", "strength", "size", "steps", "guidance", "seed", "count")),
}
_FIELDS: Final = {"negative": "negative_prompt"}
"""Options whose field has another name."""
_BY_CATEGORY: Final = {
    "llm": (CHAT,),
    "embeddings": ("embed",),
    "vision": ("classify", "detect", "read"),
    "audio": ("transcribe", "voice_activity", "speak", "sound"),
    "diffusion": ("image",),
}


def register(app: typer.Typer) -> None:
    app.command("run")(run)


def run(
    model: Annotated[
        str, typer.Argument(help="publisher/name, cid:..., a name of a trusted publisher, or a model file.")
    ],
    prompt: Annotated[
        str, typer.Argument(help="What to ask, embed, speak or draw; from standard input when left out.")
    ] = "",
    given: Annotated[Path | None, typer.Option("--input", help="A picture or sound to work on.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to save it: pictures, sounds, transcripts, vectors.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over the file of --out.")] = False,
    task: Annotated[str, typer.Option(help=f"What to do, for models that do several: {', '.join(_TAKES)}.")] = "",
    peer: ask.Peer = "",
    mode: Annotated[str, typer.Option(help="realtime: now or not at all; batch: together with others.")] = "",
    explain: Annotated[
        bool, typer.Option("--explain", help="Show who might answer and why or why not; ask nobody.")
    ] = False,
    max_tokens: ask.MaxTokens = None,
    temperature: ask.Temperature = None,
    seed: ask.Seed = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    negative: Annotated[str | None, typer.Option(help="What must not be in it.")] = None,
    strength: Annotated[float | None, typer.Option(help="How far to leave the picture of --input, 0 to 1.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    count: Annotated[int | None, typer.Option(help="So many pictures.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of the sound.")] = None,
    language: Annotated[str | None, typer.Option(help="Of the speech, such as en; found out when left out.")] = None,
    words: Annotated[bool, typer.Option("--words", help="Times of each word as well.")] = False,
    voice: Annotated[str | None, typer.Option(help="Which of the model's voices.")] = None,
    speed: Annotated[float | None, typer.Option(help="Of the speech, 1 is normal.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Trust the publisher without asking.")] = False,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Load a bare root CID here that no publisher signed for.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask a model for text, pictures, speech, vectors.

    Done by a peer if one serves it, else it is fetched and loaded here. Without a running daemon a node is started for
    this one question.
    """
    options = {
        "max_tokens": max_tokens, "temperature": temperature, "seed": seed, "steps": steps, "size": size,
        "negative": negative, "strength": strength, "guidance": guidance, "count": count, "seconds": seconds,
        "language": language, "words": words or None, "voice": voice, "speed": speed,
    }  # fmt: skip
    if given is None and not explain:  # then whatever it does needs a text, and better now than when all is loaded
        prompt = ask.question_of(prompt, ", or a picture or sound by --input FILE")
    wish = _Wish(prompt, given, {name: value for name, value in options.items() if value is not None}, task, peer, mode)
    shown = Shown(out, force=force, as_json=as_json)
    _check(wish, shown)
    ask.check_file(model)
    with ask.a_node() as (client, temporary):
        served = model if peer else ask.served_by(client, model)
        reference = served or ask.load(client, model, trust=trust, allow_unsigned=allow_unsigned, quiet=as_json)
        if explain:
            ask.explain(client, reference, peer, task, as_json=as_json)
            return
        try:
            _do(client, reference, wish, shown)
        finally:
            if temporary and not served:
                ask.unload(client, reference)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was typed."""

    prompt: str
    file: Path | None
    options: dict[str, Any]
    task: str
    peer: str
    mode: str


def _check(wish: _Wish, shown: Shown) -> None:
    """What is wrong whatever the model is, before anything is loaded or asked."""
    if wish.task and wish.task not in _TAKES:
        raise _bad(f"there is no task {wish.task!r}; known are {', '.join(_TAKES)}")
    if wish.mode == "async":
        raise _bad("run waits for its answer; octonode task submit --mode async does not")
    if wish.file is not None:
        if not wish.file.is_file():
            raise NotFound(f"{wish.file} does not exist; --input names a picture or a sound")
        if wish.file.stat().st_size > FILE_BYTES_MAX:
            message = f"{wish.file} has over {FILE_BYTES_MAX >> 20} MiB; cut it, or make it smaller"
            raise OctonodeError(message, code="TOO_LARGE")
    shown.check(min(max(1, wish.options.get("count", 1)), COUNT_MAX))
    if wish.task:
        _check_options(wish, wish.task)


def _do(client: Client, reference: str, wish: _Wish, shown: Shown) -> None:
    skill = wish.task or skill_of(client.model(reference), wish.prompt, wish.file)
    _check_options(wish, skill)
    if skill == CHAT:
        _chat(client, reference, wish, shown)
        return
    shown.check_skill(skill)
    fields = _fields(skill, wish)
    with steps(f"{skill} with {reference.rpartition('/')[2]}", quiet=shown.as_json) as on_progress:
        made = getattr(client, skill)(reference, **fields, on_progress=on_progress)
    show(skill, made, shown, name=wish.prompt or (wish.file.stem if wish.file else skill))


def _chat(client: Client, reference: str, wish: _Wish, shown: Shown) -> None:
    if shown.out is not None:
        raise _bad("--out is for pictures, sounds, transcripts and vectors; the text goes to standard output")
    question = ask.question_of(wish.prompt)
    options = {**wish.options, "peer": wish.peer, "mode": wish.mode}
    answer = ask.ask(client, reference, question, options, echo=not shown.as_json)
    if shown.as_json:
        emit(ask.answer_json(answer), as_json=True, text="")
    else:
        ask.show_facts(answer.facts, f"{answer.tokens_out} tokens")


def skill_of(model: ModelFacts, prompt: str, file: Path | None, option: str = "--task") -> str:
    """What a model is asked for where `option` does not say. Raises BAD_REQUEST where that is open."""
    known = model.skills or _BY_CATEGORY.get(model.category, (CHAT,))
    fitting = [name for name in known if name in _TAKES and _fits(_TAKES[name], prompt, file)]
    if len(fitting) == 1 or fitting[:1] == [CHAT]:
        return fitting[0]
    if not fitting:
        return known[0]  # it says what it needs
    raise _bad(f"{model.reference} can do several things; say which: {option} {' | '.join(fitting)}")


def _fits(takes: _Takes, prompt: str, file: Path | None) -> bool:
    if file is not None:
        return bool(takes.file) and (bool(takes.prompt) or not prompt)
    return not takes.file_needed


def _check_options(wish: _Wish, skill: str) -> None:
    """Raises BAD_REQUEST that says what is missing, and what has no meaning here."""
    takes = _TAKES[skill]
    for name in wish.options:
        if name not in takes.options:
            others = [each for each, what in _TAKES.items() if name in what.options]
            raise _bad(f"--{name.replace('_', '-')} means nothing to {skill}; it is for {', '.join(others)}")
    if takes.file_needed and wish.file is None:
        kind = "picture" if takes.file == "image" else "sound"
        raise _bad(f"{skill} needs a {kind}: octonode run MODEL --input FILE")
    if wish.file is not None and not takes.file:
        raise _bad(f"{skill} takes no --input; give its text as the last argument")
    if wish.prompt and not takes.prompt:
        raise _bad(f"{skill} takes no prompt, only --input FILE")
    if "strength" in wish.options and wish.file is None:
        raise _bad("--strength is about the picture of --input")


def _fields(skill: str, wish: _Wish) -> dict[str, Any]:
    """The fields of the skill's request and how it is asked."""
    takes = _TAKES[skill]
    fields: dict[str, Any] = {_FIELDS.get(name, name): value for name, value in wish.options.items() if name != "size"}
    if "size" in wish.options:
        width, _, height = wish.options["size"].partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise _bad("--size is WIDTHxHEIGHT in pixels, such as 512x512")
        fields |= {"width_pixels": int(width[:9]), "height_pixels": int(height[:9])}
    if takes.prompt:
        said = ask.question_of(wish.prompt)
        fields[takes.prompt] = [said] if takes.prompt == "texts" else said
    if wish.file is not None:
        fields[takes.file] = wish.file.read_bytes()
    return {**fields, "peer": wish.peer or None, "mode": wish.mode or None}


def _bad(message: str) -> OctonodeError:
    return OctonodeError(message, code="BAD_REQUEST")
