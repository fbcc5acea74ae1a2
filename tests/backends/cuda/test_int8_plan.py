"""Quantized graphs as whole plans on the CPU, pairs that no layer takes in, and how int8 is measured and reported."""

from __future__ import annotations

import pytest
import torch
from tests.backends.cuda.int8_models import Bottlenecks, Joined, error, fused, graph_of, int8_weight, pair, quantized, weight
from tests.backends.cuda.int8_problems import int8_conv_problem, int8_linear_problem, reference
from tests.backends.cuda.interpret import interpret
from tests.backends.cuda.problems import nhwc
from tests.backends.cuda.run_plan import build_plan, run

from torchkiln.backends.cuda.count_int8 import count_int8, int8_rejects
from torchkiln.backends.cuda.int8_samples import sample_operands
from torchkiln.backends.cuda.measure import Job, _most_rounded, differing_integers
from torchkiln.backends.cuda.plan import StepInfo
from torchkiln.backends.cuda.recipe import Problem, Recipe, Ref, TensorSpec, TorchCall
from torchkiln.backends.cuda.step_table import arithmetic_of
from torchkiln.backends.cuda.tactics.norms import LayerNorm
from torchkiln.backends.cuda.tactics.pools import Pool
from torchkiln.backends.cuda.tactics.registry import TORCH

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def compare(before, x, tolerance, *, tactics=True):
    """The plan of ``before`` against it. Returns the plan and its operations."""
    plan, loaded, operations = build_plan(fused(before), tactics=tactics)
    with torch.no_grad():
        expected = before(x)
    for got, right in zip(run(loaded, [x]), expected, strict=True):
        assert (got.shape, got.dtype, got.is_contiguous()) == (right.shape, right.dtype, True)
        assert error(got, right) <= tolerance
    return plan, operations


@pytest.mark.parametrize("precision", [None, torch.float16])
def test_a_network_stays_in_8_bits(precision):
    before = quantized(Bottlenecks, (2, 3, 13, 11), precision)
    plan, operations = compare(before, torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(5)), 1e-6 if precision is None else 2e-2)
    assert TORCH not in {info.tactic for info in plan.infos}
    layers = [operation for operation in operations if operation.problem.op == "int8_conv"]
    assert [op.problem.outputs[0].dtype for op in layers].count(torch.int8) == 6
    assert all(op.problem.outputs[0].is_channels_last for op in layers)
    assert count_int8(plan) == (9, 9)
    assert {tensor.spec.dtype for tensor in plan.tensors if tensor.place == "arena"} >= {torch.int8}


def test_parts_of_a_concatenation_are_written_in_place():
    before = quantized(Joined, (1, 16, 5, 4))
    x = torch.randn(1, 16, 5, 4, generator=torch.Generator().manual_seed(5))
    plan, operations = compare(before, x, 1e-6)
    assert count_int8(plan) == (4, 5)
    (cat_part,) = [op for op in operations if op.problem.op == "int8_conv" and not op.outputs[0].spec.is_channels_last]
    assert cat_part.outputs[0].storage.span == 2 * cat_part.outputs[0].spec.numel
    assert cat_part.outputs[0].spec.dtype is torch.int8
    compare(before, x, 1e-6, tactics=False)


@pytest.mark.parametrize(("dtype", "zero_point"), [(torch.int8, 0), (torch.int8, -11), (torch.uint8, 0), (torch.uint8, 130)])
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_pairs_that_are_left_are_pointwise(dtype, zero_point, precision):
    def write(graph, x):
        low = graph.call_function(aten._to_copy.default, (x,), {"dtype": precision})
        y = graph.call_function(aten.mul.Tensor, (low, 0.5))
        value = pair(graph, y, 0.0173, zero_point, dtype, out_dtype=precision)
        return graph.call_function(aten.add.Tensor, (value, low))

    before = graph_of(write, (3, 5, 33))
    # Halves between two integers, and values out of bounds.
    x = torch.cat([torch.randn(2, 5, 33) * 2, (torch.arange(165).reshape(1, 5, 33) - 80) * 0.0173])
    plan, _ = compare(before, x, 1e-6 if precision is torch.float32 else 2e-3)
    assert {info.tactic for info in plan.infos} == {"pointwise"}


def test_rounding_is_that_of_quantize_per_tensor():
    def write(graph, x):
        return pair(graph, x, 0.125)

    before = graph_of(write, (400,))
    x = (torch.arange(400) - 200) * 0.0625  # every other one lies between two integers
    _, loaded, _ = build_plan(fused(before))
    assert torch.equal(run(loaded, [x])[0], before(x)[0])


@pytest.mark.parametrize("rank", [2, 3])
def test_int8_max_pool(rank):
    spatial = (7, 9, 6)[:rank]
    x = nhwc((2, 5, *spatial), torch.int8)
    attributes = {"kernel_size": [3, 2, 2][:rank], "stride": [2] * rank, "padding": [1] * rank, "dilation": [1] * rank, "ceil_mode": True}
    values = torch.empty_strided(x.shape, x.strides, dtype=torch.int8)
    values.copy_(torch.randint(-128, -20, x.shape, generator=torch.Generator().manual_seed(0)))  # so that padding is seen
    right = torch.ops.torchkiln.int8_max_pool.default(values, *attributes.values())
    problem = Problem("int8_max_pool", (x,), (nhwc(tuple(right.shape), torch.int8),), attributes, (False,))
    assert Pool().reject(problem) == ""
    problem = Problem(problem.op, problem.inputs, problem.outputs, attributes, (False,), capability=80)
    y = torch.empty_strided(problem.outputs[0].shape, problem.outputs[0].strides, dtype=torch.int8).fill_(77)
    assert torch.equal(interpret(Pool().recipe(problem, Pool().configs(problem, 0)[0]), {"x0": values, "y0": y})["y0"], right)
    half = Problem("int8_max_pool", (nhwc((2, 5, *spatial), torch.float16),), problem.outputs, attributes, (False,))
    assert "float16" in Pool().reject(half)


@pytest.mark.parametrize("both", [False, True])
def test_int8_layer_norm(both):
    x = torch.randn(7, 3, 33, generator=torch.Generator().manual_seed(0)).half().transpose(0, 1)
    vector, one = TensorSpec.contiguous((33,), torch.float32), TensorSpec.contiguous((), torch.float32)
    spec = TensorSpec.of(x)
    outputs = (TensorSpec(spec.shape, spec.strides, torch.int8), spec)[: 1 + both]
    attributes = {"normalized_shape": [33], "eps": 1e-5, "low": -100, "high": 90}
    op = "int8_layer_norm_both" if both else "int8_layer_norm"
    problem = Problem(op, (spec, vector, vector, one), outputs, attributes, (False, True, True, True), capability=80)
    operands = {"x0": x, "x1": torch.rand(33) + 1, "x2": torch.randn(33), "x3": torch.tensor(40.0)}
    made = {f"y{i}": torch.empty_strided(s.shape, s.strides, dtype=s.dtype).fill_(77) for i, s in enumerate(outputs)}
    assert LayerNorm().reject(problem) == ""
    held = interpret(LayerNorm().recipe(problem, LayerNorm().configs(problem, 0)[0]), {**operands, **made})
    arguments = (x, [33], operands["x1"], operands["x2"], 1e-5, operands["x3"], -100, 90)
    right = torch.ops.torchkiln.int8_layer_norm_both(*arguments, torch.float16)
    assert differing_integers(held["y0"], right[0], 0.002) == ""
    assert (int(held["y0"].min()), int(held["y0"].max())) == (-100, 90)
    if both:
        assert error(held["y1"], right[1]) < 1e-3
        apart = Problem(op, problem.inputs, (outputs[0], TensorSpec.contiguous(spec.shape, torch.float16)), attributes, problem.constants)
        assert "do not lie alike" in LayerNorm().reject(apart)


def test_a_layer_norm_with_two_readers_is_one_step():
    def write(graph, x):
        normed = graph.call_function(aten.layer_norm.default, (x, [32], graph.get_attr("gamma"), graph.get_attr("beta"), 1e-5))
        y = graph.call_function(aten.linear.default, (pair(graph, normed, 0.03), weight(graph)))
        return graph.call_function(aten.add.Tensor, (y, normed))

    before = graph_of(write, (2, 5, 32), gamma=torch.rand(32), beta=torch.randn(32), **int8_weight(32, 32))
    plan, _ = compare(before, torch.randn(2, 5, 32), 1e-6)
    assert [info.op for info in plan.infos] == ["int8_layer_norm_both", "int8_linear"]


def test_references_are_exact():
    generator = torch.Generator().manual_seed(3)
    problem = int8_linear_problem((7, 5000), 3, torch.float32, bias=None)
    x, w = (torch.randint(-128, 128, spec.shape, generator=generator, dtype=torch.int8) for spec in problem.inputs[:2])
    got = reference(problem, [x, w, torch.ones(3), None, None, None, None])
    assert torch.equal(got, (x.long() @ w.long().T).float())


def test_random_operands_have_results_that_are_not_clipped():
    generator = torch.Generator().manual_seed(0)
    for problem in (int8_conv_problem((1, 64, 6, 6), (32, 64, 3, 3), residual=torch.int8), int8_linear_problem((64, 96), 32, activation="sigmoid")):
        operands = {f"x{i}": torch.randn(spec.shape, generator=generator).to(spec.dtype) for i, spec in enumerate(problem.inputs) if spec is not None}
        sample_operands(f"torchkiln.{problem.op}.default", operands, generator)
        result = reference(problem, [operands.get(f"x{i}") for i in range(7)])
        assert (result.abs() == 127).float().mean() < 0.2
        assert len(result.unique()) > 30


def test_a_wrong_integer_is_found_and_a_rounding_is_not():
    right = torch.randint(-100, 100, (1000,), dtype=torch.int8)
    assert differing_integers(right.clone(), right, 0.0) == ""
    near = right.clone()
    near[:5] += 1
    assert differing_integers(near, right, 0.01) == ""
    assert "0.005 of its values" in differing_integers(near, right, 0.001)
    near[0] += 1
    assert "2 integers away" in differing_integers(near, right, 0.5)
    extremes = torch.tensor([-128, 127], dtype=torch.int8)
    assert "255 integers away" in differing_integers(extremes, extremes.flip(0), 1.0)


def test_how_many_may_be_rounded_otherwise():
    specs = [TensorSpec.contiguous((4,), dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int8)]

    def job(x, op):
        return Job((x,), (specs[3],), "ieee", Recipe((TorchCall(op, (Ref("x0"),)),)), (), {})

    shares = [_most_rounded(job(x, "torchkiln.quantize.default")) for x in specs]
    assert shares[1] > shares[0] > shares[2] == shares[3] > 0
    assert _most_rounded(job(specs[1], "torchkiln.int8_conv.default")) == shares[2], "all before is float32"
    exact = ("torchkiln.int8_max_pool.default", "aten.clone.default", "aten._to_copy.default")
    assert [_most_rounded(job(specs[3], op)) for op in exact] == [0.0] * 3, "nothing is rounded"


def test_int8_is_an_arithmetic_of_its_own():
    def info(op, flops):
        return StepInfo(op, op, "int8_conv", {}, (8,), "float16", 1, flops, None)

    assert [arithmetic_of(i) for i in (info("int8_conv", 5), info("int8_linear", 5), info("int8_max_pool", 0), info("conv", 5))] == [
        "int8",
        "int8",
        "float16",
        "float16",
    ]


def test_the_report_s_rejects():
    assert int8_rejects([("conv", "not in int8: a convolution in 2 groups"), ("add", "it broadcasts")]) == ["conv: a convolution in 2 groups"]


def test_a_weight_that_two_layers_share_is_kept_once():
    def write(graph, x):
        first = graph.call_function(aten.linear.default, (pair(graph, x, 0.02), weight(graph)))
        return graph.call_function(aten.linear.default, (pair(graph, first, 0.3), weight(graph)))

    plan, _, _ = build_plan(fused(graph_of(write, (5, 32), **int8_weight(32, 32))))
    assert len([name for name in plan.constants if "packed" in name]) == 1
