"""What a worker may touch, set by the worker itself before it opens the model: strangers' files are parsed there.

Four layers, each of which degrades with a stated reason where the kernel lacks it: resource limits; no new privileges
and no capabilities; Landlock (files by an allow list, no TCP, no signals to others); seccomp (`seccomp.py`). Address
space has no limit: that breaks CUDA and memory-mapped models, so the daemon watches resident memory instead.

Raw system calls through ctypes. Source: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import resource
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from octonode.engines import seccomp

OPEN_FILES_MAX = 4096
SPLIT_FILES_MAX = 1000
"""Files of one model that llama.cpp opens one after the other."""
FILE_BYTES_MAX = 1 << 30
"""The largest file a worker may write, in its own temporary directory (GPU kernels are cached there)."""

# Access rights of Landlock, `linux/landlock.h`
_WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIRECTORY, _REMOVE_FILE, _MAKE_DIRECTORY, _MAKE_FILE, _MAKE_SOCKET = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 9
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_READ = _READ_FILE | _READ_DIRECTORY
_OWN = _READ | _WRITE_FILE | _REMOVE_DIRECTORY | _REMOVE_FILE | _MAKE_DIRECTORY | _MAKE_FILE | _MAKE_SOCKET | _TRUNCATE
_DEVICE = _READ | _WRITE_FILE | _IOCTL_DEVICE
_FILE_RIGHTS = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every machine
_PR_SET_NO_NEW_PRIVS = 38

_SYSTEM_READ = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/dev/urandom",
)
_GPU_READ = ("/usr/local/cuda", "/opt/rocm", "/proc/driver/nvidia", "/sys/bus/pci", "/sys/devices", "/sys/class/kfd")
_GPU_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")


@dataclass(frozen=True, slots=True)
class Access:
    """Paths a worker may use; those that do not exist are left out."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    devices: tuple[str, ...]


def access_for(model_path: Path | None, temporary_directory: Path, also_read: Sequence[Path] = ()) -> Access:
    """The allow list of a worker: interpreter and libraries, CPU facts, its model and the files that belong to it;
    its own directory for writing."""
    package = Path(__file__).resolve().parents[1]
    gpus = [path for pattern in _GPU_DEVICES for path in glob.glob(pattern)]
    read = [*_SYSTEM_READ, *(_GPU_READ if gpus else ()), sys.prefix, sys.base_prefix, str(package)]
    read += [path for path in sys.path if path and os.path.isdir(path) and "site-packages" in path]
    if model_path is not None:
        read += [str(model_path), *_other_parts(model_path)]
    read += [str(path) for path in also_read]
    return Access(tuple(dict.fromkeys(read)), (str(temporary_directory),), ("/dev/null", *gpus))


def _other_parts(model_path: Path) -> list[str]:
    """Of a GGUF in several files, which llama.cpp finds beside the first: `NAME-00002-of-00003.gguf`, and so on."""
    match = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", model_path.name)
    files = min(int(match[2]), SPLIT_FILES_MAX) if match else 0
    return [str(model_path.with_name(f"{match[1]}-{n:05}-of-{match[2]}.gguf")) for n in range(2, files + 1) if match]


def limit_resources(file_bytes_max: int | None = None) -> str:
    """Sets the limits that need no kernel feature; the kernel's out-of-memory killer shall take this process first.

    `file_bytes_max` is for who writes a model; None: FILE_BYTES_MAX.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds prompts
    most_written = FILE_BYTES_MAX if file_bytes_max is None else file_bytes_max
    for limit, most in ((resource.RLIMIT_NOFILE, OPEN_FILES_MAX), (resource.RLIMIT_FSIZE, most_written)):
        hard = resource.getrlimit(limit)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (value, value))
    try:
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    except OSError:
        return "limits (not first to the out-of-memory killer)"
    return "limits"


def enter(access: Access) -> tuple[str, ...]:
    """Gives up everything not in `access`, for good, for this process and all its threads to come.

    Must run while the process has one thread. Returns the layers that are active, those that are not with the reason.
    """
    if sys.platform != "linux":
        return (f"sandbox: off (none for {sys.platform} yet)",)
    if len(os.listdir("/proc/self/task")) != 1:
        return ("sandbox: off (the process has threads already)",)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return (f"sandbox: off (no_new_privs: {_error_name()})",)
    landlock = _enter_landlock(libc, access)
    return (landlock, _drop_capabilities(libc), seccomp.install(libc))


def level(layers: Sequence[str]) -> str:
    """The layers of a worker in a word for people: `full`, `partial: why`, `off: why`; empty before it has told them.

    A connection is kept from a worker by seccomp as well, so a Landlock that does not cover TCP is no gap beside it.
    """
    if not layers:
        return ""
    whole_off = next((each for each in layers if each.startswith("sandbox: off")), "")
    if whole_off:
        return f"off: {_why(whole_off)}"
    found = {each.replace(":", " ").split()[0]: each for each in layers}
    filtered = found.get("seccomp") == "seccomp"
    gaps = [each for each in layers if ": off" in each or ": kept" in each or each.startswith("limits (")]
    gaps += [each for each in layers if "(TCP not covered)" in each and not filtered]
    if not filtered and not found.get("landlock", "").startswith("landlock abi"):
        reasons = dict.fromkeys(_why(each) for each in gaps)
        return f"off: {'; '.join(reasons) or 'neither Landlock nor seccomp'}"
    return f"partial: {'; '.join(gaps)}" if gaps else "full"


def _why(layer: str) -> str:
    """The words in brackets of `sandbox: off (none for darwin yet)`."""
    return layer.partition("(")[2].rpartition(")")[0] or layer


def _drop_capabilities(libc: ctypes.CDLL) -> str:
    """A daemon run by root must not hand root's powers to a parser of strangers' files."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    nothing = ctypes.create_string_buffer(24)
    if libc.capset(header, nothing) != 0:
        return f"capabilities: kept ({_error_name()})"
    return "no capabilities"


def _enter_landlock(libc: ctypes.CDLL, access: Access) -> str:
    libc.syscall.restype = ctypes.c_long
    abi = libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if abi < 1:
        return f"landlock: off (the kernel says {_error_name()})"
    handled = _RIGHTS_BY_ABI[min(abi, 5)]
    attributes = struct.pack("=Q", handled)
    if abi >= 4:
        attributes += struct.pack("=Q", _TCP_BIND_AND_CONNECT)
    if abi >= 6:
        attributes += struct.pack("=Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = libc.syscall(
        ctypes.c_long(_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)
    )
    if ruleset < 0:
        return f"landlock: off ({_error_name()})"
    try:
        for paths, rights in ((access.read, _READ), (access.write, _OWN), (access.devices, _DEVICE)):
            _allow(libc, ruleset, paths, rights & handled)
        if libc.syscall(ctypes.c_long(_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint(0)) != 0:
            return f"landlock: off ({_error_name()})"
    finally:
        os.close(ruleset)
    return f"landlock abi {abi}" + ("" if abi >= 4 else " (TCP not covered)")


def _allow(libc: ctypes.CDLL, ruleset: int, paths: Sequence[str], rights: int) -> None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this machine
        try:
            mine = rights if os.path.isdir(path) else rights & _FILE_RIGHTS
            rule = struct.pack("=Qi", mine, descriptor)
            kind = ctypes.c_int(1)
            libc.syscall(ctypes.c_long(_ADD_RULE), ctypes.c_int(ruleset), kind, rule, ctypes.c_uint(0))
        finally:
            os.close(descriptor)


def _error_name() -> str:
    number = ctypes.get_errno()
    return errno.errorcode.get(number, str(number))
