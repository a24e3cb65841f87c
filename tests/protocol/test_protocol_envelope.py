"""Every check of an envelope, each met by the message that fails it and no other."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.identity import NodeKey
from octonode.ids import ANNOUNCEMENT_DOMAIN
from octonode.protocol.envelope import Envelope, open_envelope, seal
from octonode.protocol.messages import (
    ArtifactChunk,
    ErrorReport,
    Message,
    Negotiate,
    StatusUpdate,
    TaskRequest,
    TaskResponse,
)

HOUR_MS = 3_600_000
ASKER, PROVIDER = NodeKey(b"a" * 32), NodeKey(b"p" * 32)


def opened(link: Any, payload: bytes, **changes: Any) -> Envelope:
    """By the provider, from the asker's connection, at the link's time."""
    checks = {"us": link.provider_key.peer_id, "remote": link.asker_key.peer_id, "now_ms": link.now_ms, **changes}
    return open_envelope(payload, **checks)


def refused(link: Any, payload: bytes, **changes: Any) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        opened(link, payload, **changes)
    return caught.value


def test_a_good_request_opens(link: Any) -> None:
    envelope = opened(link, link.as_asker.payload("TASK_REQUEST", {"model": "bafy", "unknown": 1}, also_unknown=1))
    assert envelope.message == TaskRequest(model="bafy")
    assert envelope.header.sender == link.asker_key.peer_id
    assert len(envelope.signature) == 64


@pytest.mark.parametrize("kind", ["TASK_REQUEST", "TASK_RESPONSE", "ERROR", "NEGOTIATE"])
def test_unsigned_contract_messages_are_refused(link: Any, kind: str) -> None:
    body = {"state": "completed", "code": "INTERNAL", "act": "offer"}
    assert opened(link, link.as_asker.payload(kind, body)).header.type == kind
    assert refused(link, link.as_asker.payload(kind, body, sign=False)).code == "BAD_SIGNATURE"


def test_a_delta_may_be_unsigned_and_a_checkpoint_may_not(link: Any) -> None:
    assert opened(link, link.as_asker.payload("STATUS_UPDATE", {"pieces": ["a"]}, sign=False)).signature == b""
    assert (
        refused(link, link.as_asker.payload("STATUS_UPDATE", {"checkpoint": b"c"}, sign=False)).code == "BAD_SIGNATURE"
    )
    assert opened(link, link.as_asker.payload("STATUS_UPDATE", {"checkpoint": b"c"})).message


def test_a_signature_that_is_there_must_hold_even_on_a_delta(link: Any) -> None:
    payload = link.as_asker.payload("STATUS_UPDATE", {"pieces": ["a"]}, sign=link.stranger_key)
    assert refused(link, payload).code == "BAD_SIGNATURE"


def test_another_peers_signature_is_refused(link: Any) -> None:
    assert refused(link, link.as_asker.payload("TASK_REQUEST", sign=link.stranger_key)).code == "BAD_SIGNATURE"


def test_a_signature_made_for_another_purpose_is_refused(link: Any) -> None:
    link.as_asker.domain = ANNOUNCEMENT_DOMAIN
    assert refused(link, link.as_asker.payload("TASK_REQUEST")).code == "BAD_SIGNATURE"


def test_a_swapped_body_is_refused(link: Any) -> None:
    header, signature, _ = msgpack.unpackb(link.as_asker.payload("TASK_REQUEST", {"model": "a"}))
    payload = msgpack.packb((header, signature, msgpack.packb({"model": "b"})))
    assert refused(link, payload).code == "BAD_MESSAGE"


def test_header_bytes_are_verified_as_received_and_not_as_encoded_again(link: Any) -> None:
    """The same values in another form of msgpack: only the signature over that very form holds."""
    header, signature, body = msgpack.unpackb(link.as_asker.payload("TASK_REQUEST", seq=0))
    longer = header.replace(b"\xa3seq\x00", b"\xa3seq\xcc\x00")
    assert msgpack.unpackb(longer) == msgpack.unpackb(header)
    assert refused(link, msgpack.packb((longer, signature, body))).code == "BAD_SIGNATURE"
    resigned = link.asker_key.sign(link.as_asker.domain + longer)
    assert opened(link, msgpack.packb((longer, resigned, body))).header_bytes == longer


def test_a_message_from_another_sender_is_refused(link: Any) -> None:
    error = refused(link, link.as_asker.payload("TASK_REQUEST"), remote=link.stranger_key.peer_id)
    assert error.code == "MISADDRESSED"
    assert link.asker_key.peer_id in error.message


def test_a_message_for_another_peer_is_refused(link: Any) -> None:
    assert refused(link, link.as_asker.payload("TASK_REQUEST"), us=link.stranger_key.peer_id).code == "MISADDRESSED"


@pytest.mark.parametrize(("offset_ms", "words"), [(-HOUR_MS, "3600.0 s behind"), (HOUR_MS, "3600.0 s ahead of")])
def test_a_clock_an_hour_off_is_named_with_the_remedy(link: Any, offset_ms: int, words: str) -> None:
    sent_at_ms = link.now_ms + offset_ms
    error = refused(link, link.as_asker.payload("TASK_REQUEST", ts=sent_at_ms, exp=sent_at_ms + 60_000))
    assert error.code == "CLOCK_SKEW"
    assert words in error.message
    assert "check the clocks" in error.message
    assert error.detail == {"skew_ms": offset_ms}


@pytest.mark.parametrize("offset_ms", [-60_000, 60_000])
def test_a_minute_of_skew_is_allowed(link: Any, offset_ms: int) -> None:
    sent_at_ms = link.now_ms + offset_ms
    assert opened(link, link.as_asker.payload("TASK_REQUEST", ts=sent_at_ms, exp=sent_at_ms + 90_000))
    beyond = sent_at_ms + (1 if offset_ms > 0 else -1)
    assert refused(link, link.as_asker.payload("TASK_REQUEST", ts=beyond)).code == "CLOCK_SKEW"


def test_an_expired_message_is_refused(link: Any) -> None:
    assert opened(link, link.as_asker.payload("TASK_REQUEST", exp=link.now_ms + 1))
    assert refused(link, link.as_asker.payload("TASK_REQUEST", exp=link.now_ms)).code == "EXPIRED"


def test_an_expiry_far_ahead_is_refused(link: Any) -> None:
    assert opened(link, link.as_asker.payload("TASK_REQUEST", exp=link.now_ms + HOUR_MS))
    error = refused(link, link.as_asker.payload("TASK_REQUEST", exp=link.now_ms + 2 * HOUR_MS))
    assert error.code == "EXPIRED"
    assert "3600 s ahead" in error.message


def test_unknown_extensions_are_ignored_unless_critical(link: Any) -> None:
    assert opened(link, link.as_asker.payload("TASK_REQUEST", ext={"urn:x": 1}))
    payload = link.as_asker.payload("TASK_REQUEST", ext={"urn:x": 1}, crit=["urn:x"])
    error = refused(link, payload)
    assert error.code == "EXTENSION_REQUIRED"
    assert "urn:x" in error.message
    assert opened(link, payload, known_extensions=frozenset({"urn:x"})).header.critical == ("urn:x",)


def test_critical_names_are_there_and_once(link: Any) -> None:
    known = frozenset({"urn:x"})
    for critical in (["urn:x", "urn:x"], ["urn:y"]):
        payload = link.as_asker.payload("TASK_REQUEST", ext={"urn:x": 1}, crit=critical)
        assert refused(link, payload, known_extensions=known).code == "BAD_MESSAGE"


def test_an_input_is_inline_or_an_artifact(link: Any) -> None:
    body = {"input": {"a": 1}, "artifact": "0" * 64}
    assert refused(link, link.as_asker.payload("TASK_REQUEST", body)).code == "BAD_MESSAGE"


@pytest.mark.parametrize(
    "options",
    [{"critical": ("urn:x",)}, {"extensions": {"urn:x": bytes(20_000)}}, {"hop": -1}, {"offer": b"short"}],
    ids=lambda options: next(iter(options)),
)
def test_a_header_that_the_other_side_would_refuse_is_not_signed(link: Any, options: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        link.asker.send(TaskRequest(), link.now_ms, **options)


def test_an_unknown_type_is_unsupported(link: Any) -> None:
    assert refused(link, link.as_asker.payload("GOSSIP")).code == "UNSUPPORTED"


def test_a_chain_of_hires_is_bounded(link: Any) -> None:
    assert opened(link, link.as_asker.payload("TASK_REQUEST", hop=8, maxhop=8))
    assert refused(link, link.as_asker.payload("TASK_REQUEST", hop=9, maxhop=9)).code == "HOP_LIMIT"
    assert refused(link, link.as_asker.payload("TASK_REQUEST", hop=5)).code == "HOP_LIMIT"


plain = st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5) | st.none(), max_size=3)
count = st.integers(0, 2**63 - 1)
sixteen = st.binary(min_size=16, max_size=16)
requests = st.builds(
    TaskRequest,
    operation=st.sampled_from(["run", "cancel"]),
    model=st.text(max_size=30),
    input=plain,
    parameters=plain,
    privacy=st.sampled_from(["public", "private"]),
    token=st.text(max_size=20),
)
chunks = st.none() | st.builds(ArtifactChunk, st.text(max_size=9), count, st.binary(max_size=50), st.booleans())
updates = st.builds(
    StatusUpdate,
    state=st.sampled_from(["submitted", "working", "input_required"]),
    stage=st.text(max_size=9),
    done=count,
    total=count,
    pieces=st.lists(st.text(max_size=5), max_size=4).map(tuple),
    checkpoint=st.binary(max_size=50),
    artifact=chunks,
)
responses = st.builds(
    TaskResponse, st.sampled_from(["completed", "canceled"]), st.text(max_size=9), count, count, count, result=plain
)
errors = st.builds(ErrorReport, st.text(max_size=9), st.text(max_size=9), count, plain)
acts = st.builds(Negotiate, st.sampled_from(["offer", "accept"]), plain, count, st.binary(max_size=16))


@given(requests | updates | responses | errors | acts, sixteen, sixteen, count, plain)
@settings(max_examples=150, deadline=None)
def test_what_is_sealed_opens_equal(
    message: Message, id: bytes, task: bytes, sequence: int, ext: dict[str, Any]
) -> None:
    sealed = seal(
        ASKER,
        message,
        id=id,
        task=task,
        recipient=PROVIDER.peer_id,
        sequence=sequence,
        sent_at_ms=5,
        expires_at_ms=10,
        extensions=ext,
    )
    envelope = open_envelope(sealed.payload, us=PROVIDER.peer_id, remote=ASKER.peer_id, now_ms=5)
    assert envelope.message == message
    assert envelope.header_bytes == sealed.header_bytes
    header = envelope.header
    assert (header.id, header.task, header.sequence, header.extensions) == (id, task, sequence, ext)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_raise_only_remote_protocol_errors(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        open_envelope(payload, us=PROVIDER.peer_id, remote=ASKER.peer_id, now_ms=5)


values = (
    st.none() | st.booleans() | st.integers(-5, 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=40)
)
nested = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
HEADER_KEYS = ["v", "t", "id", "conv", "task", "corr", "root", "hop", "maxhop", "from", "to", "seq", "ts", "exp"]
BODY_KEYS = [
    "op",
    "input",
    "params",
    "artifact",
    "pieces",
    "first",
    "checkpoint",
    "state",
    "code",
    "act",
    "terms",
    "on",
]
TYPES = ["TASK_REQUEST", "TASK_RESPONSE", "STATUS_UPDATE", "ERROR", "NEGOTIATE"]


@given(
    st.sampled_from(TYPES),
    st.dictionaries(
        st.sampled_from([*HEADER_KEYS, "hash", "len", "crit", "ext", "budget", "offer"]), nested, max_size=2
    ),
    st.dictionaries(st.sampled_from(BODY_KEYS), nested, max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_well_formed_nonsense_raises_only_remote_protocol_errors(
    type_name: str, header: dict[str, Any], body: dict[str, Any]
) -> None:
    raw = msgpack.packb(body)
    good = {"v": 1, "t": type_name, "id": bytes(16), "task": bytes(16), "from": ASKER.peer_id, "to": PROVIDER.peer_id}
    good |= {"seq": 0, "ts": 5, "exp": 10, "hash": sha256(raw).digest(), "len": len(raw)}
    payload = msgpack.packb((msgpack.packb({**good, **header}), b"", raw))
    try:
        envelope = open_envelope(payload, us=PROVIDER.peer_id, remote=ASKER.peer_id, now_ms=5)
    except RemoteProtocolError:
        return
    assert isinstance(envelope.message, StatusUpdate)


@pytest.mark.parametrize(
    "message",
    [
        TaskRequest(input={1: 2}),  # type: ignore[dict-item]
        TaskRequest(parameters={"temperature": float("inf")}),
        TaskRequest(token="t" * 513),
        TaskRequest(input_artifact="photo"),
        TaskResponse(state="working"),  # type: ignore[arg-type]
        StatusUpdate(state="completed"),
        StatusUpdate(pieces=("a",) * 5000),
        StatusUpdate(artifact=ArtifactChunk("a", 0, bytes(262_145))),
        ErrorReport("INTERNAL", "", -1),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_the_other_side_would_refuse_is_not_sealed(link: Any, message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        seal(
            link.asker_key,
            message,
            id=bytes(16),
            task=bytes(16),
            recipient=link.provider_key.peer_id,
            sequence=0,
            sent_at_ms=5,
            expires_at_ms=10,
        )
