"""The parent of a server's processes, over a shell: nothing of a server outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

KEEPER = (sys.executable, "-P", "-m", "octonode.engines.servers.keeper")


def keep(directory: Path, script: str, grace: str = "0.3") -> subprocess.Popen[bytes]:
    directory.mkdir()
    command = [*KEEPER, grace, str(directory), "/bin/sh", "-c", script]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -SEGV $$", -signal.SIGSEGV)])
def test_a_keeper_ends_as_its_server_did_and_takes_the_rest_along(tmp_path, script, status):
    keeper = keep(tmp_path / "own", f"setsid sleep 1000 & echo $!; {script}")
    assert keeper.stdout is not None
    assert keeper.stdin is not None
    with keeper.stdin, keeper.stdout:
        output = keeper.stdout.read()  # until nobody holds it any more
    assert keeper.wait() == status
    assert not os.path.exists(f"/proc/{int(output)}")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("how", ["pipe", "signal", "byte"])
def test_a_keeper_that_is_told_to_end_ends_a_server_that_will_not(tmp_path, how):
    keeper = keep(
        tmp_path / "own", 'trap "" TERM; echo $$; while :; do sleep 1; done', "600" if how == "byte" else "0.3"
    )
    assert keeper.stdout is not None
    assert keeper.stdin is not None
    server = int(keeper.stdout.readline())
    if how == "signal":
        keeper.terminate()
    else:
        keeper.stdin.write(b"k" if how == "byte" else b"")
        keeper.stdin.close()
    guard = threading.Timer(30, keeper.kill)
    guard.start()
    assert keeper.wait() == -signal.SIGKILL
    guard.cancel()
    keeper.stdout.close()
    if not keeper.stdin.closed:
        keeper.stdin.close()
    assert not os.path.exists(f"/proc/{server}")
    assert not (tmp_path / "own").exists()
