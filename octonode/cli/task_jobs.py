"""`octonode task submit|list|get|wait|cancel`: work that is kept until it is done, and looked at later."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octonode.cli.ask import Peer, question_of, task_app
from octonode.cli.models import open_client
from octonode.cli.output import JsonFlag, emit, shown, size, table
from octonode.cli.run import skill_of
from octonode.errors import NotFound, OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema.inference import Infer, InferenceFacts
    from octonode.client import Client

LOOK_SECONDS = 30.0
"""Of one look that waits; there are as many as it takes."""
MODES = ("async", "batch", "realtime", "")
PROMPT_FIELDS = {"image": "prompt", "sound": "prompt", "speak": "text"}
FILE_FIELDS = {"classify": "image", "detect": "image", "read": "image", "image": "image", "transcribe": "audio"} | {
    "voice_activity": "audio"
}
BYTES_FIELDS = ("images", "audio", "vectors")
"""Of results, as base64."""

JobId = Annotated[str, typer.Argument(metavar="ID", help="Of the job, as submit prints it.")]
Out = Annotated[Path | None, typer.Option(help="Save the picture, sound or vectors of the result in this file.")]


def register() -> None:
    """Adds the verbs to `octonode task`."""
    task_app.command("submit")(submit)
    task_app.command("list")(list_jobs)
    task_app.command("get")(get)
    task_app.command("wait")(wait)
    task_app.command("cancel")(cancel)


def submit(
    model: Annotated[str, typer.Argument(help="publisher/name or cid:...")],
    prompt: Annotated[str, typer.Argument(help="What to ask; from standard input when left out and needed.")] = "",
    skill: Annotated[
        str, typer.Option(help="chat, embed, read, transcribe, image, ...; what the model does when left out.")
    ] = "",
    mode: Annotated[str, typer.Option(help="async: kept as a job; batch, realtime, or empty: answered now.")] = "async",
    file: Annotated[Path | None, typer.Option("--input", help="The picture or sound that the skill takes.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", help="NAME=VALUE of the skill, such as max_tokens=64; may be repeated."),
    ] = None,
    webhook: Annotated[str, typer.Option(help="URL that is told of the job's end.")] = "",
    priority: Annotated[int, typer.Option(help="0 to 9, the most urgent.")] = 5,
    ttl: Annotated[float, typer.Option(help="Seconds that the result is kept; 0: as the node's settings say.")] = 0.0,
    peer: Peer = "",
    out: Out = None,
    as_json: JsonFlag = False,
) -> None:
    """Hand work to the node. A job outlives restarts; see it with octonode task get."""
    from octonode.api.schema.inference import Infer, InferenceCalls

    parameters = _parameters(param or [])
    if mode not in MODES:
        raise OctonodeError(f"--mode is one of {', '.join(MODES[:3])}, or empty", code="BAD_REQUEST")
    with open_client() as client:
        skill = skill or skill_of(client.model(model), prompt, file, "--skill")
        asked = Infer(
            model, skill=skill, input=_input(skill, prompt, file), parameters=parameters, mode=mode,  # type: ignore[arg-type]
            peer=peer, priority=priority, webhook=webhook, ttl_seconds=ttl,
        )  # fmt: skip
        found = client.do(InferenceCalls.submit(asked)) if mode == "async" else _now(client, asked)
    saving = f" --out {out}" if out is not None else ""
    waiting = f"{found.id}\nwait for it with: octonode task wait {found.id}{saving}"
    text = waiting if mode == "async" else _result(found, out)
    _emit(found, text, as_json, out)


def list_jobs(as_json: JsonFlag = False) -> None:
    """Jobs that are kept here, the latest first."""
    from octonode.api.schema import to_json
    from octonode.api.schema.inference import InferenceCalls

    with open_client() as client:
        found = client.do(InferenceCalls.jobs)
    rows = [
        (each.id, each.state, each.priority, each.skill, each.model, _time(each.created_at_ms), _note(each))
        for each in found
    ]
    headings = ("ID", "STATE", "PRIORITY", "SKILL", "MODEL", "MADE", "NOTE")
    emit({"jobs": to_json(found)}, as_json=as_json, text=table(headings, rows))


def get(job: JobId, out: Out = None, as_json: JsonFlag = False) -> None:
    """A job as it is now, with its result once it is completed."""
    from octonode.api.schema.inference import InferenceCalls

    with open_client() as client:
        found = client.do(InferenceCalls.get(job))
    _emit(found, _result(found, out), as_json, out)


def wait(job: JobId, out: Out = None, as_json: JsonFlag = False) -> None:
    """Wait until a job has ended, and show its result. Leaving ends the waiting, not the job."""
    with open_client() as client:
        found = _ended(client, job)
    _emit(found, _result(found, out), as_json, out)
    if found.state != "completed":
        raise _failure(found)


def cancel(job: JobId, as_json: JsonFlag = False) -> None:
    """End a job that has not ended; forget one that has."""
    from octonode.api.schema.inference import InferenceCalls

    with open_client() as client:
        found = client.do(InferenceCalls.cancel(job))
    text = "canceled" if found.state == "canceled" else f"it had ended ({found.state}); it is forgotten"
    _emit(found, text, as_json, None)


def _now(client: Client, asked: Infer) -> InferenceFacts:
    """The answer, however long it takes: progress keeps the connection alive."""
    from octonode.api.schema import Call, to_json
    from octonode.api.schema.work import Making

    headers = {"accept": "application/x-ndjson"}
    call: Call[Making[Any]] = Call(
        "POST", "/api/v1/inference", lambda _: Making(asked.skill), to_json(asked), headers=headers
    )
    with client.stream(call) as stream:
        for _ in stream:
            pass
    return stream.result.done()


def _ended(client: Client, job: str) -> InferenceFacts:
    from octonode.api.schema.inference import InferenceCalls

    while True:
        found = client.do(InferenceCalls.get(job, LOOK_SECONDS))
        if found.state not in ("submitted", "working"):
            return found


def _failure(found: InferenceFacts) -> OctonodeError:
    error = found.error
    if error is None:
        return OctonodeError(f"the job is {found.state}", code="CANCELED")
    from octonode.errors import from_wire

    return from_wire(error.code, error.message or f"the job is {found.state}")


def _input(skill: str, prompt: str, file: Path | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if file is not None:
        if skill not in FILE_FIELDS:
            raise OctonodeError(f"{skill} takes no --input", code="BAD_REQUEST")
        try:
            fields[FILE_FIELDS[skill]] = base64.b64encode(file.read_bytes()).decode("ascii")
        except OSError as error:
            raise NotFound(f"{file} cannot be read: {error.strerror}") from None
    if skill == "chat":
        fields["messages"] = [{"role": "user", "content": question_of(prompt)}]
    elif skill == "embed":
        fields["texts"] = [question_of(prompt)]
    elif skill in PROMPT_FIELDS:
        fields[PROMPT_FIELDS[skill]] = question_of(prompt)
    elif prompt and skill == "transcribe":
        fields["prompt"] = prompt
    return fields


def _parameters(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE; the value is JSON where it can be read so, else a text."""
    values: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise OctonodeError(f"--param {each}: write NAME=VALUE", code="BAD_REQUEST")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _emit(found: InferenceFacts, text: str, as_json: bool, out: Path | None) -> None:
    from octonode.api.schema import to_json

    if out is not None and found.result is not None:
        _save(found, out)
    emit(to_json(found), as_json=as_json, text=text)


def _result(found: InferenceFacts, out: Path | None) -> str:
    if found.result is None:
        return " ".join(part for part in (found.state, _note(found)) if part)
    if found.skill == "chat":
        return shown(str(found.result["text"]))
    rest = {name: _short(value) if name in BYTES_FIELDS else value for name, value in found.result.items()}
    saved = f"\nsaved in {out}" if out is not None else ""
    return shown(json.dumps(rest, ensure_ascii=False, indent=1)) + saved


def _short(value: Any) -> Any:
    """How much there is in place of base64."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    return size(len(str(value)) * 3 // 4)


def _save(found: InferenceFacts, out: Path) -> None:
    held = next((found.result[name] for name in BYTES_FIELDS if name in found.result), None)
    if held is None:
        raise OctonodeError(f"the result of {found.skill} holds no file; see it with --json", code="BAD_REQUEST")
    for number, each in enumerate(held if isinstance(held, list) else [held]):
        path = out if number == 0 else out.with_stem(f"{out.stem}-{number + 1}")
        path.write_bytes(base64.b64decode(each))


def _note(each: InferenceFacts) -> str:
    notes = [f"place {each.place}"] if each.place else []
    if each.error is not None:
        notes.append(shown(f"{each.error.code}: {each.error.message}")[:100])
    if each.webhook_state:
        notes.append(f"webhook {each.webhook_state}")
    return ", ".join(notes)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
