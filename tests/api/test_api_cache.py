"""`POST /api/v1/models/gc` on the real faces, in front of a cache that is played."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from octonode.api.schema.cache import Collected, CollectGarbage, GarbageFacts, collect_garbage
from octonode.client import AsyncClient
from octonode.errors import OctonodeError
from octonode.testing.faces import TOKEN, Stage

ITEM = GarbageFacts("model", "us/words", 3_000_000, True, "unused for longest", "bafy", 5)


async def test_what_is_asked_arrives_and_what_was_done_comes_back() -> None:
    stage = Stage()
    stage.cache.collected = Collected((ITEM,), 3_000_000, short_bytes=7)
    async with stage.run(), AsyncClient(stage.url, TOKEN) as client:
        found = await client.do(collect_garbage(CollectGarbage(dry_run=True, free_bytes=10, force=True)))
    assert stage.cache.asked == [CollectGarbage(True, 10, True)]
    assert found == Collected((ITEM,), 3_000_000, True, 7)


@pytest.mark.parametrize("body", [{"dry": True}, {"free_bytes": "much"}, {"dry_run": 1}, []])
async def test_a_body_that_is_no_request_is_refused(body: Any) -> None:
    stage = Stage()
    async with stage.run(), httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}) as http:
        answer = await http.post(f"{stage.url}/api/v1/models/gc", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "BAD_REQUEST"
    assert stage.cache.asked == []


async def test_it_needs_the_token() -> None:
    stage = Stage()
    async with stage.run(), AsyncClient(stage.url) as client:
        with pytest.raises(OctonodeError) as caught:
            await client.do(collect_garbage(CollectGarbage()))
    assert caught.value.code == "UNAUTHORIZED"
    assert stage.cache.asked == []
