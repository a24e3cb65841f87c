"""The least that moves a file with care: sendfile on one side; recv 1 MiB, sha256, write, then fdatasync on the other.

python -m scripts.bench.plain_tcp receive FILE      prints its port, then the seconds from accept to fdatasync
python -m scripts.bench.plain_tcp send FILE PORT
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time

CHUNK_BYTES = 1024 * 1024


def receive(path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
    begun = time.perf_counter()
    digest, buffer = hashlib.sha256(), bytearray(CHUNK_BYTES)
    with connection, open(path, "wb", buffering=0) as file:
        while count := connection.recv_into(buffer, CHUNK_BYTES, socket.MSG_WAITALL):
            digest.update(memoryview(buffer)[:count])
            file.write(memoryview(buffer)[:count])
        os.fdatasync(file.fileno())
    print(time.perf_counter() - begun, flush=True)


def send(path: str, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection, open(path, "rb") as file:
        connection.sendfile(file)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], int(sys.argv[3]))
