"""The implicit GEMM against the reference, on shapes that divide nothing.

Not in bf16: Triton's interpreter multiplies its bit patterns. The tests that run on a GPU do.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.interpret import check
from tests.backends.cuda.problems import conv_problem, linear_problem

from torchkiln.backends.cuda.recipe import TensorSpec
from torchkiln.backends.cuda.tactics.conv_gemm import ConvGemm

SMALL = {"BM": 16, "BN": 16, "BK": 32, "warps": 4, "stages": 2, "split": 1, "early": False}
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}

CASES = {
    "1x1": conv_problem((2, 40, 5, 7), (24, 40, 1, 1)),
    "1x1 strided": conv_problem((2, 40, 5, 7), (24, 40, 1, 1), stride=2, activation="relu"),
    "3x3": conv_problem((1, 33, 9, 6), (17, 33, 3, 3), padding=1, activation="silu"),
    "3x3 dilated": conv_problem((1, 32, 9, 9), (16, 32, 3, 3), padding=2, dilation=2, activation="relu6"),
    "3x3 gelu": conv_problem((1, 32, 9, 6), (16, 32, 3, 3), padding=1, activation="gelu"),
    "3x3 fp32": conv_problem((1, 20, 5, 6), (16, 20, 3, 3), torch.float32, padding=1, activation="gelu_tanh"),
    "stem": conv_problem((2, 3, 11, 13), (20, 3, 7, 7), stride=2, padding=3, activation="relu", channels_last=False),
    "stem casts": conv_problem((1, 3, 11, 13), (20, 3, 3, 3), stride=2, padding=1, channels_last=False, x_dtype=torch.float32),
    "no bias": conv_problem((1, 16, 4, 5), (16, 16, 3, 3), padding=1, bias=False, activation="leaky_relu", alpha=0.1),
    "residual": conv_problem((2, 24, 4, 5), (33, 24, 1, 1), residual=True, activation="relu"),
    "scale": conv_problem((3, 40, 4, 5), (33, 40, 1, 1), scale=True, residual=True),
    "scale one": conv_problem((1, 40, 4, 5), (33, 40, 1, 1), scale=True),
    "grouped": conv_problem((1, 48, 5, 5), (36, 16, 3, 3), padding=1, groups=3, activation="hardswish"),
    "1-D": conv_problem((2, 20, 17), (12, 20, 5), stride=2, padding=2, activation="sigmoid"),
    "3-D": conv_problem((1, 18, 4, 5, 6), (10, 18, 3, 3, 3), padding=1, activation="leaky_relu", alpha=0.01),
    "3-D stem": conv_problem((1, 1, 4, 6, 6), (10, 1, 2, 2, 2), stride=2),
    "3-D padded 1x1": conv_problem((1, 16, 3, 3, 3), (8, 16, 1, 1, 1), padding=1),
    "linear": linear_problem((3, 7, 37), 21, activation="gelu"),
    "linear residual": linear_problem((19, 64), 50, residual=True, bias=False),
}


@pytest.mark.parametrize("name", CASES)
def test_conv_gemm(name):
    problem = CASES[name]
    tactic = ConvGemm()
    assert tactic.reject(problem) == ""
    check(tactic, problem, SMALL, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize("split", [2, 3])
@pytest.mark.parametrize("name", ["3x3", "residual", "linear residual", "grouped", "stem"])
def test_split_k(name, split):
    check(ConvGemm(), CASES[name], {**SMALL, "split": split}, TOLERANCE[torch.float16])


def test_residual_early():
    check(ConvGemm(), CASES["residual"], {**SMALL, "early": True}, TOLERANCE[torch.float16])


def test_configs_are_best_first_and_more_with_effort():
    problem = conv_problem((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    counts = [len(ConvGemm().configs(problem, level)) for level in range(6)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[5] > 20
    assert ConvGemm().configs(problem, 5)[: counts[2]] == ConvGemm().configs(problem, 2)


@pytest.mark.parametrize("name", CASES)
def test_every_config_computes_the_same(name):
    problem = CASES[name]
    for config in ConvGemm().configs(problem, 2)[::3]:
        check(ConvGemm(), problem, config, TOLERANCE[problem.outputs[0].dtype])


def test_rejects():
    tactic = ConvGemm()
    assert "depthwise" in tactic.reject(conv_problem((1, 8, 5, 5), (8, 1, 3, 3), groups=8))
    assert "transposed" in tactic.reject(conv_problem((1, 8, 5, 5), (8, 8, 2, 2), transposed=True))
    assert "1x1" in tactic.reject(conv_problem((1, 8, 5, 5), (8, 8, 3, 3), scale=True))
    problem = linear_problem((8, 32), 16)
    bias = TensorSpec((16,), (2,), torch.float16)
    assert "a bias whose" in tactic.reject(replace(problem, inputs=(*problem.inputs[:2], bias, *problem.inputs[3:])))


COMPILE_CASES = [(ConvGemm(), problem, config) for problem in CASES.values() for config in ConvGemm().configs(problem, 0)]
