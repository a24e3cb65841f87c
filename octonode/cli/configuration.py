"""`octonode config`: look at settings, change one, check a file."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

from octonode import config as settings
from octonode.cli.output import JsonFlag, emit
from octonode.errors import ConfigError

LISTENING = ("api", "network", "gateway")
"""Sections with a `listen` of HOST:PORT."""

app = typer.Typer(help="Look at settings, change one, check a file.", no_args_is_help=True, rich_markup_mode=None)


@app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="`section.field`, or `section`; all of them when left out.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Show the settings in force.

    Defaults, then config.toml, then OCTONODE_* variables.
    """
    value: Any = settings.as_dict(settings.load())
    for part in filter(None, name.split(".")):
        if not isinstance(value, dict) or part not in value:
            known = value if isinstance(value, dict) else {}
            raise ConfigError(f"there is no setting {name}{settings.nearest(part, known)}")
        value = value[part]
    emit(value, as_json=as_json, text=_as_text(value))


def _as_text(value: Any) -> str:
    if not isinstance(value, dict):
        return value if isinstance(value, str) else json.dumps(value)
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += ["", f"[{key}]", *(f"{name} = {_toml(each)}" for name, each in item.items())]
        else:
            lines.append(f"{key} = {_toml(item)}")
    return "\n".join(lines).strip()


def _toml(value: Any) -> str:
    """A scalar or a list of texts as TOML; JSON's form of these is TOML too."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


@app.command("set")
def set_value(
    name: Annotated[str, typer.Argument(help="`section.field`")],
    value: Annotated[str, typer.Argument(help="New value; lists are comma-separated.")],
    as_json: JsonFlag = False,
) -> None:
    """Write one setting to config.toml, checked first. A running daemon takes it at its next start."""
    section, _, field = name.partition(".")
    if section not in settings.SECTIONS or not field:
        raise ConfigError(f"{name}: write section.field{settings.nearest(section, settings.SECTIONS)}")
    hints = typing.get_type_hints(settings.SECTIONS[section])
    if field not in hints:
        raise ConfigError(f"[{section}] has no field {field}{settings.nearest(field, hints)}")
    converted = settings.convert(value, hints[field], name)
    if section in LISTENING and field == "listen":
        settings.split_host_port(converted, name)
    path = settings.home_from(os.environ) / "config.toml"
    write_setting(path, section, field, converted)
    emit(
        {"name": name, "value": converted, "file": str(path)},
        as_json=as_json,
        text=f"{name} = {_toml(converted)} in {path}{_when(path.parent)}",
    )


def _when(home: Path) -> str:
    """What is still to be done where a daemon runs with the old value."""
    running = (home / "daemon.json").exists()
    return "\nthe running node takes it at its next start: octonode stop, then octonode start" if running else ""


def write_setting(path: Path, section: str, field: str, value: Any) -> None:
    """Replace or add one line of a TOML file; comments and all else stay, and the old file until the new one is whole.

    Raises ConfigError for a file that is not TOML, or whose layout this cannot edit: a list over several lines.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    _require_toml(text, path)  # a file we cannot read is not edited
    lines, line = text.splitlines(), f"{field} = {_toml(value)}"
    start = next((i for i, each in enumerate(lines) if each.split("#")[0].strip() == f"[{section}]"), None)
    if start is None:
        lines += ["", f"[{section}]", line] if lines else [f"[{section}]", line]
    else:
        end = next((i for i in range(start + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
        old = next((i for i in range(start + 1, end) if lines[i].split("=")[0].strip() == field), None)
        if old is None:
            lines.insert(start + 1, line)
        else:
            lines[old] = line
    new = "\n".join(lines) + "\n"
    _require_toml(new, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".toml.new")
    temporary.write_text(new, encoding="utf-8")
    os.replace(temporary, path)


def _require_toml(text: str, path: Path) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} cannot be edited: {error}; open it in an editor") from None


@app.command("check")
def check(
    file: Annotated[Path | None, typer.Argument(help="A TOML file; the node's own when left out.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whether a config file would be accepted.

    When not, the message names the place, the value and the nearest name or the values that would do.
    """
    config = settings.load(file=file)
    for section in LISTENING:
        settings.split_host_port(getattr(config, section).listen, f"{section}.listen")
    count = sum(len(dataclasses.fields(cls)) for cls in settings.SECTIONS.values())
    emit({"ok": True, "settings": count}, as_json=as_json, text=f"ok: {count} settings")
