"""What the tuner chooses, with tactics and measurements made to order: no GPU, nothing compiled."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
import torch

from torchkiln.backends.cuda import tuner
from torchkiln.backends.cuda.compile_kernel import Compiled
from torchkiln.backends.cuda.measure import Outcome
from torchkiln.backends.cuda.recipe import Kernel, Launch, Problem, Recipe, Ref, TensorSpec, TorchCall
from torchkiln.backends.cuda.tactics import registry
from torchkiln.backends.cuda.tactics.registry import TORCH
from torchkiln.backends.cuda.timing_cache import TimingCache
from torchkiln.backends.cuda.trace import Operation
from torchkiln.errors import BuildFailed

CPU = torch.device("cpu")
X = TensorSpec.contiguous((8, 16), torch.float16)


def operation(label="relu", rows=8):
    spec = TensorSpec.contiguous((rows, 16), torch.float16)
    reference = Recipe((TorchCall("aten.relu.default", (Ref("x0"),)),))
    return Operation(label, Problem("made", (spec,), (spec,), {}), [], [], reference)


class Made:
    """A tactic of op "made" with a test's configurations, which say what comes of them: {"us": 3.5}, {"wrong": why}, {"broken": why}."""

    ops = ("made",)

    def __init__(self, name, *configs, reject=""):
        self.name, self._configs, self._reject = name, list(configs), reject

    def reject(self, problem):
        return self._reject

    def configs(self, problem, level):
        return self._configs[: level + 1]

    def recipe(self, problem, config):
        kernel = Kernel(f"{self.name}:kernel", (torch.float16,), tuple(config.items()))
        return Recipe((Launch(kernel, (1, 1, 1), ("x0", "y0")),) if config else ())


class Pool:
    """Answers as the configurations say; keeps the jobs it was given."""

    def __init__(self):
        self.jobs = []
        self.compiled = []

    def compile(self, kernel):
        future = Future()
        why = dict(kernel.constants).get("broken")
        future.set_result(why or Compiled(repr(kernel).encode(), "k", shared_bytes=0, threads=128))
        if kernel not in self.compiled:
            self.compiled.append(kernel)
        return future

    def measure(self, job):
        self.jobs.append(job)
        outcomes = []
        for recipe in job.recipes:
            launch = recipe.launches[0]
            says = dict(launch.kernel.constants) if isinstance(launch, Launch) else {"wrong": "cannot be captured"}
            assert not isinstance(launch, Launch) or launch.kernel in job.compiled
            outcomes.append(Outcome(says.get("us"), says.get("wrong", "")))
        return outcomes


@pytest.fixture
def tune(monkeypatch, tmp_path):
    """``tune(tactics, operations, level)`` -> the choices and the pool; the cache lasts for the test."""
    monkeypatch.setattr(tuner, "environment", lambda device: {"gpu": "made to order"})

    def run(tactics, operations, level=5, cache=tmp_path / "cache.sqlite"):
        monkeypatch.setattr(registry, "tactics_of", lambda op: [t for t in tactics if op in t.ops])
        pool = Pool()
        return tuner.tune(operations, CPU, level, TimingCache(cache), pool), pool

    return run


def test_the_fastest_that_is_right(tune):
    slow = Made("slow", {"us": 5.0}, {"us": 9.0})
    fast = Made("fast", {"wrong": "wrong: y0 has relative error 0.5"}, {"us": 3.0, "stages": 2}, {"broken": "out of shared memory"})
    unable = Made("unable", {"us": 1.0}, reject="the weight is computed")
    (choice,), pool = tune([slow, fast, unable], [operation()])
    assert (choice.option.tactic, choice.option.config, choice.median_us) == ("fast", {"us": 3.0, "stages": 2}, 3.0)
    (launch,) = choice.option.recipe.launches
    assert choice.codes == {launch.kernel: Compiled(repr(launch.kernel).encode(), "k", shared_bytes=0, threads=128)}
    assert choice.rejects[0] == "unable: the weight is computed"
    assert any("fast {'wrong'" in reason and "relative error 0.5" in reason for reason in choice.rejects)
    assert any("fast {'broken'" in reason and "out of shared memory" in reason for reason in choice.rejects)
    assert len(choice.rejects) == 3
    assert [len(job.recipes) for job in pool.jobs] == [4]  # what does not compile is not measured


def test_equal_problems_are_measured_once(tune):
    choices, pool = tune([Made("only", {"us": 5.0})], [operation("a"), operation("b"), operation("c", rows=9), operation("d")])
    assert [job.inputs[0].shape[0] for job in pool.jobs] == [8, 9]
    assert choices[0] is choices[1] is choices[3]
    assert choices[2] is not choices[0]


def test_what_the_cache_knows_is_not_measured(tune):
    tactics = [Made("one", {"us": 5.0}, {"us": 2.0})]
    (first,), _ = tune(tactics, [operation()])
    (again,), pool = tune(tactics, [operation("another label")])
    assert pool.jobs == []
    assert (again.option, again.median_us, again.codes) == (first.option, 2.0, first.codes)
    assert [dict(kernel.constants) for kernel in pool.compiled] == [{"us": 2.0}]  # only the winner's


def test_another_effort_is_measured_again(tune):
    tactics = [Made("one", {"us": 5.0}, {"us": 2.0})]
    (quick,), _ = tune(tactics, [operation()], level=0)
    (thorough,), pool = tune(tactics, [operation()], level=1)
    assert (quick.median_us, thorough.median_us, len(pool.jobs)) == (5.0, 2.0, 1)


def test_a_remembered_tactic_that_is_gone(tune):
    tune([Made("old", {"us": 1.0})], [operation()])
    (choice,), pool = tune([Made("new", {"us": 4.0})], [operation()])
    assert (choice.option.tactic, len(pool.jobs)) == ("new", 1)


def test_a_remembered_winner_that_does_not_compile(tune, monkeypatch):
    tune([Made("one", {"us": 1.0})], [operation()])
    monkeypatch.setattr(Pool, "compile", lambda self, kernel: _done("ptxas is missing"))
    with pytest.raises(BuildFailed, match=r"the label: one: .*ptxas is missing"):
        tune([Made("one", {"us": 1.0})], [operation("the label")])


def _done(result):
    future = Future()
    future.set_result(result)
    return future


def test_nothing_right_leaves_it_to_torch(tune):
    op = operation()
    (choice,), _ = tune([Made("one", {"wrong": "wrong: NaN"}, {"broken": "no"})], [op])
    assert (choice.option.tactic, choice.option.recipe, choice.median_us, choice.codes) == (TORCH, op.reference, None, {})
    assert len(choice.rejects) == 2
    _, pool = tune([Made("one", {"wrong": "wrong: NaN"})], [op])
    assert len(pool.jobs) == 1  # a failure is not remembered


def test_no_tactic_leaves_it_to_torch(tune):
    op = operation()
    (choice,), pool = tune([Made("one", {"us": 1.0}, reject="too large")], [op])
    assert (choice.option.tactic, choice.option.recipe, choice.median_us) == (TORCH, op.reference, None)
    assert choice.rejects == ["one: too large", "torch {}: cannot be captured"]
    assert len(pool.jobs) == 1


def test_nothing_to_launch_is_not_measured(tune):
    (choice,), pool = tune([Made("one", {})], [operation(rows=0)])
    assert (choice.option.tactic, choice.median_us, choice.codes, pool.jobs) == ("torch", 0.0, {}, [])
    assert not choice.option.recipe.launches
