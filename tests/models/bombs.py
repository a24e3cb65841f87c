"""Run as a process with little memory: every bomb here must be refused or described, and the peak is printed.

`python -m tests.models.bombs`: a line of JSON for each, then the peak of resident memory in bytes.
"""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Iterator

from octonode.models.formats import FileBytes, FormatRefused, inspect_model
from octonode.models.headers import gguf, onnx, safetensors
from octonode.models.headers.templates import TEMPLATE_BYTES_MAX
from tests.models import samples

ADDRESS_SPACE_BYTES = 1024 * 1024 * 1024
"""Python with its libraries, the bomb itself, and what reading it may take."""


def bombs() -> Iterator[tuple[str, dict[str, bytes]]]:
    """(name, files), made one at a time."""
    yield "many texts in arrays", {"m.gguf": _texts(gguf.ARRAY_TEXTS_MAX)}
    yield "too many texts", {"m.gguf": _texts(gguf.ARRAY_TEXTS_MAX + 1)}
    yield "many tensors", {"m.gguf": _tensors(gguf.TENSORS_MAX)}
    keys = {f"k{n:04}": "x" * 1000 for n in range(gguf.KEYS_MAX - 1)}
    yield "many keys", {"m.gguf": samples.gguf(dict(keys))}
    yield "a header of maps", {"m.safetensors": samples.safetensors(b"{" + b'"":{},' * 5_000_000 + b'"a":1}')}
    tensors = {
        f"t{n}": {"dtype": "U8", "shape": [1, 1], "data_offsets": [n, n + 1]} for n in range(safetensors.TENSORS_MAX)
    }
    yield "many shards' tensors", {"m.safetensors": samples.safetensors(tensors, bytes(safetensors.TENSORS_MAX))}
    yield "deep JSON", {"m.safetensors": samples.safetensors(b'{"a":' * 1_000_000)}
    wide = '{"a":"' + "\N{GRINNING FACE}" * 5_000_000 + '"}'
    yield "wide JSON", {"m.safetensors": samples.safetensors(wide.encode())}
    index = {"weight_map": {f"t{n}": "m.safetensors" for n in range(safetensors.INDEX_TENSORS_MAX)}}
    yield "a long index", {"m.safetensors": samples.shard("a"), "m.safetensors.index.json": json.dumps(index).encode()}
    yield "many nodes", {"m.onnx": samples.onnx([samples.onnx_node()] * 60_000)}
    yield "many fields", {"m.onnx": _onnx(b"\x10\x00" * (onnx.FIELDS_MAX + 1))}
    yield "many tensors of a graph", {"m.onnx": _onnx(b"\x2a\x02\x08\x01" * (onnx.TENSORS_MAX + 1))}
    for text in ("{{a}}", "{% if a %}", "{{ (", "a~", "{% for x in y %}{% endfor %}"):
        whole = (text * TEMPLATE_BYTES_MAX)[:TEMPLATE_BYTES_MAX]
        yield f"a template of {text}", {"m.gguf": samples.gguf({"tokenizer.chat_template": whole})}
    yield "a zip of names", {"m.bin": b"PK\x03\x04" + b"PK\x01\x02" * 5_000_000}
    yield "an array header of 4 GiB", {"m.bin": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(10_000_000)}
    yield "opcodes", {"m.bin": b"N" * 50_000_000}


def _texts(count: int) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + samples.pair("general.architecture", "llama")
    return head + samples.text("tokens") + struct.pack("<IIQ", 9, 8, count) + bytes(8 * count)


def _tensors(count: int) -> bytes:
    return samples.gguf(tensors=[samples.tensor(f"{n:0200}", [8], 32 * n) for n in range(count)], data_bytes=32 * count)


def _onnx(graph: bytes) -> bytes:
    return samples.number(1, 9) + samples.chunk(7, graph) + samples.chunk(8, samples.number(2, 17))


class _Endless:
    """A file of any size that is one byte for ever, without being anywhere."""

    def __init__(self, head: bytes, size: int, filler: bytes) -> None:
        self._head, self._size, self._filler, self._at = head, size, filler, 0

    def __enter__(self) -> _Endless:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def read(self, count: int = -1) -> bytes:
        count = max(0, min(count if count >= 0 else self._size, self._size - self._at))
        data = self._head[self._at : self._at + count]
        data += self._filler * (count - len(data))
        self._at += count
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, (0, self._at, self._size)[whence] + offset)
        return self._at

    def tell(self) -> int:
        return self._at


def endless() -> Iterator[tuple[str, bytes, bytes]]:
    """(name, how a file of 4 TiB begins, the byte it goes on with)."""
    heads = (
        b"GGUF" + struct.pack("<IQQ", 3, 9, 9),
        struct.pack("<Q", 2**41) + b"{",
        b"\x08\x09\x3a",
        b"ftrt",
        b"\x80\x04",
    )
    for head in heads:
        for filler in (b"\x00", b"\x01", b"\x08", b"\xff", b"{"):
            yield f"{head[:4]!r} and {filler!r}", head, filler


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    for name, contents in bombs():
        print(json.dumps({"bomb": name, "became": _became(samples.files(contents))}), flush=True)
    for name, head, filler in endless():
        size = 4 * 2**40
        file = FileBytes("m.bin", size, lambda head=head, filler=filler, size=size: _Endless(head, size, filler))  # type: ignore[arg-type,misc,return-value]
        print(json.dumps({"bomb": name, "became": _became([file])}), flush=True)
    print(_peak_bytes())


def _peak_bytes() -> int:
    """Of this program alone: what getrusage says holds the process that started us as well."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def _became(files: list[FileBytes]) -> str:
    try:
        return inspect_model(files).format
    except FormatRefused as refused:
        return refused.message[:160]


if __name__ == "__main__":
    main()
