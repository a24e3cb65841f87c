"""Who pinned what until when, and whether a further pin is taken: pure rules. Time is an argument. Spec: pin.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from octonode.ids import PeerId
from octonode.protocol.pins import PINS_PER_PEER_MAX, PinRequest, Room
from octonode.tasks.admission import Refusal

PINS_MAX = 4096
"""In all."""
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Pin:
    """One asker's wish that one model be kept."""

    root: str
    asker: PeerId
    until_ms: int
    """0: until it is unpinned."""
    since_ms: int
    size_bytes: int = 0
    brought: bool = False
    """The model was not here before it was pinned: it goes with its last pin."""
    kept: bool = False
    """It was whole here once, since it was pinned."""

    def ended(self, now_ms: int) -> bool:
        return 0 < self.until_ms <= now_ms


@dataclass(frozen=True, slots=True)
class Released:
    """A model that was brought for pins which are gone: it makes room when room is needed."""

    root: str
    size_bytes: int
    since_ms: int


@dataclass(frozen=True, slots=True)
class Quotas:
    """0: no bound."""

    bytes_max: int = 0
    bytes_per_peer_max: int = 0
    days_max: int = 365


class PinBook:
    """All pins of a node, in memory. Whoever changes it writes the change down."""

    def __init__(
        self, quotas: Quotas, owner: PeerId, pins: Iterable[Pin] = (), released: Iterable[Released] = ()
    ) -> None:
        self.quotas = quotas
        self.owner = owner
        """Whose machine it is: no share and no number of days binds those pins."""
        self._pins = {(pin.root, pin.asker): pin for pin in pins}
        self.released = {each.root: each for each in released}

    def __len__(self) -> int:
        return len(self._pins)

    def all(self) -> tuple[Pin, ...]:
        return tuple(self._pins.values())

    def roots(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(root for root, _ in self._pins))

    def get(self, root: str, asker: PeerId) -> Pin | None:
        return self._pins.get((root, asker))

    def of(self, root: str) -> tuple[Pin, ...]:
        return tuple(pin for pin in self._pins.values() if pin.root == root)

    def of_asker(self, asker: PeerId) -> tuple[Pin, ...]:
        return tuple(pin for pin in self._pins.values() if pin.asker == asker)

    def put(self, pin: Pin) -> None:
        self._pins[pin.root, pin.asker] = pin
        self.released.pop(pin.root, None)

    def drop(self, root: str, asker: PeerId) -> Pin | None:
        return self._pins.pop((root, asker), None)

    def ended(self, now_ms: int) -> tuple[Pin, ...]:
        return tuple(pin for pin in self._pins.values() if pin.ended(now_ms))

    def next_end_ms(self) -> int:
        """When the next pin ends; 0: none does."""
        return min((pin.until_ms for pin in self._pins.values() if pin.until_ms), default=0)

    # Bytes.

    def bytes_of(self, asker: PeerId, *, without: str = "") -> int:
        return sum(pin.size_bytes for pin in self.of_asker(asker) if pin.root != without)

    def bytes_all(self, *, without: str = "") -> int:
        """What others than the owner have pinned, each model once."""
        others = (pin for pin in self._pins.values() if pin.asker != self.owner and pin.root != without)
        sizes = {pin.root: pin.size_bytes for pin in others}
        return sum(sizes.values())

    def room(self, asker: PeerId, disk_free_bytes: int) -> Room:
        used = self.bytes_all()
        spare = max(0, disk_free_bytes) + sum(each.size_bytes for each in self.released.values())
        free = min(spare, max(0, self.quotas.bytes_max - used)) if self.quotas.bytes_max else spare
        total = self.quotas.bytes_max or used + spare
        return Room(total, used, free, self.quotas.bytes_per_peer_max, self.bytes_of(asker))

    # Decisions.

    def decide(
        self, request: PinRequest, asker: PeerId, *, have_bytes: int, disk_free_bytes: int, now_ms: int
    ) -> Refusal | None:
        """Whether `asker` may pin it. `have_bytes` of it are here already. None: yes."""
        if request.until_ms and request.until_ms <= now_ms:
            return Refusal("EXPIRED", "the time until which it was to be kept has passed; ask for a later one")
        if self.get(request.root, asker) is None:
            if len(self.of_asker(asker)) >= PINS_PER_PEER_MAX:
                return Refusal("OVERLOADED", f"you have {PINS_PER_PEER_MAX} pins here; unpin one first", 0)
            if len(self) >= PINS_MAX:
                return Refusal("OVERLOADED", f"{PINS_MAX} models are pinned here; ask another node", 0)
        return self.fits(
            request.root, asker, request.size_bytes, have_bytes=have_bytes, disk_free_bytes=disk_free_bytes
        )

    def fits(
        self, root: str, asker: PeerId, size_bytes: int, *, have_bytes: int, disk_free_bytes: int
    ) -> Refusal | None:
        """Whether a model of that size fits the shares and the disk. None: yes."""
        shares = (
            ("you", self.quotas.bytes_per_peer_max, self.bytes_of(asker, without=root)),
            ("all pins", self.quotas.bytes_max, self.bytes_all(without=root)),
        )
        for whose, most, taken in shares:
            if asker == self.owner:
                break
            if most and size_bytes > most:
                text = f"the model has {size_bytes} bytes and {whose} may have {most} here; ask another node"
                return Refusal("TOO_LARGE", text)
            if most and taken + size_bytes > most:
                text = f"{whose} may have {most} bytes here and {taken} are taken; {size_bytes} more do not fit"
                return Refusal("DISK_FULL", f"{text}: unpin something, or ask another node")
        spare = disk_free_bytes + sum(each.size_bytes for each in self.released.values() if each.root != root)
        if size_bytes - have_bytes > spare:
            text = f"{size_bytes - have_bytes} bytes are needed and the disk has {max(0, spare)} to spare"
            return Refusal("DISK_FULL", f"{text}; ask another node")
        return None

    def granted(self, request: PinRequest, asker: PeerId, *, brought: bool, now_ms: int) -> Pin:
        """The pin as it is promised: the asker's own one with the new end, or a new one."""
        until_ms, most_ms = request.until_ms, now_ms + self.quotas.days_max * DAY_MS
        bound = self.quotas.days_max and asker != self.owner
        if bound and (not until_ms or until_ms > most_ms):
            until_ms = most_ms
        before = self.get(request.root, asker)
        if before is not None:
            return replace(before, until_ms=until_ms)
        others = self.of(request.root)
        brought = others[0].brought if others else brought or request.root in self.released
        size_bytes = max((request.size_bytes, *(pin.size_bytes for pin in others)))
        return Pin(request.root, asker, until_ms, now_ms, size_bytes, brought)
