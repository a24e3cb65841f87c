"""The verbs of versions over a real socket."""

from __future__ import annotations

import httpx
import pytest

from octonode.api.schema import RollbackModel, UpdateModel
from octonode.api.schema.versions import (
    DeprecateModel,
    ImportTrust,
    OutdatedModel,
    TrustedPublisher,
    deprecate,
    import_trust,
    outdated,
    versions,
)
from octonode.client import AsyncClient
from octonode.errors import OctonodeError
from octonode.testing.faces import TOKEN, Stage
from octonode.testing.faces_versions import PlayedVersions

ADMIN = {"authorization": f"Bearer {TOKEN}"}
ROW = OutdatedModel("somebody/words@^1", "words", "somebody", "1.0.0", "1.1.0", "2.0.0", "bafy", True, "bad", False)


async def test_the_client_does_all_of_them() -> None:
    played = PlayedVersions(behind=[ROW])
    async with Stage(versions=played).run() as stage, AsyncClient(stage.url, TOKEN) as client:
        assert await client.do(outdated) == (ROW,)
        assert await client.do(versions("somebody/words")) == played.name
        assert await client.do(deprecate(DeprecateModel("words@1.0.0", "old", "1.1.0"))) == played.name
        listed = ImportTrust((TrustedPublisher("somebody", "alias"),))
        assert (await client.do(import_trust(listed))).added == 1
        assert (await client.work(UpdateModel("somebody/words@^1", trust=True))).model.version == "1.1.0"
        assert (await client.work(RollbackModel("words"))).note == "1.1.0 is passed over"
        with pytest.raises(OctonodeError) as missing:
            await client.do(versions("somebody/else"))
        with pytest.raises(OctonodeError) as refused:
            await client.do(deprecate(DeprecateModel("somebody-else/words@1.0.0")))
    assert missing.value.code == "MODEL_NOT_FOUND"
    assert refused.value.code == "FORBIDDEN"
    assert played.asked[:4] == [
        DeprecateModel("words@1.0.0", "old", "1.1.0"), listed, UpdateModel("somebody/words@^1", True),
        RollbackModel("words"),
    ]  # fmt: skip


async def test_what_changes_the_node_needs_the_admin_scope() -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        assert (await client.get("/api/v1/models/outdated")).status_code == 200
        assert (await client.get("/api/v1/models/versions/somebody/words")).status_code == 200
        for verb in ("update", "rollback", "deprecate", "trust/import"):
            answer = await client.post(f"/api/v1/models/{verb}", json={})
            assert answer.status_code in (401, 403), verb
        assert stage.versions.asked == []


@pytest.mark.parametrize(
    ("verb", "body", "parameter"),
    [
        ("update", {}, "reference"),
        ("rollback", {"reference": 3}, "reference"),
        ("deprecate", {"reference": "a@1.0.0", "reasonn": "x"}, "reasonn"),
        ("trust/import", {"publishers": [{"alias": "x"}]}, "peer_id"),
    ],
)
async def test_what_cannot_be_read_is_refused_by_name(verb: str, body: dict[str, object], parameter: str) -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url, headers=ADMIN) as client:
        answer = await client.post(f"/api/v1/models/{verb}", json=body)
    assert answer.status_code == 400
    assert parameter in answer.json()["error"]["message"]
