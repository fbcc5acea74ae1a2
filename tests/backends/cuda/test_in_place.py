"""Outputs in the memory of inputs: only where a kernel reads what it writes, nothing else reads it, and the numbers stay right."""

from __future__ import annotations

import pytest
import torch
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.run_plan import build_plan, run
from torch import nn

from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.plan import KernelStep
from torchkiln.backends.cuda.specialize import specialize


class Chain(nn.Module):
    """Sorts keep pointwise operators apart; the kernels between may write over what they read."""

    def forward(self, x):
        y = torch.relu(x * 2)
        z = y.roll(1, 0) + 1
        return (z.roll(1, 1) * z.roll(2, 1)).roll(1, 0) + 3


def planned(module, shape):
    graph_module = specialize(lowered(module, [shape]), [shape])
    fuse(graph_module)
    return build_plan(graph_module)


def in_place_steps(plan):
    """The operators of the steps whose output lies where an input does."""
    found = []
    for step in plan.steps:
        if isinstance(step.run, KernelStep):
            *inputs, output = [(plan.tensors[i].place, plan.tensors[i].offset) for i in step.run.operands]
            if output in inputs and output[0] == "arena":
                found.append(plan.infos[step.info].op)
    return found


def right(module, loaded, shape):
    x = torch.randn(shape)
    for got, expected in zip(run(loaded, [x]), torch.utils._pytree.tree_leaves(module(x)), strict=True):
        torch.testing.assert_close(got, expected)


def test_pointwise_kernels_write_over_what_dies():
    module = Chain()
    plan, loaded, _ = planned(module, (5, 300))
    assert in_place_steps(plan) == ["add", "mul"]
    right(module, loaded, (5, 300))


class ReadLater(nn.Module):
    """What the kernel reads is read again afterwards."""

    def forward(self, x):
        y = x.roll(1, 0)
        z = y + 1
        return z.roll(1, 1).roll(1, 0), y.roll(2, 0)


class Twice(nn.Module):
    """What the kernel reads it reads transposed as well."""

    def forward(self, x):
        y = x.roll(1, 0)
        return (y + y.transpose(0, 1)).roll(1, 0)


class Broadcast(nn.Module):
    """A row is added to itself, once for each row of the result."""

    def forward(self, x):
        y = x[:1].roll(1, 1)
        return (y + x).roll(1, 0)


class Wider(nn.Module):
    def forward(self, x):
        return (x.roll(1, 0).double() + 1).roll(1, 0)


@pytest.mark.parametrize("make", [ReadLater, Twice, Broadcast, Wider])
def test_not_where_it_would_be_read_after(make):
    module = make()
    plan, loaded, _ = planned(module, (40, 40))
    assert in_place_steps(plan) == []
    right(module, loaded, (40, 40))
