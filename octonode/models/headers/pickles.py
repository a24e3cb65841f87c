"""What must never reach a loader, told by content: pickles and what wraps them, archives, native code. Pure.

A pickle runs code while it is read, so not a whole one counts but its beginning: opcodes are walked without being
carried out (`pickletools`), and one that names something to import is enough.
"""

from __future__ import annotations

import pickletools
import re
from typing import Final

HEAD_BYTES: Final = 64 * 1024
"""What of a file is looked at."""
OPCODES_MAX: Final = 20_000

_CONVERT = "convert it to SafeTensors or GGUF; a pickle runs code when it is loaded, so it is never taken"
_NEWEST_PROTOCOL: Final = 5
_IMPORTS: Final = {"GLOBAL", "INST"}
_IMPORTED = re.compile(r"[A-Za-z_][\w.]* [A-Za-z_][\w.]*\Z", re.ASCII)
_ARCHIVES: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
)
_NATIVE: Final = (
    (b"\x7fELF", "an ELF program or library"),
    (b"MZ", "a Windows program or library"),
    (b"\xfe\xed\xfa\xce", "a Mach-O program or library"),
    (b"\xfe\xed\xfa\xcf", "a Mach-O program or library"),
    (b"\xce\xfa\xed\xfe", "a Mach-O program or library"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O program or library"),
    (b"\xca\xfe\xba\xbe", "a Mach-O or Java program"),
    (b"#!", "a script"),
)
_OBJECT_DTYPE = re.compile(rb"""['"][<>|=]?O\d*['"]""")
_TAR_MAGIC_AT: Final = 257


def refusal(head: bytes, size: int) -> str | None:
    """Why a file with this beginning is never taken, or None. `head` is its first HEAD_BYTES, or all of it."""
    found = _wrapped(head)
    if found is None and len(head) >= 2 and head[0] == 0x80 and head[1] <= _NEWEST_PROTOCOL:
        found = f"the content is a Python pickle: {_CONVERT}"
    return found or opcodes_refusal(head, size)


def opcodes_refusal(head: bytes, size: int) -> str | None:
    """As `refusal`, for bytes that may begin as they like (raw weights): only what a pickle reader would act on."""
    if _imports(head, size):
        return f"the content is a Python pickle: {_CONVERT}"
    return None


def _wrapped(head: bytes) -> str | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        if b".pkl" in head or b".pickle" in head:
            return f"the content is a PyTorch checkpoint with a pickle inside: {_CONVERT}"
        return "the content is a zip, not a model; unpack it and add the GGUF, SafeTensors or ONNX in it"
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        what = " with a pickle inside" if b"pickle" in head or b".pkl" in head else ""
        return f"the content is a tar archive{what}, not a model; unpack it and add the model in it"
    for magic, name in _ARCHIVES:
        if head.startswith(magic):
            return f"the content is a {name} archive, not a model; unpack it and add the model in it"
    for magic, name in _NATIVE:
        if head.startswith(magic):
            return f"the content is {name}; a model brings no code"
    if head.startswith(b"\x89HDF"):
        return "the content is HDF5 (Keras), which is not taken; convert it to ONNX or SafeTensors"
    if head.startswith(b"\x93NUMPY"):
        return _numpy(head)
    return None


def _numpy(head: bytes) -> str | None:
    """Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Objects are stored as pickle."""
    wide = head[6:7] != b"\x01"
    start = 12 if wide else 10
    length = int.from_bytes(head[8:start], "little")
    header = head[start : start + length]
    if len(header) != length or b"descr" not in header:
        return "the content is a NumPy array with a damaged or oversize header"
    if _OBJECT_DTYPE.search(header):
        return f"the content is a NumPy array of Python objects, which is a pickle: {_CONVERT}"
    return None


def _imports(head: bytes, size: int) -> bool:
    """True when a pickle reader would import something, or would read it to its end as a value."""
    texts = 0
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(head)):
            texts += isinstance(argument, str) or "GET" in opcode.name
            if opcode.name == "STACK_GLOBAL" and texts >= 2:  # it takes two from the stack
                return True
            if opcode.name in _IMPORTS and isinstance(argument, str) and _IMPORTED.match(argument):
                return True
            if opcode.name == "STOP":
                return number > 0 and size == len(head) and not head[(position or 0) + 1 :].strip()
            if number >= OPCODES_MAX:
                return True
    except Exception:  # whatever it stumbles over, a pickle reader stumbles over too
        return False
    return False
