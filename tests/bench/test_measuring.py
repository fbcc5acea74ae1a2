"""measure: who is called when, what is recorded, and what happens to a runner that breaks."""

import gc
import itertools
from collections import Counter

import pytest
import torch

from torchkiln.bench.measuring import MIN_SETTLE_CALLS, Plan, Timed, host_clock, measure, synchronizer, visiting_order, warm_up


def plan(**values):
    return Plan(**{"rounds": 3, "min_time_s": 1e-9, "min_samples": 7, "max_time_s": 10.0, "pause_s": 0.0, "settle_s": 0.0, "seed": 0, **values})


def constant_clock(nanoseconds):
    def clock(call, index, synchronize):
        call(index)
        return nanoseconds

    return clock


def nothing():
    pass


@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_round_visits_every_runner_once(count):
    order = visiting_order(count, 9, seed=3)
    assert len(order) == 9
    assert all(sorted(visits) == list(range(count)) for visits in order)
    assert order == visiting_order(count, 9, seed=3)


def test_places_and_neighbours_vary():
    order = visiting_order(4, 400, seed=0)
    places = Counter((runner, place) for visits in order for place, runner in enumerate(visits))
    neighbours = Counter(pair for visits in order for pair in itertools.pairwise(visits))
    assert min(places.values()) > 60  # 100 expected of each of 16
    assert min(neighbours.values()) > 60  # 100 expected of each of 12
    assert order != visiting_order(4, 400, seed=1)


def test_each_runner_gets_its_samples_after_settle_calls():
    seen: list[tuple[str, int]] = []
    runners = [Timed(lambda i, name=name: seen.append((name, i))) for name in "abc"]
    measure(runners, plan(), nothing, constant_clock(5_000.0))
    # 7 samples over 3 rounds: 3 a visit, none fewer than asked for.
    assert [len(r.samples_ns) for r in runners] == [9, 9, 9]
    visits = [list(group) for _, group in itertools.groupby(seen, key=lambda call: call[0])]
    assert len(seen) == 3 * 3 * (3 + MIN_SETTLE_CALLS)
    assert all(len(visit) % (3 + MIN_SETTLE_CALLS) == 0 for visit in visits)
    assert visits[0] == [(visits[0][0][0], i) for i in range(3 + MIN_SETTLE_CALLS)]


def test_the_time_asked_for_is_recorded():
    runner = Timed(lambda i: None)
    measure([runner], plan(min_time_s=0.003, min_samples=1), nothing, constant_clock(10_000.0))
    assert sum(runner.samples_ns) == pytest.approx(3e6)


def test_max_time_ends_a_slow_runner_but_each_round_keeps_a_call():
    slow, quick = Timed(lambda i: None), Timed(lambda i: None)

    def clock(call, index, synchronize):
        return 4e9 if call is slow.call else 1e3

    measure([slow, quick], plan(min_samples=30, max_time_s=6.0), nothing, clock)
    assert len(slow.samples_ns) == 3
    assert len(quick.samples_ns) == 30


def test_a_runner_that_raises_is_left_out_and_the_others_go_on():
    calls = Counter()

    def breaks(index):
        calls["broken"] += 1
        if calls["broken"] == 5:
            raise RuntimeError("out of luck")

    broken, sound = Timed(breaks), Timed(lambda i: None)
    done: list[tuple[int, int]] = []
    measure([broken, sound], plan(), nothing, constant_clock(1.0), lambda n, total: done.append((n, total)))
    assert str(broken.error) == "out of luck"
    assert calls["broken"] == 5
    assert sound.error is None
    assert len(sound.samples_ns) == 9
    assert done == [(n, 6) for n in range(1, 7)]


def test_garbage_is_not_collected_inside_a_round_and_the_setting_returns():
    enabled: list[bool] = []
    measure([Timed(lambda i: enabled.append(gc.isenabled()))], plan(), nothing, constant_clock(1.0))
    assert enabled
    assert not any(enabled)
    assert gc.isenabled()


def test_the_host_clock_synchronizes_before_and_after():
    events: list[str] = []
    elapsed = host_clock(lambda i: events.append(f"call {i}"), 3, lambda: events.append("sync"))
    assert events == ["sync", "call 3", "sync"]
    assert elapsed > 0


def test_warm_up_calls_twice_at_least_and_for_its_time():
    calls: list[int] = []
    warm_up(calls.append, 0.0, nothing)
    assert calls == [0, 1]
    calls.clear()
    warm_up(calls.append, 0.02, nothing)
    assert len(calls) > 100


def test_the_cpu_needs_no_synchronizing():
    assert synchronizer(torch.device("cpu"))() is None
