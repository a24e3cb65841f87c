"""How a model folder comes to be: whole or not at all, once, with a stamp that says of which recipe."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scripts.get_model import NoModel

__all__ = ["NoModel", "Recipe", "made", "write_json", "write_readme"]

STAMP: Final = ".recipe"
"""Its dot keeps it out of the model: `models add` passes over hidden files."""

RINGS: Final = {1: "every run", 2: "with torch, in .venv-engines"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model folder."""

    name: str
    about: str
    """One line for `--list`: what it is, of which licence, and `synthetic` where no training stands behind it."""
    megabytes: int
    """Of the folder."""
    make: Callable[[Path, Path], None]
    """(empty folder to fill, folder of all models); raises NoModel."""
    revision: str
    """Changes with what `make` writes: the version of the source and a number of ours."""
    ring: int = 1
    needs: tuple[str, ...] = ()
    """Names of recipes that are to be made before."""


def made(recipe: Recipe, models: Path) -> Path:
    """The folder `models/NAME`, made by `recipe` unless its stamp says that it stands. Raises NoModel."""
    target = models / recipe.name
    if _stamp(target) == recipe.revision:
        return target
    models.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{recipe.name}-", dir=models))
    try:
        fresh = scratch / "fresh"
        fresh.mkdir()
        recipe.make(fresh, models)
        (fresh / STAMP).write_text(recipe.revision + "\n", encoding="utf-8")
        if target.exists():
            target.rename(scratch / "old")
        fresh.rename(target)
    except ModuleNotFoundError as error:
        raise NoModel(
            f"{recipe.name} needs {error.name}, which is not installed here ({RINGS[recipe.ring]}); "
            + ("run: make setup" if recipe.ring == 1 else "run: make engines")
        ) from None
    except OSError as error:
        if _stamp(target) != recipe.revision:  # otherwise somebody else has made it meanwhile
            raise NoModel(
                f"cannot write {target}: {error}; {2 * recipe.megabytes} MB of free disk are needed"
            ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _stamp(folder: Path) -> str:
    try:
        return (folder / STAMP).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_readme(folder: Path, title: str, licence: str, *paragraphs: str) -> None:
    """README.md as model hubs have it: the licence on top, then where the model is from and what was done to it."""
    text = [f"---\nlicense: {licence}\n---", f"# {title}", *paragraphs]
    (folder / "README.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
