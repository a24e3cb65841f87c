"""`/api/v1/models/{pin,unpin,pins}` over a real socket."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from octonode.api.schema.pins import PinCalls, PinModel, UnpinModel
from octonode.client import AsyncClient
from octonode.errors import OctonodeError
from octonode.testing.faces import MODEL, TOKEN, Stage
from octonode.testing.faces_pins import STRICT, US

ADMIN = {"authorization": f"Bearer {TOKEN}"}


async def test_pin_list_and_unpin() -> None:
    async with Stage().run() as stage, AsyncClient(stage.url, TOKEN) as client:
        assert (await client.do(PinCalls.pins())).pins == ()
        async with client.stream(PinCalls.pin(PinModel(MODEL, "12D3KooWOther", 30))) as stream:
            assert [(each.stage, each.done, each.total) async for each in stream] == [("pin", 1, 2)]
        found = stream.result.outcome
        assert found is not None
        assert (found.node, found.pins[0].state, found.pins[0].until_ms) == ("12D3KooWOther", "kept", 30)
        assert len(found.receipt) == 32
        listed = await client.do(PinCalls.pins())
        assert (listed.node, listed.pins, listed.room.pins) == (US, found.pins, 1)
        assert (await client.do(PinCalls.unpin(UnpinModel(MODEL)))).pins == ()
        assert (await client.do(PinCalls.pins("12D3KooWOther"))).pins == ()


async def test_a_refusal_has_its_status() -> None:
    async with Stage().run() as stage, AsyncClient(stage.url, TOKEN) as client:
        with pytest.raises(OctonodeError) as caught:
            await client.do(PinCalls.pins(STRICT))
        assert (caught.value.code, caught.value.row.http_status) == ("FORBIDDEN", 403)
        with pytest.raises(OctonodeError) as caught:
            async with client.stream(PinCalls.pin(PinModel(MODEL, STRICT))) as stream:
                assert [each async for each in stream] == []
        assert caught.value.code == "FORBIDDEN"


@pytest.mark.parametrize(
    ("path", "body", "parameter"),
    [
        ("pin", {"reference": MODEL, "dayz": 3}, "dayz"),
        ("pin", {"on": "x"}, "reference"),
        ("pin", {"reference": MODEL, "days": "many"}, "days"),
        ("unpin", {"reference": MODEL, "everybody": "yes"}, "everybody"),
    ],
)
async def test_what_is_no_pin_is_refused_by_name(path: str, body: dict[str, Any], parameter: str) -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url, headers=ADMIN) as client:
        answer = await client.post(f"/api/v1/models/{path}", json=body)
    assert answer.status_code == 400
    assert parameter in answer.json()["error"]["message"]


async def test_pinning_needs_the_admin_scope() -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        looked = await client.get("/api/v1/models/pins")
        for path in ("pin", "unpin"):
            refused = await client.post(f"/api/v1/models/{path}", json={"reference": MODEL})
            assert refused.status_code == 401
    assert looked.status_code == 200
