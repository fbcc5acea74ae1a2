"""Runners-up in the plan, with tactics and times made to order: no GPU, nothing compiled; and once on a GPU."""

from __future__ import annotations

import pytest
import torch
from tests.backends.cuda.test_tuner import CPU, Made, Pool, operation

import torchkiln
from torchkiln.backends.cuda import refine_choices as refining
from torchkiln.backends.cuda import tuner
from torchkiln.backends.cuda.refine_choices import is_faster, refine_choices
from torchkiln.backends.cuda.tactics import registry
from torchkiln.backends.cuda.timing_cache import TimingCache
from torchkiln.backends.cuda.trace import Trace

OPERATIONS = [operation("a"), operation("b", rows=9), operation("c")]


class Bench:
    """Times a plan as the sum of what its configurations say that they take in a plan; keeps what it was asked."""

    def __init__(self):
        self.asked, self.rounds = [], []
        self.fails = False
        self.fails_at = -1

    def __call__(self, plans, codes, constants, device, rounds, *, same_results, enough):
        assert not same_results
        if self.fails or self.fails_at == len(self.asked):
            self.asked.append("failed")
            raise RuntimeError("out of memory")
        self.asked.append([[choice.option.config["in_plan"] for choice in plan] for plan in plans])
        times = [[], []]
        for number in range(rounds):
            for found, us in zip(times, self.asked[-1], strict=True):
                found.append(sum(us) + 0.001 * number)
            if enough(times):
                break
        self.rounds.append(len(times[0]))
        return times


@pytest.fixture
def bench(monkeypatch):
    made = Bench()
    monkeypatch.setattr(refining, "time_plans", made)
    monkeypatch.setattr(refining, "assemble_plan", lambda traced, choices, codes, constants: list(choices))
    for module in (refining, tuner):
        monkeypatch.setattr(module, "environment", lambda device: {"gpu": "made to order"})
    return made


@pytest.fixture
def refine(bench, monkeypatch, tmp_path):
    """``refine(tactics, level)`` -> the choices before and after; the cache lasts for the test."""

    def run(tactics, level=3):
        monkeypatch.setattr(registry, "tactics_of", lambda op: tactics)
        cache, pool = TimingCache(tmp_path / "cache.sqlite"), Pool()
        choices = tuner.tune(OPERATIONS, CPU, 5, cache, pool)
        monkeypatch.setattr(refining, "problem_keys", lambda operations, level, device: tuner.problem_keys(operations, 5, device))
        after = refine_choices(Trace([], [], OPERATIONS), choices, level, cache, pool, CPU)
        assert all(launch.kernel in choice.codes for choice in after for launch in choice.option.recipe.launches)
        return choices, after

    return run


FAST_ALONE = {"us": 5.0, "in_plan": 9.0}
FAST_IN_PLAN = {"us": 5.4, "in_plan": 8.0}


def test_what_is_faster_in_the_plan_is_taken_everywhere(refine, bench):
    before, after = refine([Made("one", FAST_ALONE, FAST_IN_PLAN, {"us": 5.5, "in_plan": 8.5})])
    assert [choice.option.config for choice in before] == [FAST_ALONE] * 3
    assert [(choice.option.config, choice.median_us) for choice in after] == [(FAST_IN_PLAN, 5.4)] * 3
    # Two operations of one problem change together, and what was taken stays while others are tried.
    assert bench.asked == [
        [[9.0, 9.0, 9.0], [8.0, 9.0, 8.0]],
        [[8.0, 9.0, 8.0], [8.5, 9.0, 8.5]],
        [[8.0, 9.0, 8.0], [8.0, 8.0, 8.0]],
        [[8.0, 8.0, 8.0], [8.0, 8.5, 8.0]],
    ]


def test_what_was_found_is_remembered(refine, bench):
    tactics = [Made("one", FAST_ALONE, FAST_IN_PLAN)]
    first = refine(tactics)[1]
    asked = len(bench.asked)
    assert [choice.option for choice in refine(tactics)[1]] == [choice.option for choice in first]
    assert len(bench.asked) == asked


def test_what_is_slower_in_the_plan_stays_out(refine, bench):
    before, after = refine([Made("one", FAST_ALONE, {"us": 5.1, "in_plan": 9.0}, {"us": 5.2, "in_plan": 10.0})])
    assert after == before
    assert bench.rounds == [15, 4, 15, 4]  # what is slower from the beginning is soon over


def test_whom_it_asks(refine, bench):
    many = [{"us": 5.0 + step / 10, "in_plan": 9.0} for step in range(6)]
    out = [{"us": 50.0, "in_plan": 1.0}, {"wrong": "differs", "in_plan": 1.0}]
    last = {"us": 5.6, "in_plan": 9.5}
    refine([Made("one", *many, *out), Made("other", last, {"us": 5.7, "in_plan": 9.5})])
    # Five runners-up, and the other tactic's best; for each of the two problems.
    assert len(bench.asked) == 2 * 6
    assert sum(9.5 in trial for _, trial in bench.asked) == 2
    assert not any(1.0 in trial for _, trial in bench.asked)


def test_other_levels_choose_as_before(refine, bench):
    before, after = refine([Made("one", FAST_ALONE, FAST_IN_PLAN)], level=2)
    assert after == before
    assert not bench.asked


def test_a_plan_that_cannot_be_measured_keeps_its_choices(refine, bench):
    bench.fails = True
    before, after = refine([Made("one", FAST_ALONE, FAST_IN_PLAN)])
    assert after == before


def test_a_trial_that_fails_leaves_what_was_found(refine, bench):
    bench.fails_at = 1
    _, after = refine([Made("one", FAST_ALONE, FAST_IN_PLAN, {"us": 5.5, "in_plan": 1.0})])
    assert [choice.option.config for choice in after] == [FAST_IN_PLAN, {"us": 5.5, "in_plan": 1.0}, FAST_IN_PLAN]
    assert bench.asked[1] == "failed"


def test_it_ends_in_time_and_goes_on_next_time(refine, bench, monkeypatch):
    tactics = [Made("one", FAST_ALONE, {"us": 5.1, "in_plan": 9.0}, FAST_IN_PLAN)]
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr(refining.time, "monotonic", lambda: next(ticks))
    before, after = refine(tactics)
    assert len(bench.asked) == 1  # 15 s at level 3, 10 s a trial
    assert after == before
    monkeypatch.setattr(refining.time, "monotonic", lambda: 0.0)
    assert [choice.option.config for choice in refine(tactics)[1]] == [FAST_IN_PLAN] * 3


def test_faster_beyond_chance():
    now = [100.0 + step for step in range(15)]
    assert is_faster([us - 0.5 for us in now], now)
    assert not is_faster([us - 0.05 for us in now], now)  # less than a thousandth
    assert not is_faster([us - 0.5 if place < 11 else us + 0.5 for place, us in enumerate(now)], now)  # too few of the rounds
    assert is_faster([us - 0.5 if place < 12 else us + 0.5 for place, us in enumerate(now)], now)
    assert not is_faster(now, now)


@pytest.mark.cuda
def test_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHKILN_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(96, 96), torch.nn.GELU()) for _ in range(6))).cuda().eval()
    x = torch.randn(40, 96, device="cuda")
    engines = [torchkiln.compile(model, [x], enabled_precisions={torch.half}, backend="cuda", optimization_level=3) for _ in range(2)]
    with torch.no_grad():
        assert ((engines[0](x) - model(x)).norm() / model(x).norm()).item() < 5e-3
    chosen = [[(info.tactic, info.config) for info in engine.runners[0].bundle.plans[0].infos] for engine in engines]
    assert chosen[0] == chosen[1]
    assert torch.equal(engines[0](x), engines[1](x))
