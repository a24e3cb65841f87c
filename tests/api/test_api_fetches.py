"""`/api/v1/fetches` over a real socket."""

from __future__ import annotations

import httpx
import pytest

from octonode.api.schema.fetches import ChangeFetch, FetchFacts, change_fetch, fetches
from octonode.client import AsyncClient
from octonode.errors import OctonodeError
from octonode.testing.faces import MODEL, ROOT, TOKEN, Stage
from octonode.testing.faces_models import PlayedFetches

ADMIN = {"authorization": f"Bearer {TOKEN}"}
ONE = FetchFacts(ROOT, MODEL, "running", 3, True, 5, 10, 2.5, 2.0, {"gateway:x": 5}, {"gateway:x": 2.5})


def _stage() -> Stage:
    return Stage(fetches=PlayedFetches([ONE]))


async def test_the_client_sees_and_changes_them() -> None:
    async with _stage().run() as stage, AsyncClient(stage.url, TOKEN) as client:
        assert await client.do(fetches) == (ONE,)
        paused = await client.do(change_fetch(ChangeFetch(MODEL, "pause")))
        sooner = await client.do(change_fetch(ChangeFetch(ROOT, "prioritize", 9)))
        with pytest.raises(OctonodeError) as caught:
            await client.do(change_fetch(ChangeFetch("cid:nothing", "cancel")))
    assert (paused.state, sooner.priority) == ("paused", 9)
    assert caught.value.row.http_status == 404


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"reference": ROOT, "action": "burn"}, "action"),
        ({"reference": ROOT}, "action"),
        ({"reference": ROOT, "action": "pause", "prioritty": 3}, "prioritty"),
    ],
)
async def test_what_is_no_change_is_refused_by_name(body: dict[str, str], parameter: str) -> None:
    async with _stage().run() as stage, httpx.AsyncClient(base_url=stage.url, headers=ADMIN) as client:
        answer = await client.post("/api/v1/fetches", json=body)
    assert answer.status_code == 400
    assert parameter in answer.json()["error"]["message"]


async def test_changing_needs_the_admin_scope() -> None:
    async with _stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        looked = await client.get("/api/v1/fetches")
        changed = await client.post("/api/v1/fetches", json={"reference": ROOT, "action": "pause"})
    assert looked.status_code == 200
    assert changed.status_code in (401, 403)
