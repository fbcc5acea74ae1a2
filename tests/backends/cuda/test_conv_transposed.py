"""Transposed convolutions against the reference, on shapes that divide nothing.

Not in bf16: Triton's interpreter multiplies its bit patterns.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.interpret import check
from tests.backends.cuda.problems import conv_problem

from torchkiln.backends.cuda.recipe import Problem, TensorSpec
from torchkiln.backends.cuda.tactics.conv_transposed import ConvTransposed

SMALL = {"BM": 16, "BN": 32, "BK": 32, "warps": 4, "stages": 2}
TOLERANCE = {torch.float16: 2e-3, torch.float32: 1e-5}


def transposed(*args, **options) -> Problem:
    return conv_problem(*args, transposed=True, **options)


CASES = {
    "2x2": transposed((2, 40, 5, 7), (40, 24, 2, 2), stride=2),
    "2x2 odd channels": transposed((1, 33, 5, 3), (33, 11, 2, 2), stride=2, activation="relu"),
    "3x3 stride 3": transposed((1, 16, 3, 4), (16, 20, 3, 3), stride=3, activation="silu"),
    "3-D": transposed((1, 20, 2, 3, 4), (20, 10, 2, 2, 2), stride=2, activation="leaky_relu", alpha=0.01),
    "1-D": transposed((2, 20, 9), (20, 12, 2), stride=2, activation="gelu"),
    "residual": transposed((2, 24, 4, 5), (24, 16, 2, 2), stride=2, residual=True, activation="relu"),
    "no bias": transposed((2, 24, 4, 5), (24, 16, 2, 2), stride=2, bias=False),
    "channels outermost": transposed((2, 24, 4, 5), (24, 16, 2, 2), stride=2, channels_last=False, residual=True),
    "fp32": transposed((1, 20, 4, 5), (20, 9, 2, 2), torch.float32, stride=2, activation="tanh"),
    "4x4 stride 2": transposed((2, 20, 5, 4), (20, 12, 4, 4), stride=2, padding=1, activation="relu"),
    "3x3 stride 2": transposed((1, 20, 5, 4), (20, 12, 3, 3), stride=2, padding=1, output_padding=1, residual=True),
    "2x2 stride 3": transposed((1, 20, 5, 4), (20, 12, 2, 2), stride=3, output_padding=2),
    "5x5 stride 1": transposed((1, 20, 5, 4), (20, 12, 5, 5), padding=1),
    "3x3 dilated": transposed((1, 20, 5, 4), (20, 12, 3, 3), padding=1, dilation=2),
    "2x2 cropped": transposed((1, 20, 5, 4), (20, 12, 2, 2), stride=2, padding=1),
    "3-D 4x4x4": transposed((1, 10, 3, 2, 3), (10, 6, 4, 4, 4), stride=2, padding=1),
    "1-D long": transposed((2, 20, 9), (20, 12, 16), stride=8, padding=4),
    "grouped": transposed((1, 48, 3, 5), (48, 6, 2, 2), stride=2, groups=3),
    "depthwise": transposed((1, 6, 3, 5), (6, 1, 4, 4), stride=2, padding=1, groups=6),
}


@pytest.mark.parametrize("name", CASES)
def test_conv_transposed(name):
    problem = CASES[name]
    tactic = ConvTransposed()
    assert tactic.reject(problem) == ""
    check(tactic, problem, SMALL, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize("name", CASES)
def test_configs_compute_the_same(name):
    problem = CASES[name]
    for config in ConvTransposed().configs(problem, 3)[::7]:
        check(ConvTransposed(), problem, config, TOLERANCE[problem.outputs[0].dtype])


def test_strides_of_the_output_are_kept():
    """The output as the first channels of a wider tensor, as a concatenation that is not copied has it."""
    problem = CASES["2x2"]
    y = problem.outputs[0]
    wide = TensorSpec(y.shape, tuple(s if d == 1 else 2 * s for d, s in enumerate(y.strides)), y.dtype)
    check(ConvTransposed(), replace(problem, outputs=(wide,)), SMALL, TOLERANCE[torch.float16])


def test_configs_are_best_first_and_recipes_can_be_sent():
    problem = transposed((1, 512, 16, 16), (512, 256, 2, 2), stride=2)
    counts = [len(ConvTransposed().configs(problem, level)) for level in range(6)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[5] > 20
    for config in ConvTransposed().configs(problem, 5):
        pickle.dumps(ConvTransposed().recipe(problem, config))


def test_rejects():
    tactic = ConvTransposed()
    assert "not a transposed" in tactic.reject(conv_problem((1, 8, 5, 5), (8, 8, 2, 2)))
    assert "dilated" in tactic.reject(transposed((1, 8, 5, 5), (8, 8, 2, 2), stride=2, dilation=2))
    assert "scale" in tactic.reject(transposed((1, 8, 5, 5), (8, 8, 2, 2), stride=2, scale=True))
    assert "computed" in tactic.reject(replace(CASES["2x2"], constants=(False,) * 5))


LARGE = [
    transposed((1, 1024, 16, 16), (1024, 512, 2, 2), stride=2),
    transposed((8, 128, 128, 128), (128, 64, 2, 2), stride=2),
    transposed((1, 768, 3, 3, 3), (768, 384, 2, 2, 2), stride=2),
    transposed((1, 48, 48, 48, 48), (48, 48, 2, 2, 2), stride=2),
    transposed((8, 256, 32, 32), (256, 128, 4, 4), stride=2, padding=1),
]
COMPILE_CASES = [
    (ConvTransposed(), replace(problem, capability=90), config)
    for problem in [*LARGE, *CASES.values()]
    if problem.outputs[0].dtype == torch.float16
    for config in ConvTransposed().configs(problem, 0)
]
