"""The int8 matrix product with tensor descriptors against the reference, on shapes that divide nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.int8_problems import check_int8, int8_conv_problem, int8_linear_problem

from torchkiln.backends.cuda.recipe import TensorSpec
from torchkiln.backends.cuda.tactics.int8_gemm_tma import Int8GemmTma

SMALL = {"BM": 32, "BN": 32, "BK": 32, "warps": 4, "stages": 2, "flatten": True, "programs": 1, "residual": "none"}
LATE, EARLY = {**SMALL, "residual": "late"}, {**SMALL, "residual": "early"}
HALF, INT8 = torch.float16, torch.int8


def hopper(problem):
    """On three multiprocessors, so that a program has several tiles."""
    return replace(problem, capability=90, multiprocessors=3)


CASES = {
    "linear": (int8_linear_problem((3, 37, 48), 80), SMALL),
    "one row": (int8_linear_problem((1, 32), 48, bias=None), SMALL),
    "to half": (int8_linear_problem((50, 80), 136, HALF, activation="gelu", bias=HALF), {**SMALL, "flatten": False}),
    "to fp32": (int8_linear_problem((33, 48), 24, torch.float32, activation="relu"), SMALL),
    "1x1": (int8_conv_problem((2, 48, 5, 7), (32, 48, 1, 1), activation="silu"), SMALL),
    "1x1 int8 residual": (int8_conv_problem((2, 32, 7, 9), (48, 32, 1, 1), residual=INT8, activation="relu"), LATE),
    "1x1 half residual": (int8_conv_problem((1, 32, 7, 9), (48, 32, 1, 1), HALF, residual=HALF), EARLY),
    "3-D": (int8_conv_problem((1, 16, 3, 4, 5), (16, 16, 1, 1, 1)), SMALL),
}


@pytest.mark.parametrize("name", CASES)
def test_int8_gemm_tma(name):
    problem, config = CASES[name]
    assert Int8GemmTma().reject(hopper(problem)) == ""
    check_int8(Int8GemmTma(), replace(hopper(problem), capability=80), config)  # the interpreter cannot follow programmatic launch


def test_rejects():
    tactic, problem = Int8GemmTma(), hopper(int8_linear_problem((37, 48), 80))
    assert "compute capability 9.0" in tactic.reject(replace(problem, capability=89))
    assert "the weight is computed" in tactic.reject(replace(problem, constants=(False,) * 7))
    assert "1x1" in tactic.reject(hopper(int8_conv_problem((1, 32, 5, 5), (32, 32, 3, 3))))
    assert "1x1" in tactic.reject(hopper(int8_conv_problem((1, 32, 5, 5), (32, 32, 1, 1), stride=2)))
    assert "40 bytes apart" in tactic.reject(hopper(int8_linear_problem((37, 40), 80)))
    assert "40 bytes apart" in tactic.reject(hopper(int8_linear_problem((37, 48), 40)))
    turned = TensorSpec((37, 48), (1, 48), INT8)
    assert "next to each other" in tactic.reject(replace(problem, inputs=(turned, *problem.inputs[1:])))


def test_configs():
    problem = replace(int8_linear_problem((4096, 768), 3072), capability=90)
    tactic = Int8GemmTma()
    counts = [len(tactic.configs(problem, level)) for level in range(6)]
    assert counts == [1, 3, 8, 16, 32, 64]
    assert tactic.configs(problem, 5)[:8] == tactic.configs(problem, 2)
    few = replace(int8_linear_problem((16, 768), 768), capability=90)
    assert (tactic.configs(few, 3), bool(tactic.configs(few, 5))) == ([], True)


COMPILE_CASES = [
    (Int8GemmTma(), problem, config)
    for problem in (
        replace(int8_linear_problem((4096, 256), 1024, activation="gelu"), capability=90),
        replace(int8_conv_problem((8, 64, 56, 56), (256, 64, 1, 1), residual=INT8, activation="relu"), capability=90),
    )
    for config in Int8GemmTma().configs(problem, 0)
    if not Int8GemmTma().reject(problem)
]
