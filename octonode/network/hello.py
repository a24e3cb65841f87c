"""Small questions between peers, on /cipherocto/hello/1.0.0: both the answering and the asking side.

One stream is one question. See protocols/hello.md for the messages, their limits and what they are for.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar

import trio

from octonode.errors import OctonodeError, Refused, RemoteProtocolError, Unreachable
from octonode.ids import HELLO_PROTOCOL, PeerId
from octonode.network.clock import Chance, NowMs
from octonode.network.dialback import Probe, dial_back, tcp_probe
from octonode.network.hello_messages import (
    Announce,
    Announced,
    Announcements,
    Answer,
    DialBack,
    DialledBack,
    FindManifest,
    FindPeers,
    FindProviders,
    HelloLimits,
    Manifest,
    Ping,
    Pong,
    Request,
    decode_answer,
    decode_request,
    encode_answer,
    encode_error,
    encode_request,
)
from octonode.network.host import Host, Stream, StreamReset
from octonode.network.intake import Intake
from octonode.network.own_announcement import OwnAnnouncement
from octonode.network.peerbook import Peerbook, Verdict
from octonode.network.rates import Rates
from octonode.network.streams import FrameStream
from octonode.protocol.announcement import Announcement

log = logging.getLogger(__name__)

GREETED_MAX = 4096
"""Peers remembered as greeted; beyond it the one greeted longest ago is greeted again."""

Kind = TypeVar("Kind", Announced, Announcements, Manifest, Pong, DialledBack)


class Manifests(Protocol):
    """Signed manifests that we can show: `models.library`. Quick look-ups; bytes as signed, or None."""

    def manifest(self, publisher: PeerId, name: str) -> bytes | None:
        """The one with the highest sequence of those held."""
        ...

    def manifest_by_cid(self, cid: str) -> bytes | None: ...


class NoManifests:
    """For a node without models."""

    def manifest(self, publisher: PeerId, name: str) -> bytes | None:
        return None

    def manifest_by_cid(self, cid: str) -> bytes | None:
        return None


class Hello:
    """Answers on HELLO_PROTOCOL from its construction on, and asks. No task of its own.

    Every question raises OctonodeError: Unreachable (also UNREACHABLE, DEADLINE), ProtocolNotSupported,
    RemoteProtocolError for an answer that breaks the protocol, or the peer's own refusal such as RATE_LIMITED.
    """

    def __init__(
        self,
        *,
        host: Host,
        own: OwnAnnouncement,
        peerbook: Peerbook,
        intake: Intake,
        now_ms: NowMs,
        random: Chance,
        manifests: Manifests | None = None,
        limits: HelloLimits | None = None,
        probe: Probe = tcp_probe,
    ) -> None:
        self._host = host
        self._own = own
        self._peerbook = peerbook
        self._intake = intake
        self._now_ms = now_ms
        self._random = random
        self._manifests = manifests or NoManifests()
        self.limits = limits or HelloLimits()
        self._probe = probe
        self._rates = Rates(self.limits.requests_per_second, self.limits.requests_burst)
        self._dialback_rates = Rates(self.limits.dialbacks_per_minute / 60, 2)
        self._streams: Counter[PeerId] = Counter()
        self._handlers = 0
        self._dialbacks = 0
        self._greeted: dict[PeerId, int] = {}
        self.observed_as: dict[PeerId, str] = {}
        """At which IP address each connected peer sees us, by its own word."""
        host.handle(HELLO_PROTOCOL, self.handle)

    def greeted_at_ms(self, peer_id: PeerId) -> int | None:
        """When announcements were last exchanged with a peer, whoever began."""
        return self._greeted.get(peer_id)

    def has_greeted(self, peer_id: PeerId) -> bool:
        """We have told a connected peer our announcement, and it has answered with its own."""
        return peer_id in self.observed_as

    def forget(self, gone: Sequence[PeerId]) -> None:
        """The connection to these is gone; they are to be greeted anew."""
        for peer_id in gone:
            self._greeted.pop(peer_id, None)
            self.observed_as.pop(peer_id, None)

    def _note_greeted(self, peer_id: PeerId) -> None:
        self._greeted.pop(peer_id, None)
        self._greeted[peer_id] = self._now_ms()
        if len(self._greeted) > GREETED_MAX:
            del self._greeted[next(iter(self._greeted))]

    # Asking.

    async def greet(self, peer_id: PeerId) -> Announcement:
        """Tell a peer our announcement and take its own into the peerbook."""
        own = await self._own.current()
        answer = await self._ask(peer_id, Announce(own.data), Announced)
        announcement, _ = self._intake.take(answer.announcement, peer_id, must_be_own=True)
        self._note_greeted(peer_id)
        self.observed_as.pop(peer_id, None)
        self.observed_as[peer_id] = answer.observed
        if len(self.observed_as) > GREETED_MAX:  # of peers that were gone before anybody saw them connected
            del self.observed_as[next(iter(self.observed_as))]
        return announcement

    async def providers(self, peer_id: PeerId, root: str) -> list[Announcement]:
        """At most 16 peers that serve or hold `root` by what `peer_id` has heard, itself among them. All verified."""
        return self._take_all(await self._ask(peer_id, FindProviders(root), Announcements), peer_id)

    async def peers(self, peer_id: PeerId, count: int = 16) -> list[Announcement]:
        """At most 16 peers that `peer_id` has heard of, drawn at random. All verified."""
        return self._take_all(await self._ask(peer_id, FindPeers(count), Announcements), peer_id)

    async def manifest(self, peer_id: PeerId, publisher: PeerId, name: str) -> bytes | None:
        """The signed manifest that `peer_id` has under this name, not verified; None when it has none."""
        answer = await self._ask(peer_id, FindManifest(publisher=publisher, name=name), Manifest)
        return answer.manifest or None

    async def manifest_by_cid(self, peer_id: PeerId, cid: str) -> bytes | None:
        """The signed manifest with this manifest CID, not verified; None when the peer has none."""
        return (await self._ask(peer_id, FindManifest(cid=cid), Manifest)).manifest or None

    async def ping(self, peer_id: PeerId) -> float:
        """Seconds there and back."""
        nonce, began = self._random.randbytes(16), trio.current_time()
        answer = await self._ask(peer_id, Ping(nonce), Pong)
        if answer.nonce != nonce:
            raise RemoteProtocolError(f"{peer_id} answered another ping than ours")
        return trio.current_time() - began

    async def dialback(self, peer_id: PeerId, addresses: Sequence[str]) -> DialledBack:
        """Ask a peer to dial us; see `reachability`. Takes as long as the peer's attempts."""
        wait_seconds = self.limits.request_timeout_seconds + len(addresses) * self.limits.dialback_timeout_seconds
        return await self._ask(peer_id, DialBack(tuple(addresses)), DialledBack, wait_seconds)

    async def _ask(self, peer_id: PeerId, request: Request, kind: type[Kind], wait_seconds: float = 0.0) -> Kind:
        timeout_seconds = wait_seconds or self.limits.request_timeout_seconds
        payload = encode_request(request)
        with trio.move_on_after(timeout_seconds) as scope:
            stream = await self._host.open(peer_id, HELLO_PROTOCOL)
            answer = await self._exchange(FrameStream(stream, self.limits.answer_bytes_max), payload, timeout_seconds)
        if scope.cancelled_caught:
            raise Unreachable(f"{peer_id} did not answer a hello within {timeout_seconds:g} s", code="DEADLINE")
        if not isinstance(answer, kind):
            raise RemoteProtocolError(f"{peer_id} answered {type(answer).__name__} to {type(request).__name__}")
        return answer

    async def _exchange(self, frames: FrameStream, payload: bytes, timeout_seconds: float) -> Answer:
        try:
            await frames.send_frame(payload, timeout_seconds)
            await frames.finish()
            data = await frames.receive_frame(timeout_seconds)
            await frames.end()
            return decode_answer(data)
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await frames.reset()
            raise

    def _take_all(self, answer: Announcements, bringer: PeerId) -> list[Announcement]:
        """Those that are valid and fresh; one bad announcement among good ones costs nothing but itself."""
        known: dict[PeerId, Announcement] = {}
        for data in answer.announcements:
            try:
                announcement, verdict = self._intake.take(data, bringer)
            except RemoteProtocolError as fault:
                log.debug("%s handed on a bad announcement: %s", bringer, fault.message)
                continue
            newest = (
                announcement if verdict is Verdict.FULL else self._peerbook.get(announcement.peer_id, self._now_ms())
            )
            if newest is not None:
                known[newest.peer_id] = newest
        return list(known.values())

    # Answering.

    async def handle(self, stream: Stream) -> None:
        """One request. What is wrong with it goes back as an error answer; then the stream ends."""
        frames = FrameStream(stream, self.limits.answer_bytes_max)
        try:
            payload = encode_answer(await self._answer(stream))
        except (StreamReset, Unreachable):
            await stream.reset()
            return
        except OctonodeError as error:
            log.debug("hello of %s refused: %s: %s", stream.peer_id, error.code, error.message)
            payload = encode_error(error)
        await frames.send_frame(payload, self.limits.request_timeout_seconds)
        await stream.finish()

    async def _answer(self, stream: Stream) -> Answer:
        wait_ms = self._rates.take(stream.peer_id, self._now_ms())
        if wait_ms:
            raise Refused("too many hellos from you", code="RATE_LIMITED", retry_after_seconds=wait_ms / 1000)
        peer_id, streams = stream.peer_id, self._streams
        if streams[peer_id] >= self.limits.handlers_per_peer_max:
            raise Refused("too many hellos at once from you", code="OVERLOADED", retry_after_seconds=1.0)
        streams[peer_id] += 1
        try:
            frames = FrameStream(stream, self.limits.request_bytes_max)
            request = decode_request(await frames.receive_frame(self.limits.request_timeout_seconds))
            return await self._answer_in_turn(peer_id, request)
        finally:
            streams[peer_id] -= 1
            if not streams[peer_id]:
                del streams[peer_id]

    async def _answer_in_turn(self, peer_id: PeerId, request: Request) -> Answer:
        if self._handlers >= self.limits.handlers_max:
            raise Refused("too many hellos at once", code="OVERLOADED", retry_after_seconds=1.0)
        self._handlers += 1
        try:
            return await self._answer_request(peer_id, request)
        finally:
            self._handlers -= 1

    async def _answer_request(self, asker: PeerId, request: Request) -> Answer:
        match request:
            case Announce(announcement):
                return await self._answer_announce(asker, announcement)
            case FindProviders(root):
                return await self._answer_providers(asker, root)
            case FindPeers(count):
                now_ms = self._now_ms()
                return Announcements(tuple(self._peerbook.sample(count, self._random, now_ms, without={asker})))
            case FindManifest():
                return self._answer_manifest(request)
            case Ping(nonce):
                return Pong(nonce)
            case DialBack(addresses):
                return await self._answer_dialback(asker, addresses)

    async def _answer_announce(self, asker: PeerId, data: bytes) -> Announced:
        self._intake.take(data, asker, must_be_own=True)
        self._note_greeted(asker)
        own = await self._own.current()
        return Announced(own.data, self._host.observed_ip(asker) or "")

    async def _answer_providers(self, asker: PeerId, root: str) -> Announcements:
        own = await self._own.about(root)
        rest = self.limits.announcements_max - (own is not None)
        found = self._peerbook.sample(rest, self._random, self._now_ms(), root=root, without={asker})
        return Announcements((*((own.data,) if own else ()), *found))

    def _answer_manifest(self, request: FindManifest) -> Manifest:
        if request.cid:
            found = self._manifests.manifest_by_cid(request.cid)
        else:
            found = self._manifests.manifest(PeerId(request.publisher), request.name)
        if found is not None and len(found) > self.limits.manifest_bytes_max:
            log.warning("a manifest of %d bytes is too large to hand on", len(found))
            found = None
        return Manifest(found or b"")

    async def _answer_dialback(self, asker: PeerId, addresses: tuple[str, ...]) -> DialledBack:
        wait_ms = self._dialback_rates.take(asker, self._now_ms())
        if wait_ms:
            raise Refused("too many dial-backs for you", code="RATE_LIMITED", retry_after_seconds=wait_ms / 1000)
        if self._dialbacks >= self.limits.dialbacks_running_max:
            raise Refused("too many dial-backs at once", code="OVERLOADED", retry_after_seconds=5.0)
        observed = self._host.observed_ip(asker)
        if observed is None:
            raise Refused("your address is not known here", code="UNREACHABLE")
        self._dialbacks += 1
        try:
            results = await dial_back(addresses, observed, self._probe, self.limits.dialback_timeout_seconds)
        finally:
            self._dialbacks -= 1
        return DialledBack(observed, tuple(results))
