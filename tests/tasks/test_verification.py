"""Providers that lie: what they send is streamed on, and the verdict says what does not hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.ids import AGENT_PROTOCOL
from octonode.network.host import Stream
from octonode.protocol.exchange import Exchange
from octonode.protocol.messages import StatusUpdate, TaskResponse
from octonode.protocol.receipt import EngineFingerprint, Price, Receipt, Times, sign_receipt
from octonode.protocol.replay import ReplayWindow
from octonode.protocol.transcript import Transcript, sign_checkpoint
from octonode.tasks.dispatcher import Answered, ProviderLost
from octonode.tasks.slots import new_id
from tests.tasks.nodes import ROOT, Node, answer_of, ask, events_of, nodes, now_ms, text_of

PIECES = ("one ", "two ", "three")


def honest(exchange: Exchange, key: NodeKey, transcript: Transcript) -> Receipt:
    request = exchange.request
    assert request is not None
    return Receipt(
        request=exchange.request_sha256,
        task=exchange.task,
        asker=exchange.remote,
        provider=key.peer_id,
        model_root=request.model,
        manifest="",
        engine=EngineFingerprint("b", "cpu", "none"),
        parameters={k: v for k, v in request.parameters.items() if k != "seed"},
        seed=request.parameters.get("seed"),
        tokens_in=5,
        tokens_out=3,
        pieces=transcript.count,
        transcript=transcript.digest,
        finish_reason="stop",
        price=Price(),
        privacy="public",
        privacy_evidence="none",
        times=Times(0, 0, 0, 0),
    )


Change = Callable[[Receipt], Receipt]


def provider(
    key: NodeKey,
    *,
    change: Change = lambda receipt: receipt,
    signer: NodeKey | None = None,
    sent: tuple[str, ...] = PIECES,
    checkpoint_of: tuple[str, ...] | None = None,
    spoil: Callable[[TaskResponse], TaskResponse] = lambda response: response,
) -> Callable[[Stream], Awaitable[None]]:
    """A provider that answers PIECES; `sent`, `change`, ... are where it lies."""

    async def handle(stream: Stream) -> None:
        exchange = Exchange("provider", key, stream.peer_id, new_id=new_id, replay=ReplayWindow())
        while exchange.request is None:
            exchange.receive(await stream.receive(), now_ms())
        transcript = Transcript(exchange.request_sha256)
        transcript.extend(PIECES)
        checkpoint = b""
        if checkpoint_of is not None:
            shown = Transcript(exchange.request_sha256)
            shown.extend(checkpoint_of)
            checkpoint = sign_checkpoint(key, exchange.request_sha256, shown, now_ms())
        await stream.send(exchange.send(StatusUpdate(pieces=sent, checkpoint=checkpoint), now_ms()))
        receipt = change(honest(exchange, key, transcript))
        signed_by = signer or key
        data = sign_receipt(signed_by, replace(receipt, provider=signed_by.peer_id))
        response = TaskResponse(
            tokens_in=5, tokens_out=3, pieces_total=len(sent), transcript=receipt.transcript, receipt=data
        )
        await stream.send(exchange.send(spoil(response), now_ms()))

    return handle


async def verdict(home: Path, handler: Callable[[NodeKey], Callable[[Stream], Awaitable[None]]]) -> Answered:
    async with nodes(home, 2) as (asker, liar):
        liar.host.handle(AGENT_PROTOCOL, handler(liar.key))
        asker.book.at_hand = [liar.announcement()]
        events = await events_of(asker, ask(seed=7))
        assert text_of(events)  # whatever the verdict, the text was streamed
        answered = answer_of(events)
        stored = await asker.state.receipt(answered.task)
        assert (stored is not None) == (answered.receipt is not None)
        if stored is not None:
            assert stored.verified == answered.verified
        await _stands_behind(asker, liar, answered)
        return answered


async def _stands_behind(asker: Node, liar: Node, answered: Answered) -> None:
    """Who was caught is asked after the others from then on."""
    other = replace(liar.announcement(), peer_id=NodeKey(b"z" * 32).peer_id)
    first = asker.dispatcher.choose(ask(), [liar.announcement(tokens_per_second=1000), other])[0]
    assert (first.peer == liar.peer) == answered.verified


async def test_an_honest_one_is_verified(tmp_path: Path, autojump_clock: Clock) -> None:
    answered = await verdict(tmp_path, lambda key: provider(key, checkpoint_of=PIECES))
    assert answered.verified, answered.reason


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("request", lambda r: replace(r, request=bytes(32))),
        ("task", lambda r: replace(r, task=bytes(16))),
        ("asker", lambda r: replace(r, asker=r.provider)),
        ("model_root", lambda r: replace(r, model_root="bafyother")),
        ("tokens_out", lambda r: replace(r, tokens_out=3000)),
        ("tokens_in", lambda r: replace(r, tokens_in=1)),
        ("pieces", lambda r: replace(r, pieces=2)),
        ("transcript", lambda r: replace(r, transcript=bytes(32))),
        ("parameters", lambda r: replace(r, parameters={**r.parameters, "temperature": 1.0})),
        ("seed", lambda r: replace(r, seed=8)),
        ("privacy", lambda r: replace(r, privacy="private")),
        ("finish_reason", lambda r: replace(r, finish_reason="length")),
    ],
)
async def test_a_receipt_with_another_value_is_caught(
    tmp_path: Path, autojump_clock: Clock, name: str, change: Change
) -> None:
    answered = await verdict(tmp_path, lambda key: provider(key, change=change))
    assert not answered.verified
    assert name in answered.reason


async def test_a_receipt_signed_by_another_peer_is_caught(tmp_path: Path, autojump_clock: Clock) -> None:
    answered = await verdict(tmp_path, lambda key: provider(key, signer=NodeKey(b"o" * 32)))
    assert not answered.verified
    assert "provider" in answered.reason


async def test_text_that_is_not_the_one_of_the_transcript_is_caught(tmp_path: Path, autojump_clock: Clock) -> None:
    answered = await verdict(tmp_path, lambda key: provider(key, sent=("one ", "2 ", "three")))
    assert not answered.verified
    assert "transcript" in answered.reason


async def test_a_checkpoint_for_other_text_is_caught(tmp_path: Path, autojump_clock: Clock) -> None:
    answered = await verdict(tmp_path, lambda key: provider(key, checkpoint_of=("one ", "two ", "3")))
    assert not answered.verified
    assert "checkpoint" in answered.reason


async def test_no_receipt_is_no_verdict_in_its_favour(tmp_path: Path, autojump_clock: Clock) -> None:
    answered = await verdict(tmp_path, lambda key: provider(key, spoil=lambda r: replace(r, receipt=b"")))
    assert not answered.verified
    assert answered.receipt is None
    assert "no receipt" in answered.reason


async def test_a_receipt_with_a_flipped_bit_is_caught(tmp_path: Path, autojump_clock: Clock) -> None:
    def flip(response: TaskResponse) -> TaskResponse:
        at = response.receipt.index(ROOT.encode())
        data = bytearray(response.receipt)
        data[at] ^= 1
        return replace(response, receipt=bytes(data))

    answered = await verdict(tmp_path, lambda key: provider(key, spoil=flip))
    assert not answered.verified
    assert "signature" in answered.reason


async def test_more_tokens_than_were_asked_for_are_caught(tmp_path: Path, autojump_clock: Clock) -> None:
    answered = await verdict(
        tmp_path,
        lambda key: provider(
            key,
            change=lambda r: replace(r, tokens_out=9999),
            spoil=lambda r: replace(r, tokens_out=9999),
        ),
    )
    assert not answered.verified
    assert "tokens_out" in answered.reason


async def test_an_answer_without_end_is_left(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, liar):

        async def pour(stream: Stream) -> None:
            exchange = Exchange("provider", liar.key, stream.peer_id, new_id=new_id, replay=ReplayWindow())
            while exchange.request is None:
                exchange.receive(await stream.receive(), now_ms())
            while True:
                update = StatusUpdate(first_piece=exchange.pieces, pieces=("x" * 1000,) * 20)
                await stream.send(exchange.send(update, now_ms()))

        liar.host.handle(AGENT_PROTOCOL, pour)
        asker.book.at_hand = [liar.announcement()]
        with pytest.raises(ProviderLost, match="more than was asked for") as caught:
            await events_of(asker, ask(max_tokens=100))
        assert len(caught.value.received) < 1000


async def test_heartbeats_without_end_do_not_outlast_the_question(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 2) as (asker, provider):
        engine = await provider.serve()
        engine.script.hang_at = 2
        asker.book.at_hand = [provider.announcement()]
        started = trio.current_time()
        with pytest.raises(OctonodeError) as caught:
            await events_of(asker, ask(deadline_seconds=50))
        assert caught.value.code in ("DEADLINE", "PROVIDER_LOST")  # whose clock struck first
        assert trio.current_time() - started == pytest.approx(50, abs=1)
        await trio.sleep(3)
        assert engine.canceled == 1
