"""Work that cannot be done, and models that cannot be run, at real daemons: each gets its error with the way out.

A serves models of every light category, to others too; C has none of them and asks A, and has engines that fail.
Through all of it one client reads a long answer from A, by way of C.
"""

from __future__ import annotations

import base64
import json
import sysconfig
import venv
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from octonode.api.schema import AddModel, ServeModel
from octonode.client import Client
from octonode.errors import TABLE, OctonodeError
from octonode.testing.daemon import Daemon
from tests.engines.gguf_files import write_nan
from tests.models import samples
from tests.process.bad_bytes import BAD_PICTURES, BAD_SOUNDS, TONE, WRITTEN, picture_of, sign
from tests.process.fleet import PATIENCE_SECONDS, Asking, Fleet, fails, works

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.slow]

MODELS = ("minilm", "ocr", "text-direction", "silero-vad", "piper-joe")
PACE = {"OCTONODE_ENGINES_SCRIPTED_TOKENS_PER_SECOND": "40", "OCTONODE_ENGINES_SCRIPTED_ANSWER_TOKENS": "240"}
CRASHES_MAX = 3
BODY_BYTES_MAX = 23 << 20
"""More than any face takes."""


@pytest.fixture(scope="module")
def a(fleet: Fleet, place: Path, built_model: Callable[[str], Path], smollm2: Path, scripted: Path) -> Daemon:
    node = fleet.start(place / "a", extra=PACE)
    given = [*((name, built_model(name)) for name in MODELS), ("words", smollm2), ("talk", scripted)]

    def serve(model: tuple[str, Path]) -> None:
        with Client.from_home(node.home) as client:
            client.add_model(AddModel(path=str(model[1]), name=model[0], publish=True))
            client.serve_model(ServeModel(reference=f"{node.peer_id}/{model[0]}"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(serve, given))
    return node


@pytest.fixture(scope="module")
def broken_python(place: Path) -> Path:
    """An interpreter that has all of ours; a module put beside it stands before ours of that name."""
    home = place / "python"
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    ours = [sysconfig.get_path("purelib"), str(Path(__file__).resolve().parents[2])]
    (packages / "ours.pth").write_text("\n".join(ours) + "\n")
    return home / "bin" / "python"


@pytest.fixture(scope="module")
def c(fleet: Fleet, place: Path, a: Daemon, broken_python: Path) -> Daemon:
    pythons = ",".join(f"{engine}={broken_python}" for engine in ("onnx-vision", "onnx-embeddings"))
    settings = {
        "OCTONODE_ENGINES_PYTHONS": pythons,
        "OCTONODE_ENGINES_CRASHES_BEFORE_QUARANTINE": str(CRASHES_MAX),
    }
    node = fleet.start(place / "c", "--bootstrap", a.ready.join, "--trust", a.peer_id, extra=settings)
    fleet.met(node, a)
    with Client.from_home(node.home) as client:
        fleet.until(lambda: all(known(client, f"{a.peer_id}/{name}") for name in (*MODELS, "words", "talk")))
    return node


def known(client: Client, model: str) -> bool:
    try:
        return bool(client.model(model).skills)
    except OctonodeError:
        return False


# -- Those who are not to be disturbed ----------------------------------------------------------------------------


class Reader:
    """Reads one long answer after the other; all of them are the same, and whole."""

    def __init__(self, node: Daemon, model: str) -> None:
        self._node = node
        self._model = model
        self._texts: set[str] = set()
        self._asking: Asking | None = None

    def read_on(self) -> int:
        """In the middle of an answer; the pieces of it that are here."""
        if self._asking is None or self._asking.answer is not None or self._asking.error is not None:
            self.end()
            self._asking = Asking(self._node, self._model, max_tokens=240)
            self._asking.begun()
        return len(self._asking.pieces)

    def goes_on(self, fleet: Fleet, since: int) -> None:
        """Until more of the answer than those pieces is here, or all of it."""
        asking = self._asking
        assert asking is not None
        fleet.until(lambda: len(asking.pieces) > since or asking.answer or asking.error)
        assert asking.error is None, asking.error

    def end(self) -> None:
        if self._asking is not None:
            self._texts.add(self._asking.whole().text)
            assert len(self._texts) == 1
            self._asking = None


@pytest.fixture(scope="module")
def reader(a: Daemon, c: Daemon) -> Iterator[Reader]:
    reader = Reader(c, f"{a.peer_id}/talk")
    yield reader
    reader.end()


@pytest.fixture(autouse=True)
def _undisturbed(fleet: Fleet, a: Daemon, c: Daemon, reader: Reader) -> Iterator[None]:
    """Both daemons and every worker of A live on, and the answer that is being read goes on."""
    workers = workers_of(a)
    assert len(workers) == len(MODELS) + 2
    before = reader.read_on()
    yield
    reader.goes_on(fleet, before)
    assert a.running
    assert c.running
    assert workers_of(a) == workers


def workers_of(node: Daemon) -> set[int]:
    return {each.pid for each in psutil.Process(node.pid).children() if "octonode.engines.worker" in each.cmdline()}


@pytest.fixture(params=["at its own node", "through a peer"])
def face(request: pytest.FixtureRequest, a: Daemon, c: Daemon) -> Daemon:
    """Who is asked for the work of A's models."""
    return a if request.param == "at its own node" else c


# -- Asking --------------------------------------------------------------------------------------------------------


def posted(node: Daemon, path: str, body: Mapping[str, Any]) -> httpx.Response:
    return httpx.post(f"{node.api}{path}", json=body, timeout=PATIENCE_SECONDS)


def infer(node: Daemon, model: str, skill: str, given: Mapping[str, Any], **parameters: Any) -> httpx.Response:
    """By the native API; bytes go as base64."""
    plain = {name: base64.b64encode(each).decode() if isinstance(each, bytes) else each for name, each in given.items()}
    return posted(node, "/api/v1/inference", {"model": model, "skill": skill, "input": plain, "parameters": parameters})


def refused(response: httpx.Response, code: str) -> str:
    """The message of a refusal with this code and the HTTP status that belongs to it."""
    assert response.is_error, response.text[:300]
    error = response.json()["error"]
    assert (error["code"], response.status_code) == (code, TABLE[code].http_status), error
    return str(error["message"])


def done(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["result"]


# -- Work ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context(face: Daemon, a: Daemon, stream: bool) -> None:
    model, words = f"{a.peer_id}/words", "word " * 3000
    asked = {"model": model, "messages": [{"role": "user", "content": words}], "stream": stream}
    for path, body in (
        ("/v1/chat/completions", asked),
        ("/v1/completions", {"model": model, "prompt": words, "stream": stream}),
    ):
        message = refused(posted(face, path, body), "CONTEXT_EXCEEDED")
        assert "2048" in message
        assert "shorten" in message


def test_a_text_that_is_not_to_be_cut(face: Daemon, a: Daemon) -> None:
    """Beside it, the same text may be cut, and it is told."""
    body = {"model": f"{a.peer_id}/minilm", "input": ["short", "word " * 3000]}
    message = refused(posted(face, "/v1/embeddings", {**body, "octonode": {"truncate": False}}), "CONTEXT_EXCEEDED")
    assert "256" in message or "512" in message
    assert "shorten" in message or "truncate" in message
    cut = posted(face, "/v1/embeddings", body)
    assert cut.status_code == 200, cut.text
    assert len(cut.json()["data"]) == 2


def together(*calls: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """All at once, so that they may come into one batch."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))


@pytest.mark.parametrize(("model", "skill"), [("ocr", "read"), ("text-direction", "classify")])
def test_bad_pictures_among_good_ones(face: Daemon, a: Daemon, model: str, skill: str) -> None:
    """Only the bad ones fail."""
    given = [sign(), *(data for data, _, _ in BAD_PICTURES.values()), sign()]
    asked = [partial(infer, face, f"{a.peer_id}/{model}", skill, {"image": data}) for data in given]
    first, *bad, last = together(*asked)
    for response, (_, code, way_out) in zip(bad, BAD_PICTURES.values(), strict=True):
        assert way_out in refused(response, code)
    for each in map(done, (first, last)):
        if skill == "read":
            assert [line["text"] for line in each["lines"]] == [WRITTEN]
        else:
            assert each["labels"][0]["name"] == "upright"


def test_a_picture_that_unpacks_to_a_thousand_times_its_size_is_only_large(face: Daemon, a: Daemon) -> None:
    """60 million pixels, all white, in 20 KB: within the limit, so it is looked at."""
    width, height = 10_000, 6_000
    data = picture_of(width, height, (b"\0" + b"\xff" * (width // 8)) * height)
    assert len(data) < 20_480
    found = done(infer(face, f"{a.peer_id}/ocr", "read", {"image": data}))
    assert (found["lines"], found["width_pixels"]) == ([], width)


def test_bad_sounds_among_good_ones(face: Daemon, a: Daemon) -> None:
    given = [TONE, *(data for data, _, _ in BAD_SOUNDS.values()), TONE]
    asked = [partial(infer, face, f"{a.peer_id}/silero-vad", "voice_activity", {"audio": data}) for data in given]
    first, *bad, last = together(*asked)
    for response, (_, code, way_out) in zip(bad, BAD_SOUNDS.values(), strict=True):
        assert way_out in refused(response, code)
    assert [each["seconds"] for each in map(done, (first, last))] == [1.0, 1.0]


def test_bodies_over_the_limit_are_refused_before_they_are_held(face: Daemon, a: Daemon) -> None:
    """As JSON, and as a form: neither is looked into."""
    native = httpx.post(f"{face.api}/api/v1/inference", content=bytes(BODY_BYTES_MAX), timeout=PATIENCE_SECONDS)
    assert "send less" in refused(native, "TOO_LARGE")
    form = httpx.post(
        f"{face.api}/v1/audio/transcriptions",
        data={"model": f"{a.peer_id}/silero-vad"},
        files={"file": ("long.wav", bytes(BODY_BYTES_MAX))},
        timeout=PATIENCE_SECONDS,
    )
    assert "send less" in refused(form, "TOO_LARGE")


def test_more_text_than_is_spoken_at_a_time(face: Daemon, a: Daemon) -> None:
    body = {"model": f"{a.peer_id}/piper-joe", "input": "word " * 1000, "voice": "default", "response_format": "wav"}
    assert "4096" in refused(posted(face, "/v1/audio/speech", body), "BAD_REQUEST")


# -- Schemas -------------------------------------------------------------------------------------------------------


def schemed(node: Daemon, model: str, schema: Any, content: str = "Write an a.", **fields: Any) -> httpx.Response:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    messages = [{"role": "user", "content": content}]
    asked = {"model": model, "messages": messages, "response_format": form, "temperature": 0, "max_tokens": 24}
    return posted(node, "/v1/chat/completions", {**asked, **fields})


def with_pattern(pattern: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": pattern}},
        "required": ["a"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("schema", "way_out"),
    [
        ({"type": "strng"}, "at type"),
        ({"properties": {"a": {"$ref": "https://example.com/a.json"}}}, "refer with #/$defs/NAME"),
        (with_pattern("((a{1000}){1000}){1000}"), "pattern"),
        (with_pattern("(a"), "pattern"),
    ],
    ids=["malformed", "remote", "multiplying", "unclosed"],
)
def test_schemas_that_are_none(face: Daemon, a: Daemon, schema: Any, way_out: str) -> None:
    assert way_out in refused(schemed(face, f"{a.peer_id}/words", schema), "BAD_REQUEST")
    native = infer(
        face,
        f"{a.peer_id}/words",
        "chat",
        {"messages": [{"role": "user", "content": "x"}], "schema": json.dumps(schema)},
    )
    assert native.json()["error"]["code"] in ("BAD_REQUEST", "UNSUPPORTED"), "the engine refuses it too"


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^((a?){20}){20}a{20}$", "^[ab]*a[ab]{60}$"])
def test_patterns_that_explode_elsewhere(face: Daemon, a: Daemon, pattern: str) -> None:
    """Held to or refused, while another answer is written by the same worker, and then another still."""
    model = f"{a.peer_id}/words"
    other = Asking(face, model, "Tell me a story.", max_tokens=40)
    other.begun()
    response = schemed(face, model, with_pattern(pattern))
    assert other.whole().text
    if response.is_error:
        assert "simplify it" in refused(response, "UNSUPPORTED")
    else:
        said = response.json()["choices"][0]
        assert said["finish_reason"] in ("stop", "length")
    assert Asking(face, model, "Say hello.", max_tokens=4).whole().text


# -- Models --------------------------------------------------------------------------------------------------------


def added(node: Daemon, path: Path, name: str) -> str:
    """Its reference at this node."""
    with Client.from_home(node.home) as client:
        return client.add_model(AddModel(path=str(path), name=name)).model.reference


def shim(python: Path, text: str) -> Path:
    """What that interpreter imports as onnxruntime from now on; remove the file, and it is ours again."""
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    file = packages / "onnxruntime.py"
    file.write_text(text)
    return file


def loaded(node: Daemon, reference: str) -> dict[str, Any]:
    found = [each for each in works(node.home, "engines")["loaded"] if each["reference"] == reference]
    return found[0] if found else {}


def test_a_model_that_needs_more_memory_than_there_is(c: Daemon, tmp_path: Path) -> None:
    """By what its header says, before anything is loaded."""
    sizes = {
        "block_count": 2000, "embedding_length": 1 << 20, "attention.head_count": 64, "attention.head_count_kv": 64,
        "context_length": 1 << 20, "vocab_size": 128_000,
    }  # fmt: skip
    data = samples.gguf({f"llama.{name}": value for name, value in sizes.items()}, [samples.tensor("a", [64], 0)], 256)
    (tmp_path / "huge.gguf").write_bytes(data)
    reference = added(c, tmp_path / "huge.gguf", "huge")
    before = workers_of(c)
    message = fails(c.home, "models", "serve", reference, code="MODEL_UNAVAILABLE", exit_code=4)
    assert "GB of memory and" in message
    assert "are missing" in message
    assert "serve a smaller model, or ask a node that has more" in message
    assert workers_of(c) == before
    assert not loaded(c, reference)


def test_a_model_that_computes_no_numbers(c: Daemon, tmp_path: Path, smollm2: Path) -> None:
    reference = added(c, write_nan(smollm2, tmp_path / "nan.gguf"), "nan")
    message = fails(c.home, "models", "serve", reference, code="ENGINE_FAILED", exit_code=1)
    assert "NaN" in message
    assert "octonode models verify" in message


def test_an_engine_that_is_not_installed(c: Daemon, broken_python: Path, built_model: Callable[[str], Path]) -> None:
    file = shim(broken_python, "raise ModuleNotFoundError(\"No module named 'onnxruntime'\")\n")
    reference = added(c, built_model("minilm"), "own-minilm")
    message = fails(c.home, "models", "serve", reference, code="CONFIG", exit_code=2)
    assert "pip install 'octonode[onnx]'" in message
    file.unlink()  # as that command would do
    assert works(c.home, "models", "serve", reference)["model"]["state"] == "serving"


def test_an_engine_that_dies_at_load_for_the_third_time(
    fleet: Fleet, c: Daemon, broken_python: Path, built_model: Callable[[str], Path]
) -> None:
    """It served, then its library broke: it is tried, put away with the reason, and comes back when it is asked for."""
    before = workers_of(c)
    reference = added(c, built_model("text-direction"), "own-direction")
    works(c.home, "models", "serve", reference)
    file = shim(broken_python, "import os\nos.abort()\n")
    for worker in workers_of(c) - before:
        psutil.Process(worker).kill()
    fleet.until(lambda: loaded(c, reference).get("state") == "quarantined")
    shown = loaded(c, reference)
    assert "SIGABRT" in shown["reason"]
    assert f"octonode models serve cid:{shown['root']}" in shown["reason"]
    file.unlink()
    assert works(c.home, "models", "serve", reference)["model"]["state"] == "serving"
    assert done(infer(c, reference, "classify", {"image": sign()}))["labels"][0]["name"] == "upright"
