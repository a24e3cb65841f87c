"""plan(): who gets which memory and who leaves, as tables and as rules that hold for every world."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.engines.placement import RAM, Model, Plan, Seat, Shortage, Space, World, plan

GPU0, GPU1 = Space("cuda:0", 24, kind="cuda"), Space("cuda:1", 48, kind="cuda")
MIG = Space("cuda:MIG-1", 40, kind="cuda", alone=True)
HIP = Space("hip:0", 64, kind="hip")
MEMORY = Space(RAM, 100)


def model(root: str, gpu_bytes: int | None = None, **rest: object) -> Model:
    return Model(root, gpu_bytes, kinds=("cuda",) if gpu_bytes is not None else (), **rest)  # type: ignore[arg-type]


def sits(space: str, size_bytes: int) -> Seat:
    return Seat(((space, size_bytes),))


def world(*models: Model, spaces: tuple[Space, ...] = (GPU0, GPU1, MEMORY), **rest: float) -> World:
    return World(spaces, models, evict_idle_seconds=rest.pop("evict", 60.0), **rest)  # type: ignore[arg-type]


def test_a_model_goes_to_the_gpu_that_it_fills_best() -> None:
    assert plan(world(model("m", 20))).seats == {"m": sits("cuda:0", 20)}
    assert plan(world(model("m", 30))).seats == {"m": sits("cuda:1", 30)}


def test_what_fits_no_gpu_is_split_in_proportion_to_what_is_free() -> None:
    seat = plan(world(model("m", 60, device_bytes=2))).seats["m"]
    assert seat == Seat((("cuda:0", 20), ("cuda:1", 42))), "62 bytes with the second context, 24 to 48"
    assert seat.devices == ("cuda:0", "cuda:1")


def test_nothing_is_split_over_kinds_or_over_a_mig_instance() -> None:
    big = model("m", 80)
    assert plan(world(big, spaces=(GPU1, MIG, HIP))).shortages["m"] == Shortage("too_large", "gpu", 80, 48)
    both = replace(big, kinds=("cuda", "hip"))
    assert "m" not in plan(world(both, spaces=(GPU1, HIP))).seats
    assert plan(world(model("m", 30), spaces=(GPU1, MIG))).seats == {"m": sits("cuda:MIG-1", 30)}
    assert plan(world(replace(big, kinds=("hip",), gpu_bytes=50), spaces=(GPU1, HIP))).seats == {"m": sits("hip:0", 50)}


def test_the_reserve_and_what_other_programs_use_is_left() -> None:
    busy = replace(GPU1, others_bytes=20)
    short = plan(world(model("m", 27), spaces=(busy,), gpu_reserve_bytes=2)).shortages["m"]
    assert short == Shortage("others", "gpu", 27, 26)
    assert short.missing_bytes == 1


def test_an_engine_without_gpus_takes_memory() -> None:
    assert plan(world(model("m", ram_bytes=90))).seats == {"m": sits(RAM, 90)}
    assert plan(world(model("m", ram_bytes=101))).shortages["m"] == Shortage("too_large", "ram", 101, 100)
    assert plan(world(model("m", 5), spaces=(MEMORY,))).shortages["m"].reason == "no_gpu"


def test_only_what_no_gpu_can_ever_hold_goes_to_the_cpu() -> None:
    other = model("other", 40, seat=sits("cuda:1", 40), idle_seconds=5)
    wish = model("m", 45, ram_bytes=50)
    assert plan(world(wish, other, spaces=(GPU1, MEMORY))).shortages["m"].holders == ("other",)
    assert plan(world(wish, replace(other, pinned=True), spaces=(GPU1, MEMORY))).seats["m"] == sits(RAM, 50)
    assert plan(world(wish, other, spaces=(GPU1, MEMORY), evict=0)).seats["m"] == sits(RAM, 50)
    assert plan(world(replace(wish, gpu_bytes=90), other, spaces=(GPU1, MEMORY))).seats["m"] == sits(RAM, 50)


IDLE = (
    model("long", 10, seat=sits("cuda:1", 10), idle_seconds=900),
    model("short", 20, seat=sits("cuda:1", 20), idle_seconds=100),
    model("recent", 15, seat=sits("cuda:1", 15), idle_seconds=59),
)


@pytest.mark.parametrize(
    ("need", "evicted"),
    [
        (3, ()),
        (12, ("long",)),
        (20, ("short",)),  # the longest idle alone is too little, and is not needed beside the other
        (33, ("long", "short")),
    ],
)
def test_the_longest_idle_leave_and_no_more_than_needed(need: int, evicted: tuple[str, ...]) -> None:
    done = plan(world(model("m", need, asked=True), *IDLE, spaces=(GPU1,)))
    assert (done.evictions, set(done.shortages)) == (evicted, set(evicted))
    assert done.seats["m"] == sits("cuda:1", need)


def test_nobody_leaves_where_it_would_not_help_or_nobody_asks() -> None:
    done = plan(world(model("m", 34, asked=True), *IDLE, spaces=(GPU1,)))
    assert (done.evictions, done.shortages["m"]) == ((), Shortage("held", "gpu", 34, 3, ("short", "recent")))
    assert plan(world(model("m", 12), *IDLE, spaces=(GPU1,))).evictions == ()


def test_a_server_takes_gpus_whole() -> None:
    server = model("s", 30, exclusive=True)
    assert plan(world(server)).seats == {"s": sits("cuda:1", 48)}
    used = model("m", 1, seat=sits("cuda:1", 1))
    assert plan(world(server, used)).shortages["s"].holders == ("m",)
    two = replace(server, devices_min=2, devices_max=2)
    assert plan(world(two)).seats == {"s": Seat((("cuda:0", 24), ("cuda:1", 48)))}
    assert plan(world(replace(two, gpu_bytes=50))).shortages["s"].reason == "too_large", "equal parts of 24"
    assert "m" not in plan(world(replace(server, seat=sits("cuda:1", 48)), model("m", 30))).seats


def test_an_evicted_model_moves_where_there_is_room_for_it() -> None:
    either = replace(model("old", 40, seat=sits("cuda:1", 40), idle_seconds=900), kinds=("cuda", "hip"))
    done = plan(world(model("m", 30, asked=True), either, spaces=(GPU1, HIP)))
    assert done.evictions == ("old",)
    assert done.seats == {"m": sits("cuda:1", 30), "old": sits("hip:0", 40)}


SPACES = st.lists(
    st.tuples(st.sampled_from(("cuda", "cuda", "hip")), st.integers(0, 80), st.integers(0, 30), st.booleans()),
    max_size=4,
)
MODELS = st.lists(
    st.builds(
        Model,
        root=st.uuids().map(str),
        gpu_bytes=st.none() | st.integers(0, 120),
        ram_bytes=st.none() | st.integers(0, 120),
        kinds=st.sampled_from((("cuda",), ("cuda", "hip"), ())),
        device_bytes=st.integers(0, 4),
        devices_min=st.integers(1, 2),
        devices_max=st.integers(1, 4),
        exclusive=st.booleans(),
        asked=st.booleans(),
        pinned=st.booleans(),
        busy=st.booleans(),
        idle_seconds=st.integers(0, 200).map(float),
    ),
    max_size=6,
    unique_by=lambda each: each.root,
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Some models sit already, wherever a first plan with others' wishes put them."""
    spaces = [
        Space(f"{kind}:{number}", size, min(others, size), kind, alone)
        for number, (kind, size, others, alone) in enumerate(draw(SPACES))
    ]
    spaces.append(Space(RAM, draw(st.integers(0, 200))))
    reserve, idle = draw(st.integers(0, 3)), draw(st.sampled_from((0.0, 50.0)))
    first = draw(MODELS)
    seats = plan(World(tuple(spaces), tuple(first), reserve, idle)).seats
    sitting = [replace(each, seat=seats[each.root], asked=False) for each in first if each.root in seats]
    return World(tuple(spaces), (*sitting, *draw(MODELS)), reserve, idle)


def room(world: World) -> dict[str, int]:
    return {
        each.id: each.total_bytes - each.others_bytes - (world.gpu_reserve_bytes if each.id != RAM else 0)
        for each in world.spaces
    }


def applied(world: World, done: Plan) -> World:
    return replace(world, models=tuple(replace(each, seat=done.seats.get(each.root)) for each in world.models))


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_no_space_is_ever_over_full(given_world: World) -> None:
    done = plan(given_world)
    left = room(given_world)
    for seat in done.seats.values():
        for space, size_bytes in seat.shares:
            assert size_bytes >= 0
            left[space] -= size_bytes
    assert all(free >= 0 for space, free in left.items() if any(space in dict(s.shares) for s in done.seats.values()))


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_every_seat_is_one_that_the_model_can_use(given_world: World) -> None:
    by_id = {each.id: each for each in given_world.spaces}
    for each in given_world.models:
        seat = plan(given_world).seats.get(each.root)
        if seat is None or each.seat is not None:
            continue
        spaces = [by_id[space] for space, _ in seat.shares]
        if not seat.devices:
            assert sum(size for _, size in seat.shares) == each.ram_bytes
            continue
        assert each.gpu_bytes is not None
        assert len({space.kind for space in spaces}) == 1
        assert spaces[0].kind in each.kinds
        assert len(spaces) == 1 or not any(space.alone for space in spaces)
        assert each.devices_min <= len(spaces) <= each.devices_max
        assert sum(size for _, size in seat.shares) >= each.gpu_bytes


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_busy_pinned_and_recent_models_stay_where_they_are(given_world: World) -> None:
    done = plan(given_world)
    limit = given_world.evict_idle_seconds
    for each in given_world.models:
        if each.seat is None:
            assert each.root not in done.evictions
        elif each.busy or each.pinned or not limit or each.idle_seconds < limit or each.root not in done.evictions:
            assert done.seats[each.root] == each.seat
    assert not done.evictions or any(each.asked and each.seat is None for each in given_world.models)


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_no_eviction_could_have_been_spared(given_world: World) -> None:
    """For one asker: were any of the evicted made to stay, it would have no seat, or others would have to leave."""
    asker = next((each for each in given_world.models if each.asked and each.seat is None), None)
    if asker is None:
        return
    others = tuple(each for each in given_world.models if each.seat is not None)
    alone = replace(given_world, models=(*others, asker))
    done = plan(alone)
    for spared in done.evictions:
        kept = tuple(
            each if each.root not in done.evictions or each.root == spared else replace(each, seat=None, asked=False)
            for each in others
        )
        kept = tuple(each for each in kept if each.seat is not None)
        without = plan(replace(given_world, models=(*(replace(each, busy=True) for each in kept), asker)))
        seat = without.seats.get(asker.root)
        assert seat is None or seat.devices == () != done.seats[asker.root].devices


@settings(max_examples=150, deadline=None)
@given(worlds(), st.integers())
def test_a_plan_that_was_carried_out_asks_for_nothing(given_world: World, seed: int) -> None:
    done = plan(given_world)
    after = applied(given_world, done)
    again = plan(after)
    assert (again.seats, again.evictions) == (done.seats, ())
    mixed = list(given_world.models)
    random.Random(seed).shuffle(mixed)
    assert plan(replace(given_world, models=tuple(mixed))).seats == done.seats, "the order of the models is nothing"


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_whoever_has_no_seat_is_told_why(given_world: World) -> None:
    done = plan(given_world)
    roots = {each.root for each in given_world.models}
    assert set(done.seats) | set(done.shortages) == roots
    assert not set(done.seats) & set(done.shortages)
    for short in done.shortages.values():
        assert (short.reason == "held") == bool(short.holders)
        assert set(short.holders) <= set(done.seats)
