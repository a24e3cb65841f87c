"""kill -9 at random moments of an upload: what is counted is on disk and right, and the upload goes on to its end."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octonode.api.schema.uploads import CreateUpload, UploadFile
from octonode.node.upload import DATA, Upload

SIZE = 40_000_000
WRITER = """
import random, sys
from pathlib import Path
from octonode.node.upload import Upload
(upload,) = Upload.load_all(Path(sys.argv[1]))
data = random.Random(7).randbytes(int(sys.argv[2]))
file = upload.open("m.gguf")
print("writing", flush=True)
at = upload.offsets["m.gguf"]
while at < len(data):
    for _ in range(4):
        file.write(data[at : at + 300_000])
        at += 300_000
    file.sync()
file.finish(b"")
"""


@pytest.mark.parametrize("seed", range(2))
def test_what_is_counted_is_there_whenever_it_is_killed(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    print(f"seed {seed}")
    data = random.Random(7).randbytes(SIZE)
    request = CreateUpload((UploadFile("m.gguf", SIZE),), name="n")
    Upload.create(tmp_path / "some", request, 1)
    kills, offset = 0, 0
    while offset < SIZE:
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(SIZE)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            if kills < 5:
                time.sleep(chance.uniform(0.0, 0.3))
                process.kill()
                kills += 1
            process.wait()
        (upload,) = Upload.load_all(tmp_path)
        assert upload.offsets["m.gguf"] >= offset
        offset = upload.offsets["m.gguf"]
        there = (tmp_path / "some" / DATA / "m.gguf").read_bytes()
        assert there[:offset] == data[:offset]
    assert (tmp_path / "some" / DATA / "m.gguf").read_bytes() == data
