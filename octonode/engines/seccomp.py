"""A seccomp filter for a worker: no network socket, no new program, no hand on other processes.

Classic BPF written through ctypes, so that no library is needed. Refused calls return EPERM: a worker that tries gets
an error, not a signal. What is denied is a list of names; everything else stays allowed, since engines and GPU drivers
use calls that nobody can list. Source of the layout: `linux/seccomp.h`, `linux/filter.h`; of the numbers:
`asm/unistd_64.h` (x86-64) and `asm-generic/unistd.h` (AArch64).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}

_DENIED: dict[str, tuple[int, int]] = {
    # name: (number on x86-64, number on AArch64); -1 where the machine has no such call
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, -1),
    "vfork": (58, -1),
    "tkill": (200, 130),  # Landlock scopes signals from Linux 6.12 on alone
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "io_uring_setup": (425, 425),  # a ring opens sockets and files past this filter
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
}
_SOCKET = (41, 198)
_KILL, _TGKILL = (62, 129), (234, 131)
_PRLIMIT = (302, 261)
_CLONE = (56, 220)
_CLONE3 = 435
_CLONE_THREAD = 0x00010000
_X32_CALLS = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENT_0 = 0, 4, 16
_ALLOW, _FAIL_WITH = 0x7FFF0000, 0x00050000

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(libc: ctypes.CDLL) -> str:
    """Puts the filter on this thread and those it starts. `no_new_privs` must be set.

    Returns what is active, or `off (why)` where the machine or the kernel has no filters.
    """
    machine = platform.machine()
    if machine not in _AUDIT_ARCH:
        return f"seccomp: off (no table of calls for {machine})"
    code = program(machine, os.getpid())
    filled = _Program(len(code) // 8, code)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filled), 0, 0) != 0:
        return f"seccomp: off ({errno.errorcode.get(ctypes.get_errno(), 'unknown error')})"
    return "seccomp"


def program(machine: str, pid: int) -> bytes:
    """The filter of the process `pid`, 8 bytes an instruction."""
    column = _COLUMN[machine]
    refuse = _instruction(_RETURN, 0, 0, _FAIL_WITH | errno.EPERM)
    allow = _instruction(_RETURN, 0, 0, _ALLOW)
    code = [
        _instruction(_LOAD, 0, 0, _OFFSET_ARCH),
        _instruction(_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        refuse,  # a 32-bit call on a 64-bit kernel would have other numbers
        _instruction(_LOAD, 0, 0, _OFFSET_NUMBER),
    ]
    if machine == "x86_64":
        code += [_instruction(_AT_LEAST, 0, 1, _X32_CALLS), refuse]
    for numbers in _DENIED.values():
        if numbers[column] >= 0:
            code += [_instruction(_EQUAL, 0, 1, numbers[column]), refuse]
    # clone3 hides its flags behind a pointer: ENOSYS makes libc fall back to clone, whose flags can be read.
    code += [_instruction(_EQUAL, 0, 1, _CLONE3), _instruction(_RETURN, 0, 0, _FAIL_WITH | errno.ENOSYS)]
    code += _unless_argument(_CLONE[column], _ANY_BIT, _CLONE_THREAD, allow, refuse)  # threads, no processes
    code += _unless_argument(_SOCKET[column], _EQUAL, socket.AF_UNIX, allow, refuse)
    for numbers in (_KILL, _TGKILL):  # abort() signals its own process
        code += _unless_argument(numbers[column], _EQUAL, pid, allow, refuse)
    code += _unless_argument(_PRLIMIT[column], _EQUAL, 0, allow, refuse)  # 0: the process itself
    return b"".join([*code, allow])


def _unless_argument(number: int, test: int, value: int, allow: bytes, refuse: bytes) -> list[bytes]:
    """Refuses the call `number` unless its first argument passes the test; other calls go on behind it."""
    return [
        _instruction(_EQUAL, 0, 4, number),
        _instruction(_LOAD, 0, 0, _OFFSET_ARGUMENT_0),  # low half, both machines are little-endian
        _instruction(test, 0, 1, value),
        allow,
        refuse,
    ]


def _instruction(code: int, jump_true: int, jump_false: int, operand: int) -> bytes:
    return struct.pack("<HBBI", code, jump_true, jump_false, operand)
