"""Bodies of skill `octonode/pin`: golden vectors, and any bytes give a request or a typed refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import RemoteProtocolError
from octonode.ids import PeerId
from octonode.protocol.envelope import open_envelope
from octonode.protocol.messages import TaskRequest, TaskResponse
from octonode.protocol.pins import (
    PINS_PER_PEER_MAX,
    VERBS,
    PinFacts,
    PinRequest,
    PinResult,
    decode_request,
    decode_result,
    encode_request,
    encode_result,
)
from octonode.protocol.receipt import verify_receipt

VECTORS = Path(__file__).parents[2] / "protocols" / "vectors" / "pin.json"
LOADED: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))
ASKER, PROVIDER = (PeerId(LOADED["keys"][name]["peer_id"]) for name in ("asker", "provider"))


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def unplain(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"]) if set(value) == {"hex"} else {k: unplain(v) for k, v in value.items()}
    return value


def opened(payload: str, us: PeerId, remote: PeerId) -> Any:
    return open_envelope(bytes.fromhex(payload), us=us, remote=remote, now_ms=LOADED["now_ms"]).message


@pytest.mark.parametrize("row", LOADED["requests"], ids=lambda row: row["name"])
def test_requests_of_the_vectors(row: dict[str, Any]) -> None:
    message = opened(row["payload"], PROVIDER, ASKER)
    assert isinstance(message, TaskRequest)
    request = decode_request(message.model, message.parameters, message.input)
    assert plain(request) == row["request"]
    assert encode_request(request) == message


@pytest.mark.parametrize("row", LOADED["responses"], ids=lambda row: row["name"])
def test_results_of_the_vectors(row: dict[str, Any]) -> None:
    message = opened(row["payload"], ASKER, PROVIDER)
    assert isinstance(message, TaskResponse)
    result = decode_result(message.result)
    assert plain(result) == row["result"]
    assert encode_result(result) == message.result


@pytest.mark.parametrize("row", LOADED["refused"], ids=lambda row: row["name"])
def test_refused_of_the_vectors(row: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_request(row["model"], unplain(row["params"]), unplain(row["input"]))


def test_the_receipt_of_the_vectors() -> None:
    receipt = verify_receipt(bytes.fromhex(LOADED["receipt"]))
    assert receipt.parameters["verb"] == "pin"
    assert (receipt.provider, receipt.asker, receipt.pieces) == (PROVIDER, ASKER, 0)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
MAPS = st.dictionaries(st.sampled_from(["verb", "until_ms", "size_bytes", "manifest", "pins", "room", "x"]), VALUES)


@given(st.text(max_size=30), MAPS, MAPS)
def test_any_request_is_read_or_refused(root: str, parameters: dict[str, Any], body: dict[str, Any]) -> None:
    try:
        request = decode_request(root, parameters, body)
    except RemoteProtocolError:
        return
    assert request.verb in VERBS
    assert decode_request(root, encode_request(request).parameters, encode_request(request).input) == request


@given(MAPS)
def test_any_result_is_read_or_refused(value: dict[str, Any]) -> None:
    try:
        result = decode_result(value)
    except RemoteProtocolError:
        return
    assert decode_result(encode_result(result)) == result


def test_more_pins_than_there_may_be_are_refused() -> None:
    pin = PinFacts("root", ASKER)
    assert len(decode_result(encode_result(PinResult((pin,) * PINS_PER_PEER_MAX))).pins) == PINS_PER_PEER_MAX
    with pytest.raises(RemoteProtocolError):
        decode_result(encode_result(PinResult((pin,) * (PINS_PER_PEER_MAX + 1))))


def test_a_field_at_its_default_is_left_out() -> None:
    assert encode_request(PinRequest("list")) == TaskRequest(skill="octonode/pin", parameters={"verb": "list"})
