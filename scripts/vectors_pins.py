"""Golden vectors of skill `octonode/pin`: protocols/vectors/pin.json. See vectors.py."""

from __future__ import annotations

from typing import Any

import msgpack
from vectors_agent import ASKER, MODEL, NOW_MS, PROVIDER, counter, keys, plain, sealed

from octonode.protocol.messages import TaskRequest, TaskResponse
from octonode.protocol.pins import PinFacts, PinRequest, PinResult, Room, encode_request, encode_result
from octonode.protocol.receipt import EngineFingerprint, Price, Receipt, Times, sign_receipt
from octonode.protocol.transcript import Transcript

UNTIL_MS = NOW_MS + 30 * 86_400_000
GB = 10**9

REQUESTS = {
    "pin": PinRequest("pin", MODEL, UNTIL_MS, 5 * GB, b"the bytes of a signed manifest"),
    "pin, least": PinRequest("pin", MODEL),
    "unpin": PinRequest("unpin", MODEL),
    "list": PinRequest("list"),
}
KEPT = PinFacts(MODEL, ASKER.peer_id, UNTIL_MS, NOW_MS, 5 * GB, 5 * GB, "kept")
FAILED = PinFacts(MODEL, ASKER.peer_id, 0, NOW_MS, 5 * GB, GB, "failed", "no source has it")
RESULTS = {
    "kept": PinResult((KEPT,), Room(100 * GB, 5 * GB, 95 * GB, 20 * GB, 5 * GB)),
    "unpinned": PinResult((), Room(100 * GB, 0, 100 * GB)),
    "listed, one failed": PinResult((FAILED,), Room(0, 5 * GB, GB, 0, 5 * GB)),
}
REFUSED: dict[str, TaskRequest] = {
    "no verb": TaskRequest(skill="octonode/pin", model=MODEL),
    "another verb": TaskRequest(skill="octonode/pin", model=MODEL, parameters={"verb": "keep"}),
    "pin without a model": TaskRequest(skill="octonode/pin", parameters={"verb": "pin"}),
    "list with a model": TaskRequest(skill="octonode/pin", model=MODEL, parameters={"verb": "list"}),
    "a time that is no integer": TaskRequest(
        skill="octonode/pin", model=MODEL, parameters={"verb": "pin", "until_ms": "tomorrow"}
    ),
    "a size below zero": TaskRequest(skill="octonode/pin", model=MODEL, parameters={"verb": "pin", "size_bytes": -1}),
    "a manifest that is text": TaskRequest(
        skill="octonode/pin", model=MODEL, parameters={"verb": "pin"}, input={"manifest": "text"}
    ),
}


def pin() -> dict[str, Any]:
    new_id = counter()
    asked = []
    for name, request in REQUESTS.items():
        payload = sealed(encode_request(request), {}, new_id)
        body = msgpack.unpackb(payload)[2]
        asked.append({"name": name, "payload": payload.hex(), "body_bytes": body.hex(), "request": plain(request)})
    answered = []
    for name, result in RESULTS.items():
        payload = sealed(TaskResponse(result=encode_result(result)), {"correlation": bytes(15) + b"\x01"}, new_id)
        answered.append({"name": name, "payload": payload.hex(), "result": plain(result)})
    refused = [
        {"name": name, "model": each.model, "params": plain(each.parameters), "input": plain(each.input)}
        for name, each in REFUSED.items()
    ]
    request_sha256 = bytes(range(32))
    receipt = Receipt(
        request=request_sha256, task=b"task-of-vectors.", asker=ASKER.peer_id, provider=PROVIDER.peer_id,
        model_root=MODEL, manifest="", engine=EngineFingerprint("octonode/pin", "", ""),
        parameters={"verb": "pin", "until_ms": UNTIL_MS, "size_bytes": 5 * GB}, seed=None, tokens_in=0, tokens_out=0,
        pieces=0, transcript=Transcript(request_sha256).digest, finish_reason="stop", price=Price(), privacy="public",
        privacy_evidence="none", times=Times(NOW_MS, NOW_MS, 0, NOW_MS + 5000),
    )  # fmt: skip
    return {
        "page": "protocols/pin.md",
        "keys": keys(),
        "now_ms": NOW_MS,
        "requests": asked,
        "responses": answered,
        "refused": refused,
        "receipt": sign_receipt(PROVIDER, receipt).hex(),
    }
