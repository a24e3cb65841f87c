"""The native API over a real socket: node, peers, models with their progress, tasks, receipts, events, health."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from typing import Any

import httpx
import pytest
import trio

from octonode.api.ports import Models
from octonode.errors import OctonodeError, VerificationFailed
from octonode.identity import NodeKey
from octonode.protocol.receipt import EngineFingerprint, Price, Receipt, Times, sign_receipt
from octonode.tasks.receipts import StoredReceipt
from octonode.testing.faces import MODEL, PROVIDER, ROOT, TASK, TOKEN, PlayedModels, Stage, a_model

ADMIN = {"authorization": f"Bearer {TOKEN}"}


async def test_health_readiness_and_metrics() -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        stage.node.reasons = ["no peer has been met"]
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        unready = await client.get("/readyz")
        stage.node.reasons = []
        ready = await client.get("/readyz")
        metrics = await client.get("/metrics")
    assert (unready.status_code, unready.json()) == (503, {"ready": False, "reasons": ["no peer has been met"]})
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
    assert metrics.headers["content-type"].startswith("text/plain")


async def test_models_are_listed_for_both_faces() -> None:
    held = a_model(reference=f"{PROVIDER}/held", root="bafyheld", state="held", servers=())
    stage = Stage(models=PlayedModels([a_model(), held]))
    async with stage.run(), httpx.AsyncClient(base_url=stage.url) as client:
        openai = (await client.get("/v1/models")).json()
        native = (await client.get("/api/v1/models")).json()
        one = await client.get(f"/v1/models/{MODEL}")
        missing = await client.get("/v1/models/nobody/nothing")
        shown = (await client.get(f"/api/v1/models/cid:{ROOT}")).json()
    assert [each["id"] for each in openai["data"]] == [MODEL]  # held and served by nobody: cannot be asked
    assert [each["reference"] for each in native["models"]] == [MODEL, f"{PROVIDER}/held"]
    assert one.json()["id"] == MODEL
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "MODEL_NOT_FOUND")
    assert shown["root"] == ROOT


async def lines_of(stage: Stage, path: str, body: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Status and lines; the work goes on once its first line is here."""
    stage.models.go = trio.Event()
    lines = []
    async with (
        httpx.AsyncClient(base_url=stage.url, headers=ADMIN) as client,
        client.stream("POST", path, json=body) as answer,
    ):
        async for line in answer.aiter_lines():
            lines.append(json.loads(line))
            stage.models.go.set()
    return answer.status_code, lines


async def test_a_long_verb_streams_its_progress_paced_and_ends_with_its_result() -> None:
    async with Stage().run() as stage:
        status, lines = await lines_of(stage, "/api/v1/models/fetch", {"reference": MODEL, "pin": True})
        assert stage.models.verbs[0].pin is True
    assert status == 200
    assert {line["type"] for line in lines[:-1]} == {"progress"}
    assert len(lines) < 20  # of a thousand reports: the latest is what is sent
    assert lines[-1]["type"] == "result"
    assert lines[-1]["result"]["model"]["root"] == ROOT
    assert lines[-1]["result"]["bytes_by_source"] == {"gateway": 1_000_000}


async def test_a_long_verb_that_fails_later_says_so_in_its_last_line() -> None:
    async with Stage(models=PlayedModels(failure=VerificationFailed("leaf 3 is not what it claims"))).run() as stage:
        status, lines = await lines_of(stage, "/api/v1/models/fetch", {"reference": MODEL})
        stage.models.failure = RuntimeError("a secret of ours")
        _, bug = await lines_of(stage, "/api/v1/models/verify", {"reference": MODEL})
    assert status == 200
    assert lines[-1]["type"] == "error"
    assert lines[-1]["error"]["code"] == "VERIFICATION_FAILED"
    assert bug[-1]["error"]["code"] == "INTERNAL"
    assert "secret" not in json.dumps(bug)


async def test_a_long_verb_that_fails_at_once_has_a_plain_status() -> None:
    async with Stage().run() as stage:
        status, lines = await lines_of(stage, "/api/v1/models/fetch", {"reference": "unknown/model"})
        typo, said = await lines_of(stage, "/api/v1/models/fetch", {"referense": MODEL})
    assert status == 403
    assert lines[0]["error"]["code"] == "NOT_TRUSTED"
    assert lines[0]["error"]["detail"] == {"publisher": PROVIDER, "name": "model"}
    assert (typo, said[0]["error"]["param"]) == (400, "referense")
    assert "did you mean reference?" in said[0]["error"]["message"]


async def test_a_client_that_leaves_cancels_a_long_verb() -> None:
    with trio.fail_after(30):
        async with Stage(models=PlayedModels(go=trio.Event())).run() as stage:
            async with (
                httpx.AsyncClient(base_url=stage.url, headers=ADMIN) as client,
                client.stream("POST", "/api/v1/models/add", json={"path": "/x.gguf"}) as answer,
            ):
                assert "find" in await anext(answer.aiter_lines())
            await stage.models.cancelled.wait()


async def test_trust_remove_join_tasks_explain_doctor_stop() -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url, headers=ADMIN) as client:
        trusted = (await client.post("/api/v1/models/trust", json={"publisher": PROVIDER, "note": "me"})).json()
        assert [each["peer_id"] for each in trusted["publishers"]] == [PROVIDER]
        gone = await client.post("/api/v1/models/trust", json={"publisher": PROVIDER, "trusted": False})
        assert gone.json() == {"publishers": []}
        joined = await client.post("/api/v1/peers", json={"address": f"/ip4/192.0.2.1/tcp/1/p2p/{PROVIDER}"})
        assert joined.json()["peer_id"] == PROVIDER
        assert (await client.post("/api/v1/peers", json={"address": "nowhere"})).status_code == 503
        tasks = (await client.get("/api/v1/tasks?limit=5")).json()["tasks"]
        assert [(each["task"], each["state"]) for each in tasks] == [(TASK.hex(), "completed")]
        assert (await client.get("/api/v1/tasks?limit=0")).status_code == 400
        assert (await client.get(f"/api/v1/tasks?limit={'9' * 5000}")).status_code == 400
        assert (await client.get(f"/api/v1/tasks?limit=000000009{'9' * 5000}")).status_code == 400
        explained = (await client.post("/api/v1/explain", json={"model": MODEL})).json()
        assert [each["accepted"] for each in explained["candidates"]] == [True, False]
        findings = (await client.get("/api/v1/doctor")).json()["findings"]
        assert findings[1] == {"check": "disk", "status": "failed", "summary": "full", "fix": "free some space"}
        stage.models.held = [a_model(pinned=True)]
        assert (await client.delete(f"/api/v1/models/{MODEL}")).status_code == 429
        assert (await client.delete(f"/api/v1/models/{MODEL}?force=1")).json()["root"] == ROOT
        assert (await client.get("/api/v1/models")).json() == {"models": []}
        assert (await client.post("/api/v1/stop")).json() == {"state": "leaving"}
        assert stage.node.stopped.is_set()


def a_receipt(key: NodeKey, header: bytes) -> bytes:
    return sign_receipt(
        key,
        Receipt(
            request=sha256(header).digest(),
            task=TASK,
            asker=PROVIDER,
            provider=key.peer_id,
            model_root=ROOT,
            manifest="",
            engine=EngineFingerprint("1", "cpu", "avx2"),
            parameters={"max_tokens": 5},
            seed=None,
            tokens_in=7,
            tokens_out=5,
            pieces=5,
            transcript=bytes(32),
            finish_reason="stop",
            price=Price(),
            privacy="public",
            privacy_evidence="none",
            times=Times(1, 2, 3, 4),
        ),
    )


async def test_a_receipt_is_checked_again_from_its_bytes() -> None:
    key = NodeKey(bytes(range(32)))
    good = StoredReceipt(TASK, "asker", key.peer_id, PROVIDER, ROOT, a_receipt(key, b"head"), b"head", True, 4)
    cases = {
        True: good,
        "another request": replace(good, request_header=b"other"),
        "bytes changed": replace(good, receipt=good.receipt[:-1] + bytes([good.receipt[-1] ^ 1])),
        "not what was received": replace(good, verified=False),
    }
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        for case, stored in cases.items():
            stage.records.receipts[TASK] = stored
            answer = (await client.get(f"/api/v1/receipts/{TASK.hex()}")).json()
            assert answer["verified"] is (case is True), case
        stage.records.receipts[TASK] = good
        facts = (await client.get(f"/api/v1/receipts/{TASK.hex()}")).json()["facts"]
        assert (facts["tokens_out"], facts["request"]) == (5, sha256(b"head").hexdigest())
        assert (await client.get(f"/api/v1/receipts/{'00' * 16}")).status_code == 404
        assert (await client.get("/api/v1/receipts/zz")).status_code == 400


@pytest.mark.parametrize(("accept", "prefix"), [("*/*", ""), ("text/event-stream", "data: ")])
async def test_events_flow_until_the_node_stops(accept: str, prefix: str) -> None:
    with trio.fail_after(30):
        async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
            stage.node.played = [{"event": "peer_connected", "at_ms": 1, "peer_id": PROVIDER}]
            seen: list[str] = []
            async with client.stream("GET", "/api/v1/events", headers={"accept": accept}) as answer:
                async for line in answer.aiter_lines():
                    if "peer_connected" in line:
                        seen.append(line)
                        stage.node.stop()
    assert json.loads(seen[0].removeprefix(prefix)) == stage.node.played[0]


async def test_the_head_of_the_events_leaves_its_connection_free() -> None:
    """A client goes on with the next request at once: there is no body to wait for."""
    with trio.fail_after(30):
        async with Stage().run() as stage:
            stream = await trio.open_tcp_stream("127.0.0.1", stage.bound.port)
            async with stream:
                await stream.send_all(b"HEAD /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                received = b"".join([part async for part in stream])
    assert b"application/x-ndjson" in received
    assert received.endswith(b'{"status":"ok"}')


async def test_what_is_not_there_and_what_is_not_taken() -> None:
    async with Stage().run() as stage, httpx.AsyncClient(base_url=stage.url) as client:
        missing = await client.get("/v1/nothing")
        refused = await client.get("/v1/chat/completions")
        head = await client.head("/healthz")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert (head.status_code, head.content) == (200, b"")


async def test_a_part_that_is_not_ready_says_so() -> None:
    class NotYet(PlayedModels):
        async def list(self) -> Any:
            raise OctonodeError("the store is still being opened", code="LEAVING", retry_after_seconds=0.2)

    models: Models = NotYet()
    async with Stage(models=models).run() as stage, httpx.AsyncClient(base_url=stage.url) as client:  # type: ignore[arg-type]
        answer = await client.get("/v1/models")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert (await client.get("/healthz")).status_code == 200
