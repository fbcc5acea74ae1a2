"""The int8 implicit GEMM against the reference, on shapes that divide nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.int8_problems import check_int8, int8_conv_problem, int8_linear_problem

from torchkiln.backends.cuda.costs import bytes_of, flops_of
from torchkiln.backends.cuda.recipe import TensorSpec
from torchkiln.backends.cuda.tactics.int8_conv import Int8Conv

SMALL = {"BM": 16, "BN": 16, "BK": 32, "warps": 4, "stages": 2, "split": 1, "early": False}
HALF, INT8 = torch.float16, torch.int8

CASES = {
    "1x1": int8_conv_problem((2, 40, 5, 7), (24, 40, 1, 1)),
    "1x1 strided, no bias": int8_conv_problem((2, 40, 5, 7), (24, 40, 1, 1), stride=2, bias=None, low=0),
    "3x3 to half": int8_conv_problem((1, 33, 5, 6), (17, 33, 3, 3), HALF, padding=1, activation="silu", bias=HALF),
    "3x3 dilated to fp32": int8_conv_problem((1, 32, 6, 6), (16, 32, 3, 3), torch.float32, padding=2, dilation=2, activation="relu6"),
    "3x3 to bf16": int8_conv_problem((1, 16, 4, 5), (18, 16, 3, 3), torch.bfloat16, stride=2, activation="leaky_relu", alpha=0.1),
    "stem": int8_conv_problem((1, 3, 9, 11), (20, 3, 5, 5), stride=2, padding=2, activation="relu", channels_last=False),
    "int8 residual": int8_conv_problem((2, 24, 4, 5), (33, 24, 1, 1), residual=INT8, activation="relu"),
    "int8 residual to half": int8_conv_problem((1, 24, 4, 5), (33, 24, 1, 1), HALF, residual=INT8),
    "half residual": int8_conv_problem((1, 24, 4, 5), (17, 24, 1, 1), residual=HALF, activation="hardswish"),
    "1-D": int8_conv_problem((2, 20, 17), (12, 20, 5), stride=2, padding=2, activation="sigmoid"),
    "3-D": int8_conv_problem((1, 18, 3, 4, 5), (10, 18, 3, 3, 3), padding=1),
    "3-D padded 1x1": int8_conv_problem((1, 16, 2, 3, 3), (8, 16, 1, 1, 1), padding=1),
    "linear": int8_linear_problem((3, 7, 37), 21, activation="gelu"),
    "linear residual": int8_linear_problem((19, 64), 50, HALF, residual=HALF, bias=None),
}


@pytest.mark.parametrize("name", CASES)
def test_int8_conv(name):
    assert Int8Conv().reject(CASES[name]) == ""
    check_int8(Int8Conv(), CASES[name], SMALL)


@pytest.mark.parametrize("name", ["3x3 to half", "int8 residual", "stem", "linear residual"])
def test_split_k(name):
    one, two = (check_int8(Int8Conv(), CASES[name], {**SMALL, "split": split}) for split in (1, 2))
    assert torch.equal(one, two), "sums of integers do not depend on their order"


def test_residual_early():
    check_int8(Int8Conv(), CASES["int8 residual"], {**SMALL, "early": True})


def test_bounds_of_the_integers_are_kept():
    problem = int8_conv_problem((1, 24, 4, 5), (33, 24, 1, 1), low=-5)
    problem.attributes["high"] = 7
    got = check_bounded(problem)
    assert (int(got.min()), int(got.max())) == (-5, 7)


def check_bounded(problem):
    from tests.backends.cuda.interpret import interpret, make

    from torchkiln.backends.cuda.int8_samples import sample_operands

    generator = torch.Generator().manual_seed(0)
    operands = {f"x{i}": make(spec, generator) for i, spec in enumerate(problem.inputs) if spec is not None}
    sample_operands(f"torchkiln.{problem.op}.default", operands, generator)
    return interpret(Int8Conv().recipe(problem, SMALL), {**operands, "y0": make(problem.outputs[0], generator)})["y0"]


def test_configs_are_best_first_and_more_with_effort():
    problem = int8_conv_problem((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    counts = [len(Int8Conv().configs(problem, level)) for level in range(6)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[5] > 20
    assert Int8Conv().configs(problem, 5)[: counts[2]] == Int8Conv().configs(problem, 2)
    assert {config["BK"] % 32 for config in Int8Conv().configs(problem, 5)} == {0}


def test_every_config_computes_the_same():
    problem = CASES["int8 residual"]
    results = [check_int8(Int8Conv(), problem, config) for config in Int8Conv().configs(problem, 4)[::5]]
    assert len(results) > 3
    assert all(torch.equal(result, results[0]) for result in results)


def test_tiles_fit_the_shared_memory_of_the_gpu():
    problem = int8_conv_problem((8, 512, 28, 28), (512, 512, 3, 3), padding=1, capability=89)
    taken = [(c["BM"] + c["BN"]) * c["BK"] * c["stages"] for c in Int8Conv().configs(problem, 5)]
    assert max(taken) <= 96 << 10
    wide = [(c["BM"] + c["BN"]) * c["BK"] * c["stages"] for c in Int8Conv().configs(replace(problem, capability=90), 5)]
    assert max(wide) > 96 << 10


def test_a_residual_that_lies_like_the_result_shares_its_memory():
    assert Int8Conv().recipe(CASES["int8 residual"], SMALL).in_place == (("x4", "y0"),)
    assert Int8Conv().recipe(CASES["int8 residual to half"], SMALL).in_place == ()
    assert Int8Conv().recipe(CASES["1x1"], SMALL).in_place == ()


def test_rejects():
    tactic, problem = Int8Conv(), CASES["1x1"]
    assert "the weight is computed" in tactic.reject(replace(problem, constants=(False,) * 7))
    x, weight, *rest = problem.inputs
    assert "x is torch.uint8" in tactic.reject(replace(problem, inputs=(replace(x, dtype=torch.uint8), weight, *rest)))
    assert "writes int8" in tactic.reject(replace(problem, outputs=(replace(problem.outputs[0], dtype=torch.float64),)))
    inputs = [*problem.inputs[:3], TensorSpec((24,), (2,), torch.float32), *problem.inputs[4:]]
    assert "a bias whose elements" in tactic.reject(replace(problem, inputs=tuple(inputs)))
    residual = CASES["half residual"]
    inputs = list(residual.inputs)
    inputs[4] = replace(inputs[4], dtype=INT8)
    assert "a residual of torch.int8" in tactic.reject(replace(residual, inputs=tuple(inputs))), "without its scale"
    apart = TensorSpec((2, 2, 2, 2, 2, 32), (4096, 1900, 800, 300, 100, 1), INT8)
    linear = int8_linear_problem((2, 2, 2, 2, 2, 32), 8)
    assert "more than four dimensions" in tactic.reject(replace(linear, inputs=(apart, *linear.inputs[1:])))


def test_costs():
    conv, linear = CASES["1x1"], CASES["linear residual"]
    assert flops_of(conv) == 2 * (2 * 24 * 5 * 7) * 40
    assert flops_of(linear) == 2 * 19 * 64 * 50
    operands = 2 * 40 * 35 + 24 * 40 + 2 * 24 * 35  # one byte each
    assert bytes_of(conv) == operands + 24 * 4 * 2 + 4


COMPILE_CASES = [(Int8Conv(), problem, config) for problem in CASES.values() for config in Int8Conv().configs(problem, 0)]
