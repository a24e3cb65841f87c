"""Every category between real daemons: A has the models and makes it, C has none and asks, in each of its tongues."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageDraw, ImageFont

from octonode.api.schema import AddModel, ServeModel, to_json
from octonode.api.schema.embeddings import vectors_of
from octonode.api.schema.inference import Infer, InferenceCalls, Mode
from octonode.client import Client
from octonode.testing.daemon import Daemon
from tests.process.fleet import Fleet, fails, known, octonode, proven, works

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.slow]

MODELS = ("minilm", "ocr", "text-direction", "silero-vad", "piper-joe")
WRITTEN = "OCTONODE 42"
SENTENCES = ["A cat sat on the mat.", "The kitten lay on the rug.", "Interest rates rose in May."]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}


@pytest.fixture(scope="module")
def a(fleet: Fleet, place: Path, built_model: Callable[[str], Path], smollm2: Path) -> Daemon:
    node = fleet.start(place / "a")
    with Client.from_home(node.home) as client:
        for name, path in [*((name, built_model(name)) for name in MODELS), ("words", smollm2)]:
            client.add_model(AddModel(path=str(path), name=name, publish=True))
            client.serve_model(ServeModel(reference=f"{node.peer_id}/{name}"))
    return node


@pytest.fixture(scope="module")
def c(fleet: Fleet, place: Path, a: Daemon) -> Daemon:
    """Has joined A and has heard of what it serves."""
    node = fleet.start(place / "c", "--bootstrap", a.ready.join)
    fleet.met(node, a)
    with Client.from_home(node.home) as client:
        fleet.until(lambda: all(known(client, f"{a.peer_id}/{name}") for name in (*MODELS, "words")))
    return node


@pytest.fixture(scope="module")
def picture(place: Path) -> Path:
    image = Image.new("RGB", (400, 80), "white")
    ImageDraw.Draw(image).text((20, 20), WRITTEN, fill="black", font=ImageFont.load_default(32))
    image.save(place / "sign.png")
    return place / "sign.png"


@pytest.fixture
def asked(c: Daemon) -> openai.OpenAI:
    """OpenAI's own client at C."""
    return openai.OpenAI(base_url=f"{c.api}/v1", api_key="none", max_retries=0, timeout=120)


def test_embeddings(asked: openai.OpenAI, a: Daemon, c: Daemon) -> None:
    with asked:
        answer = asked.embeddings.create(model=f"{a.peer_id}/minilm", input=SENTENCES)
    proven(answer.model_extra["octonode"], a, c)  # type: ignore[index]
    first, second, third = (each.embedding for each in answer.data)
    assert len(first) == 384
    assert dot(first, second) > 0.5 > dot(first, third)
    with Client.from_home(c.home) as client:
        made = client.embed(f"{a.peer_id}/minilm", SENTENCES[:1])
    assert vectors_of(made.result)[0] == pytest.approx(first, abs=1e-6)
    assert made.facts.verified
    told = works(c.home, "run", f"{a.peer_id}/minilm", SENTENCES[0])
    assert told["result"]["vectors"][0] == pytest.approx(first, abs=1e-6)
    proven(told["octonode"], a, c)


def dot(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


def test_text_in_pictures(a: Daemon, c: Daemon, picture: Path) -> None:
    with Client.from_home(c.home) as client:
        made = client.read(f"{a.peer_id}/ocr", picture.read_bytes())
    assert [line.text for line in made.result.lines] == [WRITTEN]
    assert made.facts.provider == a.peer_id
    told = works(c.home, "run", f"{a.peer_id}/ocr", "--input", str(picture))
    assert told["result"]["lines"][0]["text"] == WRITTEN
    proven(told["octonode"], a, c)
    assert WRITTEN in octonode(c.home, "run", f"{a.peer_id}/ocr", "--input", str(picture)).out


def test_labels_of_pictures(a: Daemon, c: Daemon, picture: Path) -> None:
    """Text that is upright, and the same picture turned."""
    turned = io.BytesIO()
    with Image.open(picture) as image:
        image.rotate(180).save(turned, "PNG")
    with Client.from_home(c.home) as client:
        found = [
            client.classify(f"{a.peer_id}/text-direction", data, top=1).result.labels[0].name
            for data in (picture.read_bytes(), turned.getvalue())
        ]
    assert found == ["upright", "upside_down"]
    proven(works(c.home, "run", f"{a.peer_id}/text-direction", "--input", str(picture))["octonode"], a, c)


def test_speech_and_where_it_is_heard(asked: openai.OpenAI, a: Daemon, c: Daemon, place: Path) -> None:
    said = "Hello there, this is a test."
    with asked:
        answer = asked.audio.speech.create(
            model=f"{a.peer_id}/piper-joe", input=said, voice="default", response_format="wav"
        )
        speech = answer.read()
    assert answer.response.headers["x-octonode-provider"] == a.peer_id
    assert answer.response.headers["x-octonode-verified"] == "true"
    receipt = httpx.get(f"{c.api}{answer.response.headers['x-octonode-receipt']}").json()
    assert receipt["verified"] is True
    with wave.open(io.BytesIO(speech)) as file:
        seconds = file.getnframes() / file.getframerate()
    assert 1 < seconds < 5
    told = works(c.home, "run", f"{a.peer_id}/piper-joe", said, "--out", str(place / "speech.wav"))
    assert told["files"] == [str(place / "speech.wav")]
    spans = works(c.home, "run", f"{a.peer_id}/silero-vad", "--input", str(place / "speech.wav"))
    proven(spans["octonode"], a, c)
    heard = sum(each["end_seconds"] - each["start_seconds"] for each in spans["result"]["spans"])
    assert heard > seconds / 2


def test_answers_that_satisfy_a_schema(asked: openai.OpenAI, a: Daemon, c: Daemon) -> None:
    """A small model would not do it by itself: the engine is constrained at A, and C checks."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    question: Any = [{"role": "user", "content": "Invent a person. Answer in JSON."}]
    with asked:
        answer = asked.chat.completions.create(
            model=f"{a.peer_id}/words", messages=question, response_format=form, temperature=0, max_tokens=80
        )
    person = json.loads(answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)
    proven(answer.model_extra["octonode"], a, c)  # type: ignore[index]


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_that_must_be_called(asked: openai.OpenAI, a: Daemon, c: Daemon, stream: bool) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
    question: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
    with asked:
        answer: Any = asked.chat.completions.create(
            model=f"{a.peer_id}/words", messages=question, tools=tools, tool_choice="required",
            temperature=0, max_tokens=80, stream=stream,
        )  # fmt: skip
        chunks = list(answer) if stream else []
    (call,) = chunks[0].choices[0].delta.tool_calls if stream else answer.choices[0].message.tool_calls
    last = chunks[-1] if stream else answer
    assert call.function.name == "weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    assert last.choices[0].finish_reason == "tool_calls"
    proven(last.model_extra["octonode"], a, c)


def test_a_text_gone_on_from_with_the_probabilities_of_its_tokens(asked: openai.OpenAI, a: Daemon, c: Daemon) -> None:
    with asked:
        answer = asked.completions.create(
            model=f"{a.peer_id}/words", prompt="The capital of France is", temperature=0, max_tokens=4, logprobs=2
        )
    choice = answer.choices[0]
    assert choice.text.startswith(" Paris")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens).startswith(" Paris")
    assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs or ())
    proven(answer.model_extra["octonode"], a, c)  # type: ignore[index]


@pytest.mark.parametrize("mode", ["realtime", "batch", "async"])
def test_every_mode_on_real_engines(a: Daemon, c: Daemon, mode: Mode) -> None:
    """The scripted engine shows what each mode does, `test_modes.py`; here the same goes through real ones at A."""
    say = Infer(
        f"{a.peer_id}/words", input={"prompt": "The capital of France is"},
        parameters={"max_tokens": 4, "temperature": 0}, mode=mode,
    )  # fmt: skip
    embed = Infer(f"{a.peer_id}/minilm", skill="embed", input={"texts": SENTENCES[:1]}, mode=mode)
    for asked in (say, embed):
        with Client.from_home(c.home) as client:
            given = client.do(InferenceCalls.submit(asked))
        done = works(c.home, "task", "wait", given.id) if mode == "async" else to_json(given)
        assert (done["state"], done["mode"]) == ("completed", mode)
        assert done["octonode"]["provider"] == a.peer_id
        proven(done["octonode"], a, c)
        result = done["result"]
        assert result["text"].startswith(" Paris") if asked is say else result["dimensions"] == 384


def test_what_a_model_cannot_do_is_told_before_anybody_is_asked(
    asked: openai.OpenAI, a: Daemon, c: Daemon, picture: Path
) -> None:
    with asked, pytest.raises(openai.BadRequestError, match="cannot embed; it can read") as refused:
        asked.embeddings.create(model=f"{a.peer_id}/ocr", input="x")
    assert refused.value.code == "UNSUPPORTED"
    assert "--input FILE" in fails(c.home, "run", f"{a.peer_id}/ocr", "hello", code="BAD_REQUEST", exit_code=2)
    broken = picture.parent / "broken.png"
    broken.write_bytes(b"\x89PNG and no more")
    message = fails(c.home, "run", f"{a.peer_id}/ocr", "--input", str(broken), code="BAD_REQUEST", exit_code=2)
    assert "convert it to PNG" in message
    told = works(c.home, "run", f"{a.peer_id}/ocr", "--input", str(picture))
    assert told["result"]["lines"][0]["text"] == WRITTEN, "and the next one is served"


def test_a_folder_is_run_without_a_daemon(tmp_path: Path, built_model: Callable[[str], Path]) -> None:
    told = works(tmp_path / "home", "run", str(built_model("minilm")), SENTENCES[0])
    assert told["octonode"]["local"] is True
    assert len(told["result"]["vectors"][0]) == 384
    assert not (tmp_path / "home" / "daemon.json").exists()
