"""A real nginx with `configs/nginx-cache.conf` in front of a gateway of ours, started and ended by pid."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "nginx-cache.conf"
SBIN = "/usr/sbin:/usr/local/sbin"
END_SECONDS = 10

MAIN = """\
daemon off;
user {user} {group};
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/nginx-cache.conf;
}}
"""


class Nginx:
    def __init__(self, port: int, folder: Path, pid: int) -> None:
        self.port = port
        self.folder = folder
        self.pid = pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kept(self, size_bytes_min: int = 0) -> list[Path]:
        """The files of the cache, of that size at least."""
        files = (path for path in (self.folder / "cache").rglob("*") if path.is_file())
        return sorted(path for path in files if path.stat().st_size >= size_bytes_min)

    def poison(self, size_bytes_min: int) -> None:
        """Change the last byte of everything kept of that size."""
        for path in self.kept(size_bytes_min):
            data = path.read_bytes()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def program() -> str:
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:{SBIN}")
    if found is None:
        pytest.fail("no nginx: apt-get install nginx-light", pytrace=False)
    return found


@contextmanager
def running_nginx(folder: Path, origin_port: int) -> Iterator[Nginx]:
    """nginx on a port of the kernel's choice, which it inherits as an open socket: nobody can take it meanwhile."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(256)
        port = listening.getsockname()[1]
        (folder / "nginx-cache.conf").write_text(_config(folder, port, origin_port))
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, **_us()))
        with (folder / "said.log").open("wb") as said:
            process = subprocess.Popen(
                [program(), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")],
                env={"NGINX": f"{listening.fileno()};"},
                pass_fds=(listening.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
    try:
        yield Nginx(port, folder, process.pid)
        assert process.poll() is None, (folder / "error.log").read_text()
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        finally:
            process.kill()
            process.wait()


def _us() -> dict[str, str]:
    """Workers run as who runs the tests: as root nginx would choose another user, who may not read the folder."""
    return {"user": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}


def _config(folder: Path, port: int, origin_port: int) -> str:
    text = CONFIG.read_text()
    changes = {
        "/var/cache/nginx/octonode": f"{folder}/cache",
        "server 127.0.0.1:4810;": f"server 127.0.0.1:{origin_port};",
        "listen 127.0.0.1:8480;": f"listen 127.0.0.1:{port};",
    }
    assert text.count("HERE:") == len(changes)
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text
