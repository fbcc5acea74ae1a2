"""Casts that the operation before them writes, and outputs that are written where they are: in whole plans, and what every tactic makes of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.interpret import check
from tests.backends.cuda.problems import conv_problem, linear_problem
from tests.backends.cuda.run_plan import build_plan, run
from torch import nn

from torchkiln.backends.cuda.passes.pipeline import fuse
from torchkiln.backends.cuda.recipe import TensorSpec
from torchkiln.backends.cuda.specialize import specialize
from torchkiln.backends.cuda.tactics.registry import tactics_of

HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16


class Function(nn.Module):
    """``f(x, **layers)``."""

    def __init__(self, f, **layers):
        super().__init__()
        self.f, self.layers = f, nn.ModuleDict(layers)

    def forward(self, x):
        return self.f(x, **self.layers)


def check_plan(module, shape, precision=HALF):
    """The operations of the module's plan, whose numbers are right with torchkiln's kernels and with torch's operators; in the former's order."""
    before = lowered(module, [shape], precision)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = before(x)
    for tactics in (False, True):
        graph_module = specialize(copy.deepcopy(before), [shape])
        fuse(graph_module)
        _, loaded, operations = build_plan(graph_module, tactics=tactics)
        for got, right in zip(run(loaded, [x]), expected, strict=True):
            assert (got.shape, got.dtype, got.is_contiguous()) == (right.shape, right.dtype, True)
            assert (got.double() - right.double()).norm() <= (3e-3 if precision else 1e-5) * right.double().norm()
    return operations


def names(operations):
    """The operators in order, pointwise ones by what they do."""
    return [o.problem.attributes["does"] if o.region is not None else o.problem.op.removeprefix("aten.").partition(".")[0] for o in operations]


def test_a_linear_layer_writes_the_output_in_float32():
    operations = check_plan(Function(lambda x, a: a(x), a=nn.Linear(19, 13)), (5, 19))
    assert names(operations) == ["cast", "linear"]
    (output,) = operations[-1].problem.outputs
    assert (output.dtype, operations[-1].problem.inputs[0].dtype) == (FLOAT, HALF)
    narrow, cast = operations[-1].reference.launches
    assert operations[-1].reference.scratch == {"narrow": replace(output, dtype=HALF)}
    assert (narrow.results, cast.op, cast.kwargs) == (("scratch.narrow",), "aten._to_copy.default", (("dtype", FLOAT),))
    assert "_to_copy" in operations[-1].label


def test_a_sequence_of_rows():
    operations = check_plan(Function(lambda x, a: a(x), a=nn.Linear(19, 13)), (2, 5, 19))
    assert names(operations) == ["cast", "linear"]
    assert operations[-1].outputs[0].spec.shape == (10, 13)


def test_several_readers_of_the_cast():
    """Two that compute in float32 read what the layer writes for both."""
    operations = check_plan(Function(lambda x, a: ((y := a(x)).logsumexp(1), y.logsumexp(0)), a=nn.Linear(8, 6)), (5, 8))
    assert names(operations)[:4] == ["cast", "linear", "logsumexp", "logsumexp"]
    assert operations[1].outputs[0].spec.dtype == FLOAT


def test_not_what_others_read():
    operations = check_plan(Function(lambda x, a: ((y := a(x)), y.roll(1, 0)), a=nn.Linear(19, 13)), (5, 19))
    assert [o.problem.outputs[0].dtype for o in operations if o.problem.op == "linear"] == [HALF]


def test_not_a_cast_that_does_more():
    """A cast in a region with others costs nothing there."""
    operations = check_plan(Function(lambda x, a: a(x).float() * 3 + 1, a=nn.Linear(19, 13)), (5, 19))
    (linear,) = [o for o in operations if o.problem.op == "linear"]
    assert linear.problem.outputs[0].dtype == HALF


def test_float32_stays_as_it_is():
    operations = check_plan(Function(lambda x, a: a(x), a=nn.Linear(19, 13)), (5, 19), None)
    assert names(operations) == ["linear"]
    assert len(operations[0].reference.launches) == 1


def test_a_resize_writes_the_output_as_it_is():
    """Cast and layout: one operation is left of three."""
    for precision in (HALF, None):
        module = Function(lambda x, a: F.interpolate(a(x), size=(11, 18), mode="bilinear"), a=nn.Conv2d(4, 5, 1))
        operations = check_plan(module, (2, 4, 5, 6), precision)
        assert names(operations)[-2:] == ["conv", "upsample_bilinear2d"]
        assert (operations[-1].problem.outputs[0], operations[-1].problem.inputs[0].strides[1]) == (TensorSpec.contiguous((2, 5, 11, 18), FLOAT), 1)


def test_a_resize_that_is_read_stays_channels_last():
    module = Function(lambda x, a, b: (y := F.interpolate(a(x), scale_factor=2.0), b(y)), a=nn.Conv2d(4, 5, 1), b=nn.Conv2d(5, 3, 3))
    operations = check_plan(module, (2, 4, 5, 6))
    (resize,) = [o for o in operations if "upsample" in o.problem.op]
    assert (resize.problem.outputs[0].is_channels_last, resize.problem.outputs[0].dtype) == (True, HALF)


@pytest.mark.parametrize("precision", [HALF, None])
def test_a_pointwise_operation_writes_the_output_as_it_is(precision):
    """What reads channels last and is an output is contiguous without a copy; what others read as well keeps their layout."""
    module = Function(lambda x, a: torch.exp(a(x)) * 2, a=nn.Conv2d(4, 5, 3))
    operations = check_plan(module, (2, 4, 9, 8), precision)
    assert "copy" not in names(operations)
    assert (operations[-1].inputs[0].spec.is_channels_last, operations[-1].outputs[0].spec.is_contiguous) == (True, True)
    shared = Function(lambda x, a, b: (y := torch.exp(a(x)) * 2, b(y)), a=nn.Conv2d(4, 5, 3), b=nn.Conv2d(5, 3, 3))
    operations = check_plan(shared, (2, 4, 9, 8), None)
    (does,) = [o for o in operations if o.region is not None and "exp" in o.problem.attributes["does"]]
    assert does.problem.outputs[0].is_channels_last


def test_a_region_of_two_outputs():
    """One an output of the graph, one read by a convolution: each in its layout."""
    module = Function(lambda x, a, b: ((y := torch.exp(a(x))) + 1, b(y)), a=nn.Conv2d(4, 5, 3), b=nn.Conv2d(5, 3, 3))
    operations = check_plan(module, (2, 4, 9, 8), None)
    (region,) = [o for o in operations if o.region is not None and len(o.outputs) == 2]
    assert {(o.is_contiguous, o.is_channels_last) for o in region.problem.outputs} == {(True, False), (False, True)}


def test_a_convolution_leaves_its_cast_to_the_copy_of_the_output():
    """That copy casts as it goes, and reads the narrow result."""
    operations = check_plan(Function(lambda x, a: a(x), a=nn.Conv2d(4, 5, 3)), (2, 4, 9, 8))
    assert names(operations)[-2:] == ["conv", "cast"]
    assert [o.problem.outputs[0].dtype for o in operations[-2:]] == [HALF, FLOAT]
    assert operations[-1].outputs[0].spec.is_contiguous


def test_a_convolution_to_one_position_writes_it():
    operations = check_plan(Function(lambda x, a: a(x), a=nn.Conv2d(4, 5, (9, 8))), (2, 4, 9, 8))
    assert names(operations)[-1] == "conv"
    assert operations[-1].problem.outputs[0].dtype == FLOAT


def test_into_a_concatenation():
    """The cast is a part of one: the operation writes it there."""
    module = Function(lambda x, a, b: torch.cat([a(x).float(), F.interpolate(b(x), (9, 8)).float()], 1), a=nn.Conv2d(4, 8, 1), b=nn.Conv2d(4, 4, 3))
    shape = (2, 4, 9, 8)
    before = lowered(module, [shape], HALF)
    graph = before.graph
    # The conversion moves casts behind the concatenation: put them back in front of it.
    (cat,) = graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)
    (cast,) = cat.users
    parts = []
    for part in cat.args[0]:
        with graph.inserting_before(cat):
            wide = graph.call_function(torch.ops.aten._to_copy.default, (part,), {"dtype": FLOAT})
        wide.meta["val"] = part.meta["val"].float()
        parts.append(wide)
    cat.args = (parts, *cat.args[1:])
    cat.meta["val"] = cat.meta["val"].float()
    cast.replace_all_uses_with(cat)
    graph.erase_node(cast)
    before.recompile()
    graph_module = specialize(copy.deepcopy(before), [shape])
    fuse(graph_module)
    _, loaded, operations = build_plan(graph_module)
    wide = [o for o in operations if o.problem.outputs[0].dtype == FLOAT and o.region is None]
    assert [o.problem.op for o in wide] == ["conv", "aten.upsample_nearest2d.vec"]
    assert wide[0].outputs[0].storage is wide[1].outputs[0].storage
    x = torch.randn(shape)
    with torch.no_grad():
        (expected,) = before(x)
    (got,) = run(loaded, [x])
    assert (got - expected).norm() <= 3e-3 * expected.norm()


PROBLEMS = {
    "linear": linear_problem((5, 24), 13),
    "linear with all": linear_problem((2, 5, 24), 16, activation="gelu", residual=True),
    "linear in rows of memory": replace(linear_problem((70, 64), 48, activation="relu"), multiprocessors=2),
    "conv 1x1": conv_problem((2, 24, 5, 6), (16, 24, 1, 1), activation="relu", residual=True),
    "conv 3x3": conv_problem((1, 8, 7, 9), (5, 8, 3, 3), padding=1, bias=False),
    "first conv": conv_problem((1, 3, 9, 11), (8, 3, 3, 3), stride=2, padding=1, activation="silu"),
    "depthwise": conv_problem((1, 16, 7, 6), (16, 1, 3, 3), padding=1, groups=16),
    "transposed": conv_problem((1, 8, 4, 5), (8, 6, 2, 2), stride=2, transposed=True),
    "volume": conv_problem((1, 4, 5, 4, 6), (3, 4, 3, 3, 3), padding=1),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_tactic_writes_a_wider_dtype(name):
    """Each takes it, and is right; cuDNN's only where torch on the CPU gives the same layout."""
    problem = PROBLEMS[name]
    wide = replace(problem, outputs=(replace(problem.outputs[0], dtype=FLOAT),))
    taken = set()
    for tactic in tactics_of(problem.op):
        if not tactic.reject(problem):
            assert tactic.reject(wide) == "", tactic.name
        if tactic.reject(wide) or (tactic.name == "cudnn" and name in ("transposed", "volume")):
            continue
        for config in tactic.configs(wide, 0):
            check(tactic, wide, config, 2e-3)
            taken.add(tactic.name)
    assert taken
