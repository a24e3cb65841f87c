"""What a user may give that cannot be: a clear error, its exit code and HTTP status, and the daemon still answers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octonode.client import Client
from octonode.ipfs.cid import raw_cid
from octonode.testing.daemon import Daemon
from tests.process.fleet import Asking, Fleet, fails, octonode, works

pytestmark = pytest.mark.process

NOWHERE = raw_cid(b"nobody has this").text


@pytest.fixture(scope="module")
def a(fleet: Fleet, place: Path, scripted: Path) -> Daemon:
    """Serves `words` to anybody."""
    node = fleet.start(place / "a", "--public")
    works(node.home, "models", "add", str(scripted), "--name", "words", "--publish")
    works(node.home, "models", "serve", "words")
    return node


@pytest.fixture(scope="module")
def shared(fleet: Fleet, place: Path, a: Daemon) -> Daemon:
    """Asks; it has no model."""
    node = fleet.start(place / "b", "--bootstrap", a.address)
    fleet.met(node, a)
    return node


@pytest.fixture
def b(shared: Daemon, a: Daemon) -> Iterator[Daemon]:
    """`shared`, which after each test has as few models as before and still gets its answers from `a`."""
    before = files(shared.home)
    yield shared
    assert shared.running
    with Client.from_home(shared.home) as client:
        assert [model.state for model in client.models()] == ["network"]
    answer = Asking(shared, f"{a.peer_id}/words", "still there?").whole()
    assert answer.facts is not None
    assert answer.facts.provider == a.peer_id
    assert files(shared.home) == before


def files(home: Path) -> set[Path]:
    """All that a fetch or an import could leave behind."""
    return {path for folder in ("models", "manifests") for path in (home / folder).rglob("*")}


def refused(node: Daemon, model: str, content: str = "hello", **fields: Any) -> tuple[int, dict[str, Any]]:
    """Status and error of an OpenAI client's question."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
    answer = httpx.post(f"{node.api}/v1/chat/completions", json=body, timeout=60)
    return answer.status_code, answer.json()["error"]


def test_a_model_that_nobody_knows(b: Daemon, a: Daemon) -> None:
    model = f"{a.peer_id}/nosuch"
    for verb in (("run", model, "hello"), ("models", "fetch", model), ("models", "show", model)):
        message = fails(b.home, *verb, code="MODEL_NOT_FOUND", exit_code=4)
        assert f"nobody reachable knows {model}" in message
        assert "octonode peers" in message
    status, error = refused(b, model)
    assert (status, error["code"], error["type"]) == (404, "MODEL_NOT_FOUND", "not_found_error")
    status, error = refused(b, model, stream=True)
    assert (status, error["code"]) == (404, "MODEL_NOT_FOUND")


def test_a_publisher_that_nobody_knows(b: Daemon) -> None:
    message = fails(b.home, "run", "somebody/words", "hello", code="NOT_FOUND", exit_code=4)
    assert "'somebody'" in message
    assert "octonode models trust" in message
    assert refused(b, "somebody/words")[0] == 404


def test_a_cid_that_nobody_has(b: Daemon) -> None:
    message = fails(b.home, "models", "fetch", f"cid:{NOWHERE}", code="UNSIGNED", exit_code=3)
    assert "--allow-unsigned" in message
    fetch = ("models", "fetch", f"cid:{NOWHERE}", "--allow-unsigned")
    message = fails(b.home, *fetch, code="MODEL_NOT_FOUND", exit_code=4)
    assert f"nobody known here has {NOWHERE}" in message
    assert "right CID" in message
    assert refused(b, f"cid:{NOWHERE}")[0] == 404


@pytest.mark.parametrize("cid", ["bafy", "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzd", "Qm", "nocid"])
def test_what_is_no_cid(b: Daemon, cid: str) -> None:
    message = fails(b.home, "models", "fetch", f"cid:{cid}", code="BAD_REQUEST", exit_code=2)
    assert f"'{cid}' is not a CID" in message
    assert refused(b, f"cid:{cid}")[0] == 400


def test_a_pickle_called_gguf(b: Daemon, tmp_path: Path) -> None:
    evil = tmp_path / "model.gguf"
    evil.write_bytes(pickle.dumps({"weights": [1.0] * 1000}))
    for verb in (("models", "add", str(evil)), ("run", str(evil), "hello")):
        message = fails(b.home, *verb, code="FORMAT_REFUSED", exit_code=6)
        assert str(evil) in message
        assert "pickle" in message
        assert "convert it to SafeTensors or GGUF" in message


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"just text"])
def test_a_file_that_is_no_model(b: Daemon, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    message = fails(b.home, "models", "add", str(file), code="FORMAT_REFUSED", exit_code=6)
    assert str(file) in message


def test_a_file_that_is_not_there(b: Daemon, tmp_path: Path) -> None:
    for verb in (("models", "add"), ("models", "cid")):
        assert "is not a file" in fails(b.home, *verb, str(tmp_path / "none.gguf"), code="NOT_FOUND", exit_code=4)
    message = fails(b.home, "run", "none.gguf", "hello", code="NOT_FOUND", exit_code=4)
    assert "none.gguf does not exist" in message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context(b: Daemon, a: Daemon, stream: bool) -> None:
    """Refused by the provider, before the first token; the message says by how much."""
    status, error = refused(b, f"{a.peer_id}/words", "word " * 3000, stream=stream)
    assert (status, error["code"]) == (400, "CONTEXT_EXCEEDED")
    assert "3000 tokens" in error["message"]
    assert "2048" in error["message"]


def test_a_prompt_over_the_context_at_the_shell(b: Daemon, a: Daemon) -> None:
    question = {"given": "word " * 3000}
    message = fails(b.home, "run", f"{a.peer_id}/words", code="CONTEXT_EXCEEDED", exit_code=3, **question)
    assert "shorten it" in message


def test_nothing_to_ask(b: Daemon, a: Daemon) -> None:
    assert "no question" in fails(b.home, "run", f"{a.peer_id}/words", code="BAD_REQUEST", exit_code=2)


def test_a_publisher_without_trust(b: Daemon, a: Daemon) -> None:
    """Asking is free; taking in needs trust, and the message shows the key and says how."""
    model = f"{a.peer_id}/words"
    for verb in (("models", "fetch", model), ("models", "serve", model)):
        message = fails(b.home, *verb, code="NOT_TRUSTED", exit_code=3)
        assert a.peer_id in message
        assert "Ed25519 key" in message
        assert f"octonode models trust {a.peer_id}" in message


@pytest.mark.parametrize(
    ("line", "says"),
    [("nonsense", "begins with octonode:"), ("octonode:AAAA", "version"), ("/ip4/127.0.0.1/tcp/1", "/p2p/<peer id>")],
)
def test_what_is_no_join_line(b: Daemon, line: str, says: str) -> None:
    assert says in fails(b.home, "join", line, code="BAD_REQUEST", exit_code=2)


def test_a_join_line_of_a_node_that_is_gone(b: Daemon) -> None:
    line = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
    message = fails(b.home, "join", line, code="UNREACHABLE", exit_code=5)
    assert "127.0.0.1" in message
    assert not (b.home / "joined.json").exists()  # not remembered


def test_a_peer_that_is_not_there(b: Daemon, a: Daemon) -> None:
    stranger = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
    done = octonode(b.home, "run", f"{a.peer_id}/words", "hello", "--peer", stranger, "--json")
    assert done.code in (4, 5)
    assert stranger in done.error["message"]
    message = fails(b.home, "run", f"{a.peer_id}/words", "hello", "--peer", "me", code="BAD_REQUEST", exit_code=2)
    assert "'me'" in message
