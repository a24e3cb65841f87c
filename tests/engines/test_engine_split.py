"""A GGUF in several files: found to be one model, and opened whole by llama.cpp in its sandbox."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import Finished, GenerateRequest, LoadRequest
from octonode.engines.sandbox import access_for
from octonode.engines.supervisor import Supervisor
from octonode.models.headers import gguf
from octonode.models.inspecting import inspect_paths
from tests.models import samples

ALIGNMENT = gguf.ALIGNMENT_DEFAULT


def split(whole: Path, folder: Path) -> list[Path]:
    """Two files as `llama-gguf-split` writes them: all keys in the first, half of the tensors in each."""
    size = whole.stat().st_size
    with open(whole, "rb") as file:
        header = gguf.read_gguf(file, size)
        data_start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
        file.seek(0)
        cursor = gguf._Cursor(file, size)
        cursor.take(24)
        for _ in range(len(header.values)):
            cursor.text(gguf.KEY_BYTES_MAX)
            gguf._value(cursor, cursor.scalar(4))
        keys_end = file.tell()
        file.seek(24)
        keys = file.read(keys_end - 24)
        tensors = []
        for _ in range(header.tensor_count):
            name = cursor.take(cursor.length(256)).decode()
            extents = [cursor.scalar(10) for _ in range(cursor.scalar(4))]
            kind, offset = cursor.scalar(4), cursor.scalar(10)
            tensors.append((name, extents, kind, offset))
    ends = [*sorted(offset for *_, offset in tensors), size - data_start]
    half = len(tensors) // 2
    paths = []
    for number, chosen in enumerate((tensors[:half], tensors[half:])):
        table, pieces, position = b"", [], 0
        for name, extents, kind, offset in chosen:
            length = next(end for end in ends if end > offset) - offset
            table += samples.tensor(name, extents, position, kind)
            pieces.append((data_start + offset, length))
            position += -(-length // ALIGNMENT) * ALIGNMENT
        said = _u16("split.no", number) + _u16("split.count", 2) + _i32("split.tensors.count", len(tensors))
        count = 3 if number else 3 + len(header.values)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(chosen), count) + (b"" if number else keys) + said + table
        path = folder / f"m-{number + 1:05}-of-00002.gguf"
        with open(whole, "rb") as source, open(path, "wb") as out:
            out.write(head + bytes(-len(head) % ALIGNMENT))
            for start, length in pieces:
                source.seek(start)
                out.write(source.read(length) + bytes(-length % ALIGNMENT))
        paths.append(path)
    return paths


def _u16(key: str, value: int) -> bytes:
    return samples.text(key) + struct.pack("<IH", 2, value)


def _i32(key: str, value: int) -> bytes:
    return samples.text(key) + struct.pack("<Ii", 5, value)


@pytest.mark.model
@pytest.mark.slow
async def test_a_split_model_answers(smollm2: Path, tmp_path: Path) -> None:
    paths = await trio.to_thread.run_sync(split, smollm2, tmp_path)
    info = await trio.to_thread.run_sync(inspect_paths, [(path.name, path) for path in paths])
    assert (info.opens, info.shape.parameters, info.shape.layers) == (paths[0].name, 134_515_008, 30)
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(EnginesConfig(), directory=tmp_path / "workers")
        await nursery.start(supervisor.run)
        supervisor.set_desired(
            {"root": LoadRequest("llama", paths[0], "root", 256, 1, 1, {"prefill_chunk_tokens": 32})}
        )
        engine = await supervisor.wait_ready("root")
        request = GenerateRequest(({"role": "user", "content": "Say hello."},), max_tokens=4, temperature=0.0)
        async with engine.generate(request) as events:
            seen = [event async for event in events]
        nursery.cancel_scope.cancel()
    assert isinstance(seen[-1], Finished)
    assert seen[-1].tokens_out > 0


def test_a_worker_may_read_the_parts_and_nothing_beside_them(tmp_path: Path) -> None:
    first = tmp_path / "m-00001-of-00003.gguf"
    allowed = set(access_for(first, tmp_path / "w").read)
    assert {str(tmp_path / f"m-0000{n}-of-00003.gguf") for n in (1, 2, 3)} <= allowed
    assert str(tmp_path) not in allowed
    assert (
        len([path for path in access_for(tmp_path / "m-00001-of-99999.gguf", tmp_path).read if "99999" in path]) == 1000
    )
    assert [path for path in access_for(tmp_path / "m-00002-of-00003.gguf", tmp_path).read if "00003" in path] == [
        str(tmp_path / "m-00002-of-00003.gguf")
    ]
