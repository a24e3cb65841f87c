"""`/v1/images/*` by OpenAI's own client, and forms with files under limits."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import openai
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.api.body import BodyLimits
from octonode.api.multipart import FORMS_AT_ONCE_MAX, Form, read_form
from octonode.api.schema.images import parse_images
from octonode.errors import OctonodeError
from octonode.protocol.work.image import ImageRequest, Images
from octonode.protocol.work.vision import IMAGE_BYTES_MAX
from octonode.tasks.asking import Ask
from octonode.testing.faces import PROVIDER, PlayedAsking, Stage, makes, says

PICTURES = (b"\x89PNG one", b"\x89PNG two")
MADE = Images(PICTURES, 64, 128, 20, 77)


def client_of(stage: Stage) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0)


async def test_the_openai_client_gets_pictures() -> None:
    async with Stage(asking=PlayedAsking(makes(MADE, steps=3))).run() as stage:

        def generate() -> Any:
            ours = {"seed": 77, "steps": 20, "guidance": 7.5, "negative_prompt": "rain"}
            with client_of(stage) as client:
                return client.images.generate(
                    model="tiny", prompt="a lighthouse", n=2, size="64x128", extra_body={"octonode": ours}
                )

        answer = await trio.to_thread.run_sync(generate)
    assert [base64.b64decode(each.b64_json) for each in answer.data] == list(PICTURES)
    assert (answer.size, answer.output_format) == ("64x128", "png")
    facts = answer.model_extra["octonode"]
    assert (facts["provider"], facts["verified"], facts["seed"], facts["steps"]) == (PROVIDER, True, 77, 20)
    assert stage.asking.asked[0].work == ImageRequest(
        "a lighthouse", "rain", width_pixels=64, height_pixels=128, steps=20, guidance=7.5, seed=77, count=2
    )


async def test_the_openai_client_edits_a_picture() -> None:
    async with Stage(asking=PlayedAsking(makes(MADE))).run() as stage:

        def edit(**more: Any) -> Any:
            with client_of(stage) as client:
                return client.images.edit(
                    model="tiny", image=("a.png", b"\x89PNG the first"), prompt="by night", n=1, **more
                )

        await trio.to_thread.run_sync(lambda: edit(extra_body={"octonode": {"strength": 0.5, "seed": 3}}))
        await trio.to_thread.run_sync(edit)
        neutral = {"stream": False, "partial_images": 0, "output_compression": 100, "safety_identifier": "u"}
        ours = {"octonode": {"negative_prompt": "42"}}
        await trio.to_thread.run_sync(lambda: edit(extra_body=ours, **neutral))
        with pytest.raises(openai.BadRequestError) as refused:
            await trio.to_thread.run_sync(lambda: edit(mask=("m.png", b"mask")))
    asked = stage.asking.asked[0].work
    assert asked == ImageRequest("by night", image=b"\x89PNG the first", strength=0.5, seed=3)
    assert stage.asking.asked[1].work == ImageRequest("by night", image=b"\x89PNG the first")
    assert stage.asking.asked[2].work == ImageRequest("by night", "42", image=b"\x89PNG the first")
    assert (refused.value.code, refused.value.param) == ("UNSUPPORTED", "mask")


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"response_format": "url"}, "UNSUPPORTED", "response_format"),
        ({"size": "65x64"}, "BAD_REQUEST", "size"),
        ({"size": "100000x100000"}, "BAD_REQUEST", "size"),
        ({"size": 512}, "BAD_REQUEST", "size"),
        ({"n": 9}, "BAD_REQUEST", "n"),
        ({"prompt": " "}, "BAD_REQUEST", "prompt"),
        ({"prompt": "x" * 16_385}, "BAD_REQUEST", "prompt"),
        ({"output_format": "jpeg"}, "UNSUPPORTED", "output_format"),
        ({"background": "transparent"}, "UNSUPPORTED", "background"),
        ({"image": "data:..."}, "BAD_REQUEST", "image"),
        ({"octonode": {"steps": 501}}, "BAD_REQUEST", "octonode.steps"),
        ({"octonode": {"strength": 0.5}}, "BAD_REQUEST", "octonode.strength"),
        ({"octonode": {"guidance": float("nan")}}, "BAD_REQUEST", "octonode.guidance"),
        ({"octonode": {"sed": 1}}, "BAD_REQUEST", "octonode"),
    ],
)
def test_what_is_not_served_is_named(change: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(OctonodeError) as refused:
        parse_images({"model": "m", "prompt": "x", **change})
    assert (refused.value.code, refused.value.detail["param"]) == (code, param)


def test_a_picture_over_what_is_taken_is_named() -> None:
    with pytest.raises(OctonodeError) as refused:
        parse_images({"model": "m", "prompt": "x"}, image=bytes(IMAGE_BYTES_MAX + 1))
    assert (refused.value.code, refused.value.detail["param"]) == ("TOO_LARGE", "image")


def test_a_client_that_says_what_is_so_anyway_is_served() -> None:
    hints = {"quality": "hd", "style": "vivid", "user": "u", "background": "auto", "output_format": "png", "n": None}
    assert parse_images({"model": "m", "prompt": "x", "size": "auto", **hints}).work == ImageRequest("x")


# --- Forms ----------------------------------------------------------------------------------------------------------

LIMITS = BodyLimits(bytes_max=1 << 20)
HEAD = 'Content-Disposition: form-data; name="{}"'


def form_of(*parts: tuple[str, bytes], boundary: str = "xyz") -> bytes:
    whole = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts)
    return whole + f"--{boundary}--\r\n".encode()


async def read(body: bytes, kind: str = "multipart/form-data; boundary=xyz", cut: int = 7) -> Form:
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1}
        for index, piece in enumerate(pieces)
    ]

    async def receive() -> Any:
        return messages.pop(0)

    scope = {"headers": [(b"content-type", kind.encode())]}
    return await read_form(scope, receive, LIMITS, files=frozenset({"image"}), numbers=frozenset({"n"}))


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), text=st.text(max_size=30), cut=st.integers(1, 64))
def test_a_form_survives_wherever_it_is_cut(data: bytes, text: str, cut: int) -> None:
    body = form_of(
        (HEAD.format("prompt"), text.encode()),
        (f'{HEAD.format("image")}; filename="a.png"\r\nContent-Type: image/png', data),
        (HEAD.format("n"), b"3"),
        (HEAD.format("octonode[seed]"), b"7"),
        (HEAD.format("octonode[peer]"), b"12D3Koo"),
        (HEAD.format("kinds[]"), b"a"),
        (HEAD.format("kinds[]"), b"b"),
    )
    if b"\r\n--xyz" in data or b"\r\n--xyz" in text.encode():
        return
    form = trio.run(read, body, "multipart/form-data; boundary=xyz", cut)
    assert form.files == {"image": data}
    ours = {"seed": 7, "peer": "12D3Koo"}
    assert form.fields == {"prompt": text, "n": 3, "octonode": ours, "kinds": ["a", "b"]}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "ends before its last boundary"),
        (b"--xyz\r\n", "ends before its last boundary"),
        (b"garbage", "not multipart/form-data"),
        (form_of((HEAD.format("a"), b"\xff")), "a is not UTF-8"),
        (form_of((HEAD.format("a"), b"1"), (HEAD.format("a"), b"2")), "a twice"),
        (form_of(("X-Other: 1", b"1")), "has no name"),
        (form_of((f'{HEAD.format("other")}; filename="x"', b"1")), "other is no file"),
        (form_of((HEAD.format("image"), b"1")), "image must be a file"),
        (form_of((HEAD.format("image[]"), b"1")), "must be a file"),
        (form_of(*[(f'{HEAD.format("image")}; filename="x"', b"1")] * 2), "two files named image"),
        (form_of(*[(HEAD.format(f"f{index}"), b"1") for index in range(33)]), "over 32 parts"),
        (form_of((HEAD.format("a") + "; x=" + "y" * 5000, b"1")), "Maximum header size"),
        (form_of((HEAD.format("a"), b"x" * 65_537)), "over 65536 bytes"),
        (form_of((f'{HEAD.format("image")}; filename="x"', b"x" * (1 << 20))), "the body is over"),
    ],
    ids=lambda value: value if isinstance(value, str) else "body",
)
async def test_a_form_at_fault_is_named(body: bytes, told: str) -> None:
    with pytest.raises(OctonodeError, match=told) as refused:
        await read(body, cut=4096)
    assert refused.value.code in ("BAD_REQUEST", "TOO_LARGE", "UNSUPPORTED")


async def test_another_kind_of_body_is_refused() -> None:
    for kind in ("application/json", "multipart/form-data", "multipart/form-data; boundary="):
        with pytest.raises(OctonodeError, match="boundary"):
            await read(form_of(), kind)


async def test_so_many_forms_at_once_and_no_more() -> None:
    release = trio.Event()

    async def script(ask: Ask) -> Any:
        async for event in makes(MADE)(ask):
            await release.wait()
            yield event

    async with Stage(asking=PlayedAsking(script)).run() as stage:
        statuses: list[int] = []
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client, trio.open_nursery() as nursery:

            async def edit() -> None:
                answer = await client.post(
                    f"{stage.url}/v1/images/edits",
                    data={"model": "tiny", "prompt": "x"},
                    files={"image": ("a.png", b"picture")},
                )
                statuses.append(answer.status_code)

            for _ in range(FORMS_AT_ONCE_MAX):
                nursery.start_soon(edit)
            with trio.fail_after(30):
                while stage.asking.open < FORMS_AT_ONCE_MAX:
                    await trio.sleep(0.01)
            await edit()
            assert statuses == [429]
            stage.asking.script = says("chats go on")
            chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
            assert (await client.post(f"{stage.url}/v1/chat/completions", json=chat)).status_code == 200
            release.set()
    assert sorted(statuses) == [200] * FORMS_AT_ONCE_MAX + [429]


PLAIN: dict[str, Any] = {"model": "tiny"}
FORM: dict[str, Any] = {"data": PLAIN | {"prompt": "x"}}
ROUTES: dict[str, dict[str, Any]] = {
    "embeddings": {"json": PLAIN | {"input": "x"}},
    "images/generations": {"json": PLAIN | {"prompt": "x"}},
    "images/edits": FORM | {"files": {"image": ("a.png", b"picture")}},
    "audio/speech": {"json": PLAIN | {"input": "x"}},
    "audio/transcriptions": {"data": PLAIN, "files": {"file": ("a.wav", b"sound")}},
}


@pytest.mark.parametrize("route", ROUTES)
async def test_every_route_keeps_the_rules_of_the_face(route: str) -> None:
    """Privacy is refused and never lowered, an unknown model is 404, and a client that leaves cancels its work."""

    async def script(_: Ask) -> Any:
        await trio.sleep_forever()
        yield

    async with Stage(asking=PlayedAsking(script)).run() as stage, httpx.AsyncClient(timeout=60) as client:
        url = f"{stage.url}/v1/{route}"
        private = await client.post(url, **ROUTES[route], headers={"x-octonode-privacy": "private"})
        kind = "json" if "json" in ROUTES[route] else "data"
        other = ROUTES[route] | {kind: ROUTES[route][kind] | {"model": "nobody/has-this"}}
        unknown = await client.post(url, **other)
        assert stage.asking.asked == []
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: client.post(url, **ROUTES[route]))
                await stage.asking.began.wait()
                nursery.cancel_scope.cancel()
            await stage.asking.left.wait()
        assert stage.asking.open == 0
    assert (private.status_code, private.json()["error"]["code"]) == (422, "PRIVACY_UNAVAILABLE")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "MODEL_NOT_FOUND")
    assert unknown.headers["x-request-id"]
