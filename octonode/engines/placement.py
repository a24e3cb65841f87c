"""Which model goes to which memory: one GPU, several, or the machine's own; and who has to leave for it. Pure.

`plan` leaves every model where it is and finds a seat for those that have none, in this order: a free GPU, the one that
it fills best; several GPUs of one kind; the seats of idle models; the machine's memory. What is evicted is the longest
idle of those that are neither pinned nor busy, and no more than is needed. Only a model that somebody asks for evicts
others. A model that a GPU could hold once others have left waits for it, and does not settle in the machine's memory.

Bytes are what a model needs by computation (`models.requirements`), not what it shows: an engine that maps its weights
shows less, and takes them all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

RAM: Final = "ram"
"""Name of the one space that is no GPU."""
DEVICES_MAX: Final = 16
"""GPUs that one model is split over at most."""


@dataclass(frozen=True, slots=True)
class Space:
    """A GPU, a MIG instance of one, or the machine's memory."""

    id: str
    total_bytes: int
    others_bytes: int = 0
    """Used by programs that are not ours."""
    kind: str = ""
    """`cuda`, `hip`, `metal`: one engine uses GPUs of one kind. Empty for the machine's memory."""
    alone: bool = False
    """No model is split over it and another."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a model is, and what is charged for it there."""

    shares: tuple[tuple[str, int], ...]
    """(space, bytes), in the order of the spaces."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The GPUs; empty: it runs on the CPU."""
        return tuple(space for space, _ in self.shares if space != RAM)


@dataclass(frozen=True, slots=True)
class Model:
    """One model that is wanted here, with what it needs and how it is used."""

    root: str
    gpu_bytes: int | None = None
    """On one GPU; None: its engine uses none."""
    ram_bytes: int | None = None
    """On the CPU alone; None: it does not run there."""
    kinds: tuple[str, ...] = ()
    """Of GPUs that its engine uses."""
    device_bytes: int = 0
    """More for each further GPU that it is split over."""
    devices_min: int = 1
    devices_max: int = DEVICES_MAX
    exclusive: bool = False
    """It takes GPUs whole, in equal parts: a server that fills them with its cache."""
    seat: Seat | None = None
    asked: bool = False
    """Somebody waits for it."""
    pinned: bool = False
    """Never evicted."""
    busy: bool = False
    idle_seconds: float = 0.0
    """Since its last use."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a plan depends on."""

    spaces: tuple[Space, ...]
    models: tuple[Model, ...]
    gpu_reserve_bytes: int = 0
    """Left free on each GPU."""
    evict_idle_seconds: float = 0.0
    """Idle for less, and a model stays; 0: none is ever evicted."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a model has no seat."""

    reason: Literal["held", "others", "too_large", "no_gpu"]
    """`held`: our other models have the memory; `others`: other programs have it; `too_large`: it is more than the
    machine has; `no_gpu`: the model needs one, and no GPU that its engine uses is here."""
    where: Literal["gpu", "ram"]
    need_bytes: int = 0
    free_bytes: int = 0
    holders: tuple[str, ...] = ()
    """For `held`: the models whose leaving would make room."""

    @property
    def missing_bytes(self) -> int:
        return max(0, self.need_bytes - self.free_bytes)


@dataclass(frozen=True, slots=True)
class Plan:
    seats: Mapping[str, Seat] = field(default_factory=dict)
    """Of all models that have one, the old ones unchanged."""
    evictions: tuple[str, ...] = ()
    shortages: Mapping[str, Shortage] = field(default_factory=dict)


def plan(world: World) -> Plan:
    """Seats for the models that have none. The same world gives the same plan, and once done it asks for nothing."""
    book = _Book(world)
    seated = {model.root: model for model in world.models if model.seat is not None}
    homeless = {model.root: model for model in world.models if model.seat is None}
    evictions: dict[str, None] = {}
    found = True
    while found and homeless:
        found = False
        for model in sorted(homeless.values(), key=_turn):
            for root in (_who_leaves(model, book, seated, world) or ()) if model.asked else ():
                left = seated.pop(root)
                book.leave(left)
                homeless[root] = replace(left, seat=None)
                evictions[root] = None
            seat = _fit(model, book, seated, world)
            if seat is not None:
                book.take(model.root, seat)
                seated[model.root] = replace(homeless.pop(model.root), seat=seat)
                found = True
    seats = {root: model.seat for root, model in seated.items() if model.seat is not None}
    shortages = {root: _shortage(model, book, seated, world) for root, model in homeless.items()}
    return Plan(seats, tuple(evictions), shortages)


def _turn(model: Model) -> tuple[bool, bool, float, str]:
    """Those that somebody waits for first, then the pinned, then by the last use."""
    return not model.asked, not model.pinned, model.idle_seconds, model.root


class _Book:
    """What is free where, and whose models are there."""

    def __init__(self, world: World, *, others: bool = True) -> None:
        """`others`: count what other programs use."""
        self.order = {space.id: number for number, space in enumerate(world.spaces)}
        self.spaces = {space.id: space for space in world.spaces}
        self.free = {
            each.id: each.total_bytes
            - (each.others_bytes if others else 0)
            - (world.gpu_reserve_bytes if each.id != RAM else 0)
            for each in world.spaces
        }
        self.users: dict[str, set[str]] = {each.id: set() for each in world.spaces}
        for model in world.models:
            if model.seat is not None:
                self.take(model.root, model.seat)

    def take(self, root: str, seat: Seat) -> None:
        for space, size_bytes in seat.shares:
            if space in self.free:  # a GPU may have gone meanwhile
                self.free[space] -= size_bytes
                self.users[space].add(root)

    def leave(self, model: Model) -> None:
        assert model.seat is not None
        for space, size_bytes in model.seat.shares:
            if space in self.free:
                self.free[space] += size_bytes
                self.users[space].discard(model.root)

    def without(self, models: Sequence[Model]) -> _Book:
        """The book as it would be if they left."""
        other = object.__new__(_Book)
        other.order, other.spaces, other.free = self.order, self.spaces, dict(self.free)
        other.users = {space: set(users) for space, users in self.users.items()}
        for model in models:
            other.leave(model)
        return other

    def candidates(self, model: Model) -> list[Space]:
        """GPUs that it could go to, by the kinds of its engine, those that an exclusive one would share left out."""
        found = [each for each in self.spaces.values() if each.id != RAM and each.kind in model.kinds]
        return [each for each in found if not (model.exclusive and self.users[each.id])]


_Find = Callable[[Model, _Book], Seat | None]


def _on_gpus(model: Model, book: _Book) -> Seat | None:
    if model.gpu_bytes is None:
        return None
    spaces = book.candidates(model)
    for count in range(model.devices_min, min(model.devices_max, len(spaces)) + 1):
        need_bytes = model.gpu_bytes + (count - 1) * model.device_bytes
        if count == 1:
            large = [each for each in spaces if book.free[each.id] >= need_bytes]
            if large:
                best = min(large, key=lambda each: (book.free[each.id], book.order[each.id]))
                return Seat(((best.id, book.free[best.id] if model.exclusive else need_bytes),))
            continue
        for kind in model.kinds:
            together = [each for each in spaces if each.kind == kind and not each.alone]
            together.sort(key=lambda each: (-book.free[each.id], book.order[each.id]))
            seat = _split(model, book, together[:count], need_bytes) if len(together) >= count else None
            if seat is not None:
                return seat
    return None


def _split(model: Model, book: _Book, spaces: Sequence[Space], need_bytes: int) -> Seat | None:
    """Over all of `spaces`: in proportion to what is free there, as llama.cpp does, or each of them whole."""
    free = [max(0, book.free[each.id]) for each in spaces]
    if model.exclusive:
        fits, shares = min(free) * len(free) >= need_bytes, free
    else:
        fits, shares = sum(free) >= need_bytes and min(free) > model.device_bytes, _in_proportion(need_bytes, free)
    if not fits:
        return None
    pairs = zip((each.id for each in spaces), shares, strict=True)
    return Seat(tuple(sorted(pairs, key=lambda pair: book.order[pair[0]])))


def _in_proportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers whose sum is `total`, each at most its weight where `total` is at most the sum of them."""
    whole = sum(weights)
    shares = [weight * total // whole if whole else 0 for weight in weights]
    rest = total - sum(shares)
    for number, weight in enumerate(weights):
        more = max(0, min(rest, weight - shares[number]))
        shares[number] += more
        rest -= more
    return shares


def _in_ram(model: Model, book: _Book) -> Seat | None:
    if model.ram_bytes is None or book.free.get(RAM, 0) < model.ram_bytes:
        return None
    return Seat(((RAM, model.ram_bytes),))


def _fit(model: Model, book: _Book, seated: Mapping[str, Model], world: World) -> Seat | None:
    """A seat as things are. The machine's memory only where no GPU could ever come free for it."""
    on_gpus = _on_gpus(model, book)
    if on_gpus is not None or _waits_for_gpu(model, book, seated, world):
        return on_gpus
    return _in_ram(model, book)


def _waits_for_gpu(model: Model, book: _Book, seated: Mapping[str, Model], world: World) -> bool:
    movable = [each for each in seated.values() if world.evict_idle_seconds and not each.pinned]
    return _on_gpus(model, book.without(movable)) is not None


def _who_leaves(model: Model, book: _Book, seated: Mapping[str, Model], world: World) -> tuple[str, ...] | None:
    """The models to evict so that `model` fits; empty: none need; None: it does not help."""
    if _fit(model, book, seated, world) is not None:
        return ()
    idle = [each for each in seated.values() if _may_leave(each, world)]
    if _waits_for_gpu(model, book, seated, world):
        return _fewest(model, book, idle, _on_gpus)
    return _fewest(model, book, idle, _in_ram)


def _may_leave(model: Model, world: World) -> bool:
    limit = world.evict_idle_seconds
    return 0 < limit <= model.idle_seconds and not (model.pinned or model.busy or model.asked)


def _fewest(model: Model, book: _Book, leavers: Sequence[Model], find: _Find) -> tuple[str, ...] | None:
    """The longest idle first, until it fits; then those that were not needed may stay, the last used first."""
    chosen: list[Model] = []
    for each in sorted(leavers, key=lambda one: (-one.idle_seconds, one.root)):
        chosen.append(each)
        if find(model, book.without(chosen)) is not None:
            break
    else:
        return None
    for each in reversed(chosen[:]):
        rest = [one for one in chosen if one is not each]
        if find(model, book.without(rest)) is not None:
            chosen = rest
    return tuple(each.root for each in chosen)


def _shortage(model: Model, book: _Book, seated: Mapping[str, Model], world: World) -> Shortage:
    gpus = [each for each in book.spaces.values() if each.id != RAM and each.kind in model.kinds]
    if model.gpu_bytes is not None and gpus and (model.ram_bytes is None or _could(model, world, _on_gpus)):
        together = sorted((max(0, book.free[each.id]) for each in gpus if not each.alone), reverse=True)
        free_bytes = max([sum(together[: model.devices_max]), *(book.free[each.id] for each in gpus)])
        short = Shortage("too_large", "gpu", model.gpu_bytes, free_bytes)
        find = _on_gpus
    elif model.ram_bytes is not None:
        short = Shortage("too_large", "ram", model.ram_bytes, max(0, book.free.get(RAM, 0)))
        find = _in_ram
    else:
        return Shortage("no_gpu", "gpu", model.gpu_bytes or 0)
    holders = _fewest(model, book, tuple(seated.values()), find)
    if holders:
        return replace(short, reason="held", holders=holders)
    return replace(short, reason="others") if _could(model, world, find) else short


def _could(model: Model, world: World, find: _Find) -> bool:
    """It would fit if it were alone on the machine."""
    empty = _Book(World(world.spaces, (), world.gpu_reserve_bytes), others=False)
    return find(model, empty) is not None
