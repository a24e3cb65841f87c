"""plan(): tables of what is seen and what follows, and rules that hold whatever is seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.engines.contract import LoadRequest
from octonode.engines.plan import (
    Crashes,
    Drain,
    Forget,
    Kill,
    Observed,
    Phase,
    Policy,
    Quarantine,
    SeenWorker,
    Start,
    Stop,
    back_off_seconds,
    next_look_seconds,
    plan,
)

LOAD = LoadRequest("scripted", None, "r")
OTHER = replace(LOAD, context_tokens=99)
POLICY = Policy(memory_bytes_max=1000)
NOW = 1000.0
WANTED = {"r": LOAD}


def worker(phase=Phase.READY, **seen):
    base = SeenWorker(LOAD, phase, phase_since=NOW - 5, heard_at=NOW, progressed_at=NOW)
    return replace(base, **seen)


def crashes(count=1, ago=0.0, **rest):
    return Crashes(count, NOW - ago, LOAD, "died", **rest)


def actions(seen=None, failed=None, desired=WANTED):
    observed = Observed({} if seen is None else {"r": seen}, {} if failed is None else {"r": failed})
    return plan(observed, desired, NOW, POLICY)


TABLE = {
    "nothing is wanted": (None, None, {}, []),
    "wanted and not there": (None, None, WANTED, [Start("r", LOAD)]),
    "starting": (worker(Phase.STARTING), None, WANTED, []),
    "ready": (worker(), None, WANTED, []),
    "stopping, wanted again": (worker(Phase.STOPPING), None, WANTED, []),
    "draining, still busy": (worker(Phase.DRAINING, running=1), None, {}, []),
    "just crashed": (None, crashes(), WANTED, []),
    "crashed, back-off over": (None, crashes(ago=0.5), WANTED, [Start("r", LOAD)]),
    "third crash, back-off longer": (None, crashes(3, ago=1.9), WANTED, []),
    "third death at load": (None, crashes(3, ago=1.9, at_load=3), WANTED, [Quarantine("r")]),
    "third crash, back-off over": (None, crashes(3, ago=2.0), WANTED, [Start("r", LOAD)]),
    "fifth crash": (None, crashes(5, ago=999), WANTED, [Quarantine("r")]),
    "cannot be mended": (None, crashes(1, ago=999, lasting=True), WANTED, [Quarantine("r")]),
    "quarantined": (None, crashes(5, ago=999, quarantined=True), WANTED, []),
    "quarantined, wanted otherwise": (None, crashes(5, quarantined=True), {"r": OTHER}, [Forget("r")]),
    "quarantined, no longer wanted": (None, crashes(5, quarantined=True), {}, [Forget("r")]),
    "ready long enough": (worker(phase_since=NOW - 301), crashes(4), WANTED, [Forget("r")]),
    "ready, not long enough": (worker(phase_since=NOW - 299), crashes(4), WANTED, []),
    "no longer wanted": (worker(), None, {}, [Stop("r")]),
    "no longer wanted, busy": (worker(running=2), None, {}, [Drain("r")]),
    "wanted otherwise": (worker(), None, {"r": OTHER}, [Stop("r")]),
    "wanted otherwise while starting": (worker(Phase.STARTING), None, {"r": OTHER}, [Stop("r")]),
    "drained": (worker(Phase.DRAINING), None, {}, [Stop("r")]),
    "drained, wanted again meanwhile": (worker(Phase.DRAINING), None, WANTED, [Stop("r")]),
    "drains too long": (worker(Phase.DRAINING, running=1, phase_since=NOW - 31), None, {}, [Stop("r")]),
    "progress long ago, but idle": (worker(progressed_at=0), None, WANTED, []),
    "a beat just in time": (worker(heard_at=NOW - 20), None, WANTED, []),
    "memory within the limit": (worker(resident_bytes=1000), None, WANTED, []),
    "GPU memory without a limit": (worker(gpu_bytes=10**15), None, WANTED, []),
}


@pytest.mark.parametrize(("seen", "failed", "desired", "expected"), TABLE.values(), ids=TABLE)
def test_what_follows(seen, failed, desired, expected):
    assert list(actions(seen, failed, desired)) == expected


KILLS = {
    "loads too long": (worker(Phase.STARTING, phase_since=NOW - 301), "load_timeout_seconds"),
    "silent": (worker(heard_at=NOW - 20.1), "heartbeat"),
    "silent while draining": (worker(Phase.DRAINING, running=1, heard_at=NOW - 20.1), "heartbeat"),
    "stuck": (worker(running=1, progressed_at=NOW - 60.1), "no progress"),
    "too large": (worker(resident_bytes=1001), "memory_bytes_max"),
    "too large while starting": (worker(Phase.STARTING, resident_bytes=1001), "memory_bytes_max"),
}


@pytest.mark.parametrize(("seen", "reason"), KILLS.values(), ids=KILLS)
def test_what_is_killed_and_why(seen, reason):
    (action,) = actions(seen)
    assert isinstance(action, Kill)
    assert reason in action.reason


def test_gpu_memory_has_a_limit_of_its_own():
    policy = replace(POLICY, gpu_memory_bytes_max=8 << 30)
    for held, kinds in ((8 << 30, []), ((8 << 30) + 1, [Kill])):
        observed = Observed({"r": worker(gpu_bytes=held)})
        planned = plan(observed, WANTED, NOW, policy)
        assert [type(action) for action in planned] == kinds
    assert (
        planned[0].reason == "it held 8192 MiB of GPU memory, over the limit of 8192 MiB (engines.gpu_memory_bytes_max)"
    )


def test_each_root_is_planned_by_itself():
    observed = Observed({"b": worker(), "c": worker(heard_at=0)}, {"d": crashes(5)})
    desired = {"a": LOAD, "c": LOAD, "d": LOAD}
    kinds = [type(action) for action in plan(observed, desired, NOW, POLICY)]
    assert kinds == [Start, Stop, Kill, Quarantine]


def test_back_off_doubles_up_to_its_cap():
    waits = [back_off_seconds(count, POLICY) for count in range(1, 2000)]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert waits == sorted(waits)
    assert max(waits) == POLICY.back_off_max_seconds == waits[-1]


def test_when_to_look_again():
    assert next_look_seconds(Observed(), WANTED, NOW, POLICY) == math.inf
    assert next_look_seconds(Observed({"r": worker()}), WANTED, NOW, POLICY) == 1.0
    assert next_look_seconds(Observed({}, {"r": crashes(2, ago=0.25)}), WANTED, NOW, POLICY) == 0.75
    assert next_look_seconds(Observed({}, {"r": crashes(2, quarantined=True)}), WANTED, NOW, POLICY) == math.inf


ROOTS = st.sampled_from(["a", "b", "c"])
TIMES = st.floats(0, 2000)
LOADS = st.sampled_from([LOAD, OTHER])
WORKERS = st.builds(
    SeenWorker, LOADS, st.sampled_from(Phase), TIMES, TIMES, TIMES, st.integers(0, 3), st.integers(0, 2000)
)
FAILURES = st.builds(
    Crashes, st.integers(1, 8), TIMES, LOADS, st.just("died"), st.integers(0, 8), st.booleans(), st.booleans()
)
SEEN = st.builds(Observed, st.dictionaries(ROOTS, WORKERS), st.dictionaries(ROOTS, FAILURES))


@given(SEEN, st.dictionaries(ROOTS, LOADS), TIMES)
def test_never_two_workers_and_never_a_quarantined_start(observed, desired, now):
    planned = plan(observed, desired, now, POLICY)
    assert planned == plan(observed, desired, now, POLICY), "it is a function of what it is given"
    roots = [action.root for action in planned]
    assert len(roots) == len(set(roots)), "one action a root"
    for action in planned:
        if isinstance(action, Start):
            assert action.root not in observed.workers
            assert desired[action.root] == action.request
            failed = observed.crashes.get(action.root)
            if failed is not None:
                assert not failed.quarantined
                assert not failed.lasting
                assert failed.count < POLICY.crashes_before_quarantine
                assert failed.at_load < POLICY.loads_before_quarantine
                assert now >= failed.last_at + back_off_seconds(failed.count, POLICY)
        elif isinstance(action, (Stop, Drain, Kill)):
            assert observed.workers[action.root].phase is not Phase.STOPPING


@given(st.dictionaries(ROOTS, FAILURES), st.dictionaries(ROOTS, LOADS, min_size=1), TIMES)
def test_a_wanted_model_is_started_in_the_end_or_quarantined(failed, desired, now):
    """Carried out step by step, with time going on when nothing is due, the plan always comes to an end."""
    seen = Observed({}, dict(failed))
    started: set[str] = set()
    for _ in range(40):
        planned = plan(seen, desired, now, POLICY)
        workers, failures = dict(seen.workers), dict(seen.crashes)
        for action in planned:
            if isinstance(action, Start):
                started.add(action.root)
                workers[action.root] = SeenWorker(action.request, Phase.READY, now, now, now)
            elif isinstance(action, Quarantine):
                failures[action.root] = replace(failures[action.root], quarantined=True)
            elif isinstance(action, Forget):
                del failures[action.root]
        seen = Observed(workers, failures)
        if not planned:
            wait = next_look_seconds(
                Observed({}, failures), {r: desired[r] for r in desired if r not in workers}, now, POLICY
            )
            if math.isinf(wait):
                break
            now += wait + 0.001
    quarantined = {root for root, failure in seen.crashes.items() if failure.quarantined}
    assert set(desired) <= started | quarantined
