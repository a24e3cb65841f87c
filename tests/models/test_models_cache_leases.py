"""Leases: what somebody has open stays, in this process and in others, until its user is gone, however it goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from octonode.errors import NotFound, OctonodeError, Refused
from octonode.ipfs.cid import Cid
from octonode.models import leases
from octonode.models.adding import describe
from octonode.models.leases import ModelLeases
from octonode.models.library import Library
from octonode.models.writing import LeafWriter

Make = Callable[..., Library]
MIB = 1024 * 1024
HOLDER = """
import sys
from pathlib import Path
from octonode.models.leases import ModelLeases
lease = ModelLeases(Path(sys.argv[1])).take("engine", "engine of another process")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def kept(make_library: Make, model_file: Path) -> tuple[Library, Cid, ModelLeases]:
    library = make_library("a")
    root = library.add(model_file).root
    return library, root, library.store.require(root).leases


@contextmanager
def another_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refused(library: Library, root: Cid, *, force: bool = False) -> Refused:
    with pytest.raises(Refused) as caught:
        library.remove(f"cid:{root}", force=force)
    assert caught.value.code == "IN_USE"
    assert library.store.get(root) is not None
    return caught.value


def test_a_leased_model_is_not_removed_and_the_refusal_says_who_and_what_to_do(
    kept: tuple[Library, Cid, ModelLeases],
) -> None:
    library, root, held = kept
    with held.take("engine", "engine llama") as lease, held.take("verify", "a check"):
        error = refused(library, root)
        assert "engine llama" in error.message
        assert str(os.getpid()) in error.message
        assert "octonode models serve" in error.message
        assert "--stop" in error.message
        kinds = {each["kind"] for each in error.detail["holders"]}
        assert kinds == {"engine", "verify"}
        assert "engine llama" in refused(library, root, force=True).message
        lease.close()
        assert "a check" in refused(library, root).message
    assert held.holders() == ()
    library.remove(f"cid:{root}")
    assert library.store.get(root) is None


def test_another_process_is_respected_and_kill_9_lets_go(kept: tuple[Library, Cid, ModelLeases]) -> None:
    library, root, held = kept
    with another_process(library.store.directory / root.text) as process:
        (holder,) = held.holders()
        assert (holder.kind, holder.owner, holder.pid) == ("engine", "engine of another process", process.pid)
        assert f"process {process.pid}" in refused(library, root).message
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert held.holders() == ()
    library.remove(f"cid:{root}")


def test_a_child_keeps_the_lease_it_inherited_past_its_parents(kept: tuple[Library, Cid, ModelLeases]) -> None:
    library, root, held = kept
    lease = held.take("engine", "engine llama")
    child = subprocess.Popen(["sleep", "1000"], pass_fds=[lease.descriptor])
    try:
        lease.hand_to(child.pid)
        assert f"process {child.pid}" in refused(library, root).message
        os.close(lease.descriptor)  # as when the parent is killed: the note stays, the descriptor is gone
        assert f"process {child.pid}" in refused(library, root).message
    finally:
        child.kill()
        child.wait()
    assert held.holders() == ()
    assert not list((library.store.directory / root.text).glob("use-*.json")), "the notes of the dead are swept"
    library.remove(f"cid:{root}")


def test_a_reader_of_a_block_keeps_the_model_and_force_passes_over_it(
    kept: tuple[Library, Cid, ModelLeases], model_file: Path
) -> None:
    library, root, held = kept
    leaf = describe(model_file).layout.leaves[3]
    body = library.store.block(leaf.cid)
    assert body is not None
    assert held.holders()[0].kind == "stream"
    assert "hands its blocks" in refused(library, root).message or "reads it" in refused(library, root).message
    library.remove(f"cid:{root}", force=True)
    assert body.read() == model_file.read_bytes()[3 * MIB : 4 * MIB], "what was begun is brought to its end"
    body.close()


def test_readers_that_close_leave_nothing(kept: tuple[Library, Cid, ModelLeases], model_file: Path) -> None:
    library, root, held = kept
    leaves = describe(model_file).layout.leaves
    before = len(os.listdir("/proc/self/fd"))
    for leaf in leaves:
        body = library.store.block(leaf.cid)
        assert body is not None
        body.close()
    run = library.store.run(root, 0, None, nodes=True)
    assert run is not None
    run.close()
    assert library.store.block(Cid(0x55, bytes(32))) is None
    assert len(os.listdir("/proc/self/fd")) == before
    assert held.holders() == ()


def test_a_fetch_keeps_what_it_writes(home: Path, model_file: Path, make_library: Make) -> None:
    library = make_library("a")
    model = library.store.prepare(describe(model_file).layout)
    writer = LeafWriter(model)
    assert "a fetch" in refused(library, model.root).message
    with pytest.raises(Refused) as caught:
        library.add(model_file)  # would take the place of what is being written
    assert caught.value.code == "IN_USE"
    writer.close()
    assert library.add(model_file).complete


def test_what_is_being_removed_cannot_be_leased(kept: tuple[Library, Cid, ModelLeases]) -> None:
    library, root, held = kept
    directory = library.store.directory / root.text
    with held.removing("it"):
        with pytest.raises(NotFound) as caught:
            held.take("engine", "late")
        assert caught.value.code == "MODEL_NOT_FOUND"
        assert held.hold_open() is None
    library.remove(f"cid:{root}")
    with pytest.raises(NotFound):
        held.take("engine", "later")
    assert not directory.exists()


def test_a_lock_file_that_was_replaced_under_a_taker_is_seen(
    kept: tuple[Library, Cid, ModelLeases], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened before the removal, locked after it: the model that has the name by then is another one."""
    library, root, held = kept
    path = library.store.directory / root.text / leases.LOCK
    opened = ModelLeases._open

    def slow(self: ModelLeases) -> int:
        descriptor = opened(self)
        path.unlink()
        path.touch()
        return descriptor

    monkeypatch.setattr(ModelLeases, "_open", slow)
    with pytest.raises(NotFound):
        held.take("engine", "late")


@pytest.mark.parametrize("note", [b"", b"{", b'{"kind": "spy"}', b"[1]", b'{"kind":"engine","owner":1,"pid":"x"}'])
def test_a_note_that_is_damaged_hides_nobody(kept: tuple[Library, Cid, ModelLeases], note: bytes) -> None:
    library, root, held = kept
    with held.take("engine", "engine llama"):
        for path in (library.store.directory / root.text).glob("use-*.json"):
            path.write_bytes(note)
        assert refused(library, root).code == "IN_USE"
    library.remove(f"cid:{root}")


def test_a_note_of_a_pid_that_died_is_not_believed(kept: tuple[Library, Cid, ModelLeases]) -> None:
    library, root, held = kept
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    said = {"kind": "engine", "owner": "a ghost", "pid": int(dead.stdout), "since_ms": 1}
    (library.store.directory / root.text / f"use-{int(dead.stdout)}-1-1.json").write_text(json.dumps(said))
    assert held.holders() == ()
    with held.take("verify", "a check"):
        assert [each.owner for each in held.holders()] == ["a check"]


def test_a_store_of_before_the_lock_file_takes_leases(kept: tuple[Library, Cid, ModelLeases]) -> None:
    library, root, held = kept
    (library.store.directory / root.text / leases.LOCK).unlink()
    with held.take("engine", "engine llama"):
        assert "engine llama" in refused(library, root).message


def test_a_pinned_model_says_so_first(kept: tuple[Library, Cid, ModelLeases]) -> None:
    library, root, held = kept
    library.pin(f"cid:{root}")
    with held.take("engine", "engine llama"), pytest.raises(OctonodeError) as caught:
        library.remove(f"cid:{root}")
    assert caught.value.code == "FORBIDDEN"


def test_those_who_only_look_turn_nobody_away(kept: tuple[Library, Cid, ModelLeases]) -> None:
    _, _, held = kept
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            held.holders()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            held.take("engine", "engine llama").close()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert held.holders() == ()
