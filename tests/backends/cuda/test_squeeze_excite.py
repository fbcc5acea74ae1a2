"""Squeeze-and-excite gates against the reference.

The form on tensor cores not in bf16: Triton's interpreter multiplies its bit patterns.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.interpret import check

from torchkiln.backends.cuda.recipe import Problem, TensorSpec
from torchkiln.backends.cuda.tactics.squeeze_excite import SqueezeExcite

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 5e-3, torch.float32: 1e-5}


def gate(n, channels, hidden, dtype=torch.float16, *, bias1=True, bias2=True, activation="silu", gate="sigmoid") -> Problem:
    """A problem of n items."""
    lay = TensorSpec.contiguous
    inputs = (
        lay((n, channels), torch.float32),
        lay((hidden, channels), dtype),
        lay((hidden,), dtype) if bias1 else None,
        lay((channels, hidden), dtype),
        lay((channels,), dtype) if bias2 else None,
    )
    attributes = {"activation": activation, "gate": gate}
    return Problem("squeeze_excite", inputs, (lay((n, channels), dtype),), attributes, (False, True, True, True, True), capability=80)


CASES = {
    "B0 first": gate(1, 32, 8),
    "B0 last": gate(2, 1152, 48),
    "odd": gate(3, 37, 5, activation="relu", gate="hardsigmoid"),
    "without bias": gate(2, 96, 4, bias1=False, bias2=False),
    "tail": gate(1, 100, 10, activation="sigmoid"),
    "wide": gate(1, 600, 130),
    "fp32": gate(3, 72, 20, torch.float32),
    "bf16": gate(3, 72, 20, torch.bfloat16),
}
ROWS = {
    "19": gate(19, 72, 20),
    "odd": gate(17, 37, 5, activation="sigmoid", gate="hardsigmoid"),
    "many": gate(33, 200, 12, bias1=False, bias2=False),
    "fp32": gate(9, 40, 18, torch.float32),
}


@pytest.mark.parametrize("part", [16, 64, 128])
@pytest.mark.parametrize("name", CASES)
def test_one_item_a_program(name, part):
    problem = CASES[name]
    assert SqueezeExcite().reject(problem) == ""
    check(SqueezeExcite(), problem, {"rows": 1, "part": part, "warps": 4}, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize("part", [16, 128])
@pytest.mark.parametrize("name", ROWS)
def test_sixteen_items_a_program(name, part):
    problem = ROWS[name]
    check(SqueezeExcite(), problem, {"rows": 16, "part": part, "warps": 4}, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize("name", [*CASES, *ROWS])
def test_best_config(name):
    problem = {**ROWS, **CASES}[name]
    config = SqueezeExcite().configs(problem, 0)[0]
    if problem.outputs[0].dtype != torch.bfloat16 or config["rows"] == 1:
        check(SqueezeExcite(), problem, config, TOLERANCE[problem.outputs[0].dtype])


def test_output_strides_are_kept():
    problem = CASES["tail"]
    y = problem.outputs[0]
    spread = TensorSpec(y.shape, (3 * y.shape[1], 3), y.dtype)
    check(SqueezeExcite(), replace(problem, outputs=(spread,)), {"rows": 1, "part": 64, "warps": 4}, TOLERANCE[torch.float16])


def test_configs_and_recipes():
    problem = gate(128, 1152, 48)
    counts = [len(SqueezeExcite().configs(problem, level)) for level in range(6)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[5] > 10
    for config in SqueezeExcite().configs(problem, 5):
        pickle.dumps(SqueezeExcite().recipe(problem, config))


def test_rejects():
    assert "4096" in SqueezeExcite().reject(gate(1, 5000, 10))
    assert "computed" in SqueezeExcite().reject(replace(CASES["odd"], constants=(False,) * 5))


LARGE = [gate(1, 1152, 48), gate(128, 1152, 48), gate(128, 480, 20), gate(1, 2048, 128), gate(4, 4096, 512), gate(128, 4096, 512)]
COMPILE_CASES = [
    (SqueezeExcite(), replace(problem, capability=90), config)
    for problem in [*LARGE, gate(1, 32, 8)]
    for config in SqueezeExcite().configs(problem, 1)[:2]
]
