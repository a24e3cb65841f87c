"""A typed client of a node's HTTP API: for the command line, for tests, and as a library.

    with Client.from_home() as client:
        with client.chat("publisher/name", [{"role": "user", "content": "Hello"}]) as stream:
            for text in stream:
                print(text, end="", flush=True)
        print(stream.result.facts)

`AsyncClient` has the same verbs for trio. Verbs of each skill (`embed`, `image`, `transcribe`, ...) stand in `works`.
Every error of the daemon is raised here as the `OctonodeError` that was raised there, so `error.code` and
`error.row.exit_code` hold. The API itself: protocols/http.md.
"""

from __future__ import annotations

from octonode.client.blocking import Client, Stream
from octonode.client.home import daemon_running, find_daemon
from octonode.client.on_trio import AsyncClient, AsyncStream

__all__ = ["AsyncClient", "AsyncStream", "Client", "Stream", "daemon_running", "find_daemon"]
