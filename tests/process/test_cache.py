"""The models on disk at real daemons: who holds what, room made by hand, a full disk, a disk that goes bad."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from octonode.client import Client
from octonode.errors import OctonodeError
from octonode.models.store import ModelStore
from octonode.testing.daemon import Daemon
from octonode.testing.testnet import write_scripted_model
from tests.models.disks import mounted, read_only
from tests.process.fleet import Fleet, fails, octonode, works

pytestmark = pytest.mark.process
MIB = 1024 * 1024
CLI = "\nimport sys\nfrom octonode.cli.main import run\nsys.argv[0] = 'octonode'\nrun()\n"
REMOVE = """
import sys
from pathlib import Path
from octonode.errors import OctonodeError
from octonode.ipfs.cid import Cid
from octonode.models.store import ModelStore
try:
    ModelStore(Path(sys.argv[1])).remove(Cid.parse(sys.argv[2]), force="force" in sys.argv)
    print("removed")
except OctonodeError as error:
    print(error.code, error.message)
"""


def removed_by_another_process(home: Path, root: str, *more: str) -> str:
    """What a second tool on the same home, which knows of no daemon, is told."""
    return subprocess.run(
        [sys.executable, "-c", REMOVE, str(home), root, *more], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def a(fleet: Fleet, place: Path) -> Daemon:
    return fleet.start(place / "a", "--public", "--trust-all")


@pytest.fixture(scope="module")
def b(fleet: Fleet, place: Path, a: Daemon) -> Daemon:
    node = fleet.start(place / "b", "--bootstrap", a.address, "--trust-all")
    fleet.met(node, a)
    return node


@pytest.fixture(scope="module")
def words(a: Daemon, scripted: Path) -> tuple[str, str]:
    """(reference, root) of a model that a publishes."""
    added = works(a.home, "models", "add", str(scripted), "--name", "words", "--publish")["model"]
    return added["reference"], added["root"]


def worker_of(node: Daemon, root: str) -> int:
    """The process that has the model open, as the note in its directory says."""
    with Client.from_home(node.home):
        (note,) = (node.home / "models" / root).glob("use-*.json")
    return int(note.name.split("-")[1])


def test_a_served_model_is_removed_by_nobody_until_its_worker_is_gone(
    fleet: Fleet, a: Daemon, words: tuple[str, str]
) -> None:
    reference, root = words
    works(a.home, "models", "serve", reference)
    message = fails(a.home, "models", "rm", reference, code="IN_USE", exit_code=3)
    assert f"octonode models serve {reference} --stop" in message
    worker = worker_of(a, root)
    assert worker != a.pid
    said = removed_by_another_process(a.home, root, "force")
    assert said.startswith("IN_USE ")
    assert f"engine scripted (process {worker}) runs it" in said
    os.kill(worker, signal.SIGSTOP)  # it hangs: it has the file open all the same
    assert removed_by_another_process(a.home, root, "force").startswith("IN_USE ")
    os.kill(worker, signal.SIGCONT)
    os.kill(worker, signal.SIGKILL)
    fleet.until(lambda: works(a.home, "status")["serving"] == [reference] and worker_of(a, root) != worker)
    dry = works(a.home, "models", "gc", "--dry-run", "--free", "1GB")
    (item,) = dry["items"]
    assert item["goes"] is False
    assert "in use: engine scripted" in item["reason"]
    text = octonode(a.home, "models", "gc", "--dry-run", "--free", "1GB").out
    assert "stays" in text
    assert "short of what was asked" in text
    works(a.home, "models", "serve", reference, "--stop")
    fleet.until(lambda: not list((a.home / "models" / root).glob("use-*.json")))
    (item,) = works(a.home, "models", "gc", "--dry-run", "--free", "1GB")["items"]
    assert "last known copy" in item["reason"]


def test_the_lease_of_a_daemon_that_was_killed_is_free(fleet: Fleet, place: Path, scripted: Path) -> None:
    node = fleet.start(place / "killed", "--model", f"file:{scripted}")
    root = fleet.event(node, "model", state="serving")["root"]
    worker = worker_of(node, root)
    assert removed_by_another_process(node.home, root, "force").startswith("IN_USE ")
    fleet.kill(node)
    fleet.until(lambda: not Path(f"/proc/{worker}").exists())
    assert removed_by_another_process(node.home, root) == "removed"


def test_force_unloads_first_and_then_removes(fleet: Fleet, a: Daemon, b: Daemon, words: tuple[str, str]) -> None:
    reference, root = words
    works(b.home, "models", "serve", reference)
    worker = worker_of(b, root)
    assert octonode(b.home, "models", "rm", reference, "--force").out.startswith(f"removed {reference}")
    assert not Path(f"/proc/{worker}").exists()
    assert list((b.home / "models").iterdir()) == []
    assert works(b.home, "status")["degraded"] == []


def test_gc_makes_room_and_keeps_the_pinned(fleet: Fleet, a: Daemon, b: Daemon, words: tuple[str, str]) -> None:
    reference, root = words
    works(b.home, "models", "fetch", reference, "--pin")
    (item,) = works(b.home, "models", "gc", "--free", "1MB")["items"]
    assert (item["goes"], item["reason"]) == (False, "pinned")
    works(b.home, "models", "rm", reference, "--force")
    works(b.home, "models", "fetch", reference)

    def others() -> bool:
        (item,) = works(b.home, "models", "gc", "--free", "1MB", "--dry-run")["items"]
        return bool(item["goes"])

    fleet.until(others)
    done = works(b.home, "models", "gc", "--free", "1MB")
    assert done["freed_bytes"] >= 3 * MIB
    assert fleet.event(b, "evicted", root=root)
    assert list((b.home / "models").iterdir()) == []
    assert "is no size" in fails(b.home, "models", "gc", "--free", "lots", code="CONFIG", exit_code=2)


def test_verify_finds_damage_says_so_and_repairs_it_from_peers(
    fleet: Fleet, a: Daemon, b: Daemon, words: tuple[str, str], scripted: Path
) -> None:
    reference, root = words
    works(b.home, "models", "serve", reference)
    (file,) = [path for path in (b.home / "models" / root / "data").iterdir() if path.is_file()]
    good, status = file.read_bytes(), file.stat()
    file.chmod(0o644)
    with open(file, "r+b") as opened:
        opened.seek(MIB + 5)
        opened.write(b"rot!")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    message = fails(b.home, "models", "verify", reference, code="VERIFICATION_FAILED", exit_code=6)
    assert "1 blocks" in message
    assert "--repair" in message
    told = fleet.until(lambda: works(b.home, "status")["degraded"])
    assert any("damaged" in each["reason"] and "--repair" in each["reason"] for each in told)
    assert works(b.home, "status")["serving"] == [reference], "the engine runs on"
    shown = works(b.home, "models", "show", reference)
    assert (shown["damaged_blocks"], shown["complete"]) == (1, False)
    assert shown["checked_at_ms"] > 0
    done = works(b.home, "models", "verify", "--all", "--repair")
    assert done["damaged"] == 0
    assert "1 damaged or missing blocks were fetched again" in done["models"][0]["note"]
    assert file.read_bytes() == good == scripted.read_bytes()
    fleet.until(lambda: works(b.home, "status")["degraded"] == [])
    shown = works(b.home, "models", "show", reference)
    assert (shown["damaged_blocks"], shown["complete"], shown["state"]) == (0, True, "serving")
    assert octonode(b.home, "models", "verify", "--all").out.splitlines()[1].endswith("right")
    works(b.home, "models", "serve", reference, "--stop")


def test_a_disk_that_fills_during_a_fetch_is_told_and_the_same_command_goes_on(
    fleet: Fleet, a: Daemon, place: Path, tmp_path: Path
) -> None:
    """The models of this node lie on a small disk of their own, with 64 MiB that always stay free."""
    model = write_scripted_model(tmp_path / "large.model", seed=5, size_bytes=24 * MIB)
    added = works(a.home, "models", "add", str(model), "--name", "large", "--publish")["model"]
    home = place / "tight"
    with mounted(home / "models", 100 * MIB) as really:
        flags = ("--bootstrap", a.address, "--trust-all")
        if really:
            (home / "models" / "ballast").write_bytes(bytes(20 * MIB))
            node = fleet.start(home, *flags)
        else:  # no file may be larger than this; the limit of the process is lifted later
            node = fleet.start(home, *flags, extra={"OCTONODE_MODELS_DISK_BYTES_MAX": str(MIB)})
        try:
            fleet.met(node, a)
            message = fails(home, "models", "fetch", added["reference"], code="DISK_FULL", exit_code=1)
            assert "octonode models" in message
            assert not [path for path in (home / "models").iterdir() if path.name != "ballast"], "nothing half there"
            assert works(home, "status")["state"] == "active"
            if really:
                (home / "models" / "ballast").write_bytes(bytes(60 * MIB))
                told = fleet.until(lambda: works(home, "status")["degraded"])
                assert [each["part"] for each in told] == ["store"]
                assert "octonode models gc --free" in told[0]["reason"]
                assert "disk" in {each["check"] for each in _findings(home) if each["status"] == "failed"}
                (home / "models" / "ballast").unlink()
                fleet.until(lambda: works(home, "status")["degraded"] == [])
            else:
                fleet.stop(node)
                node = fleet.start(home, *flags)
                fleet.met(node, a)
            done = works(home, "models", "fetch", added["reference"])
            assert done["model"]["complete"] is True
        finally:
            fleet.stop(node)


def _findings(home: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = octonode(home, "doctor", "--json").json["findings"]
    return found


def test_a_disk_that_fills_while_blocks_come_keeps_what_came(
    fleet: Fleet, a: Daemon, place: Path, tmp_path: Path
) -> None:
    """Sparse files: the disk is taken as blocks come, and is full in the middle of the fetch."""
    model = write_scripted_model(tmp_path / "larger.model", seed=6, size_bytes=40 * MIB)
    added = works(a.home, "models", "add", str(model), "--name", "larger", "--publish")["model"]
    home = place / "sparse"
    with mounted(home / "models", 30 * MIB) as really:
        program = (
            "import errno, os, sys\n"
            "from octonode.models import placing\n"
            "placing.FREE_BYTES_MARGIN = -1 << 40\n"
            "def refuse(fd, offset, size):\n"
            "    raise OSError(errno.EOPNOTSUPP, 'no')\n"
            "os.posix_fallocate = refuse\n"
        )
        if not really:
            program += (
                "write, left = os.pwrite, [20 << 20]\n"
                "def pwrite(fd, data, offset):\n"
                "    left[0] -= len(data)\n"
                "    if left[0] < 0 and not os.path.exists(os.environ['OCTONODE_HOME'] + '/room'):\n"
                "        raise OSError(errno.ENOSPC, 'no space left')\n"
                "    return write(fd, data, offset)\n"
                "os.pwrite = pwrite\n"
            )
        program += CLI
        node = fleet.start(home, "--bootstrap", a.address, "--trust-all", command=(sys.executable, "-c", program))
        try:
            fleet.met(node, a)
            message = fails(home, "models", "fetch", added["reference"], code="DISK_FULL", exit_code=1)
            assert "what was fetched is kept" in message
            came = works(home, "models", "show", added["reference"])
            assert came["complete"] is False
            assert came["have_bytes"] < 40 * MIB
            if really:
                subprocess.run(["mount", "-o", f"remount,size={60 * MIB}", str(home / "models")], check=True)
            else:
                (home / "room").touch()
            done = works(home, "models", "fetch", added["reference"])
            assert done["model"]["complete"] is True
            assert sum(done["bytes_by_source"].values()) == 40 * MIB - came["have_bytes"], "only what was missing"
            assert works(home, "models", "verify", added["reference"])["note"] == ""
        finally:
            fleet.stop(node)


def test_models_on_a_read_only_disk_are_served_and_nothing_is_added(
    fleet: Fleet, a: Daemon, place: Path, words: tuple[str, str], tmp_path: Path
) -> None:
    reference, _ = words
    home = place / "frozen"
    node = fleet.start(home, "--bootstrap", a.address, "--trust-all")
    works(home, "models", "fetch", reference)
    fleet.stop(node)
    with read_only(home / "models") as really:
        if really:
            fleet.again(node)
        else:
            freezing = f"from tests.models.disks import freeze\nfreeze({str(home / 'models')!r})\n"
            flags = ("--bootstrap", a.address, "--trust-all")
            node = fleet.start(home, *flags, command=(sys.executable, "-c", freezing + CLI))
        try:
            fleet.met(node, a)
            assert works(home, "models", "serve", reference)["model"]["state"] == "serving"
            told = fleet.until(lambda: works(home, "status")["degraded"])
            assert [each["part"] for each in told] == ["store"]
            assert works(home, "run", reference, "hello")["answer"]
            model = write_scripted_model(tmp_path / "new.model", seed=8)
            fails(home, "models", "add", str(model), code="READ_ONLY", exit_code=1)
            fails(home, "models", "rm", reference, "--force", code="READ_ONLY", exit_code=1)
            assert works(home, "models", "verify", reference)["note"] == ""
        finally:
            fleet.stop(node)
    works_again = ModelStore(home)
    assert [each.row.complete for each in works_again.held()] == [True]
    works_again.close()


def test_an_error_of_a_caller_of_gc_is_a_bad_request(a: Daemon) -> None:
    from octonode.api.schema.cache import CollectGarbage, collect_garbage
    from octonode.api.schema.calls import Call

    with Client.from_home(a.home) as client:
        assert client.do(collect_garbage(CollectGarbage(dry_run=True))).dry_run
        with pytest.raises(OctonodeError) as caught:
            client.do(Call("POST", "/api/v1/models/gc", lambda body: body, {"dry": True}))
        assert caught.value.code == "BAD_REQUEST"
