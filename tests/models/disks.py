"""Small file systems for tests: mounted where that is permitted, else the same faults from the calls themselves."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octonode.models import disk


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextmanager
def mounted(path: Path, size_bytes: int) -> Iterator[bool]:
    """A disk of that size in memory at `path`. False where mounting is not permitted; it is gone after the block."""
    path.mkdir(parents=True, exist_ok=True)
    done = _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "octonode-test", str(path))
    try:
        yield done
    finally:
        if done:
            unmount(path)


@contextmanager
def read_only(path: Path) -> Iterator[bool]:
    """Nothing below `path` can be written inside the block: by a mount, else (False) in this process alone."""
    done = _mount("--bind", str(path), str(path))
    frozen = done and _mount("-o", "remount,bind,ro", str(path))
    thaw = (lambda: None) if frozen else freeze(path)
    try:
        yield frozen
    finally:
        thaw()
        if done:
            unmount(path)


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)


def freeze(path: Path | str) -> Callable[[], None]:
    """This process cannot write below `path` any more, until the result is called."""
    place = str(path)
    access, rename, mkdir, opened = os.access, os.rename, os.mkdir, os.open
    mounted_read_only = disk._mounted_read_only

    def refuse(target: Any) -> None:
        if str(target).startswith(place):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))

    def frozen_access(target: Any, mode: int, **options: Any) -> bool:
        return not (str(target).startswith(place) and mode & os.W_OK) and access(target, mode, **options)

    def frozen_rename(source: Any, target: Any, **options: Any) -> None:
        refuse(source)
        rename(source, target, **options)

    def frozen_mkdir(target: Any, *arguments: Any, **options: Any) -> None:
        refuse(target)
        mkdir(target, *arguments, **options)

    def frozen_open(target: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse(target)
        return opened(target, flags, *arguments, **options)

    def thaw() -> None:
        os.access, os.rename, os.mkdir, os.open = access, rename, mkdir, opened
        disk._mounted_read_only = mounted_read_only

    os.access, os.rename, os.mkdir, os.open = frozen_access, frozen_rename, frozen_mkdir, frozen_open  # type: ignore[assignment]
    disk._mounted_read_only = lambda directory: str(directory).startswith(place) or mounted_read_only(directory)
    return thaw
