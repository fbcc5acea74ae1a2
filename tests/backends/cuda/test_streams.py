"""Plans on several streams, on the CPU: every order that streams and waits allow gives the same numbers, over memory that is shared and reused."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.run_plan import CpuPlan, choose
from tests.backends.cuda.test_plan import MODELS
from torch import nn

from torchkiln.backends.cuda import choose_streams as choosing
from torchkiln.backends.cuda.assemble_plan import Codes, Constants, assemble_plans
from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.plan import Bundle, KernelStep, TorchStep, decode_bundle, encode_bundle
from torchkiln.backends.cuda.runtime import tensors_of
from torchkiln.backends.cuda.specialize import specialize
from torchkiln.backends.cuda.timing_cache import TimingCache
from torchkiln.backends.cuda.trace import trace


class Branches(nn.Module):
    """Four branches on one tensor, joined in memory that all write a part of; torch runs a step of two of them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=2, dilation=2)
        self.d, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(32, 8, 1)

    def forward(self, x):
        x = F.relu(x * 2)
        pooled = torch.cumsum(F.relu(self.d(x)), 2)
        joined = torch.cat([F.relu(self.a(x)), self.c(F.relu(self.b(x))), torch.cumsum(x, 3) + 1, pooled * 0.5], 1)
        return self.head(joined) + x, pooled.sum(1)


CASES = MODELS | {"branches": (Branches, [(1, 8, 3, 5)])}


def plans_of(name):
    """The graph, and its plan on one stream and on as many as there are branches, every step taken to be long."""
    torch.manual_seed(0)
    make, shapes = CASES[name]
    before = lowered(make(), shapes, None)
    graph_module = specialize(copy.deepcopy(before), shapes)
    fuse(graph_module)
    traced = trace(graph_module, 80, 108, lambda op: "ieee")
    choices = [choose(operation, True) for operation in traced.operations]
    for choice in choices:
        choice.median_us = 50.0
    codes, constants, kernels = Codes(), Constants(), {}
    plans = assemble_plans(traced, choices, codes, constants, (1, 4))
    for choice in choices:
        for kernel, compiled in choice.codes.items():
            kernels[codes.add(kernel, compiled, choice.median_us)] = kernel
    plans = decode_bundle(encode_bundle(Bundle(plans, codes.held, {}))).plans
    return before, plans, lambda plan: CpuPlan(plan, kernels, constants.held)


def run_in_some_order(loaded, inputs, generator):
    """Run the steps in a random order that streams and waits allow."""
    memory = loaded.start(inputs)
    memory._arena.fill_(0xFF)
    steps = loaded.plan.steps
    done = set()
    while len(done) < len(steps):
        heads = {}
        for number, step in enumerate(steps):
            if number not in done:
                heads.setdefault(step.stream, number)
        number = generator.choice([n for n in heads.values() if done.issuperset(steps[n].waits)])
        loaded.launcher(steps[number], memory)(0)
        done.add(number)
        for index in loaded._last_use[number]:
            memory._by_torch.pop(index, None)
    return memory.outputs


@pytest.mark.parametrize("name", ["branches", "joined"])
def test_any_order_gives_the_same(name):
    before, plans, load = plans_of(name)
    assert [plan.streams for plan in plans] == [1, len({step.stream for step in plans[-1].steps})]
    inputs = [torch.randn(shape) for shape in CASES[name][1]]
    with torch.no_grad():
        expected = before(*inputs)
    loaded = load(plans[-1])
    for seed in range(3):
        for got, right in zip(run_in_some_order(loaded, inputs, random.Random(seed)), expected, strict=True):
            torch.testing.assert_close(got, right, atol=1e-5, rtol=1e-5)


def test_a_chain_has_one_plan():
    class Chain(nn.Module):
        def forward(self, x):
            return torch.cumsum(torch.cumsum(x * 2, 0) + 1, 0) * 3

    graph_module = specialize(lowered(Chain(), [(4, 5)]), [(4, 5)])
    fuse(graph_module)
    traced = trace(graph_module, 80, 108, lambda op: "ieee")
    choices = [choose(operation, True) for operation in traced.operations]
    assert [plan.streams for plan in assemble_plans(traced, choices, Codes(), Constants(), (1, 2, 4))] == [1]


def test_branches_into_one_concatenation_run_beside_each_other():
    _, (_, plan), _ = plans_of("branches")
    assert plan.streams >= 3
    allocating = [step for step in plan.steps if isinstance(step.run, TorchStep) and not step.run.out]
    assert allocating
    assert {step.stream for step in allocating} == {0}
    writers = {step.stream for step in plan.steps if isinstance(step.run, KernelStep) and plan.infos[step.info].op == "conv"}
    assert len(writers) >= 3


def test_what_torch_allocated_is_held_until_no_other_stream_reads_it():
    _, (_, plan), load = plans_of("branches")
    last_use = load(plan)._last_use
    dropped = {index: number for number, indices in enumerate(last_use) for index in indices}
    for number, step in enumerate(plan.steps):
        for index in tensors_of(step):
            if plan.tensors[index].place == "torch":
                at = dropped.get(plan.tensors[index].index)
                assert at is None or (plan.steps[at].stream == 0 and at >= number)


def test_the_faster_plan_is_kept_and_remembered(tmp_path, monkeypatch):
    _, plans, _ = plans_of("branches")
    monkeypatch.setattr(choosing, "environment", lambda device: {"gpu": "made to order"})
    asked = []

    def measured(times):
        return lambda *_: asked.append(times) or times

    def choose_with(times, path):
        monkeypatch.setattr(choosing, "measure_plans", measured(times))
        return choosing.choose_streams(plans, [], {}, TimingCache(path), torch.device("cuda", 0))

    faster = choose_with([100.0, 90.0], tmp_path / "a")
    assert (faster.streams, faster.measured) == (plans[1].streams, ((1, 100.0), (plans[1].streams, 90.0)))
    assert choose_with([1.0, 2.0], tmp_path / "a") == faster  # remembered: not asked
    assert len(asked) == 1
    assert choose_with([100.0, 99.5], tmp_path / "b").streams == 1  # less than a hundredth
    assert choosing.choose_streams(plans[:1], [], {}, TimingCache(tmp_path / "c"), torch.device("cuda", 0)) is plans[0]
    assert len(asked) == 2


def test_plans_that_cannot_be_measured_leave_one_stream(tmp_path, monkeypatch):
    _, plans, _ = plans_of("branches")
    monkeypatch.setattr(choosing, "environment", lambda device: {"gpu": "made to order"})

    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(choosing, "measure_plans", fails)
    assert choosing.choose_streams(plans, [], {}, TimingCache(tmp_path / "a"), torch.device("cuda", 0)) is plans[0]
