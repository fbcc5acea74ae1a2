"""cuBLAS's matrix products against the reference, on the CPU."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from torchkiln.backends.cuda.recipe import TensorSpec, TorchCall
from torchkiln.backends.cuda.tactics.cublas import Cublas
from torchkiln.fused_ops.activation import ACTIVATIONS

from .interpret import check
from .problems import conv_problem, linear_problem

HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16
TOLERANCE = {HALF: 3e-3, BFLOAT: 2e-2, FLOAT: 1e-5}
CUBLAS = Cublas()
OP = "torchkiln.cublaslt.out"


def every(problem, level=5, tolerance=0.0):
    """Check the configurations that differ on the CPU; returns all."""
    assert CUBLAS.reject(problem) == ""
    configs = CUBLAS.configs(problem, level)
    for config in configs:
        if config["rank"] in (0, 7):  # on the CPU all algorithms are one
            check(CUBLAS, problem, config, tolerance or TOLERANCE[problem.outputs[0].dtype])
    pickle.dumps(CUBLAS.recipe(problem, configs[0]))
    return configs


def calls(problem, config):
    """What a recipe calls, "kernel" for a launch."""
    return [call.op if isinstance(call, TorchCall) else "kernel" for call in CUBLAS.recipe(problem, config).launches]


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu_tanh"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_one_call(dtype, activation, bias, residual):
    problem = linear_problem((3, 5, 19), 23, dtype, activation=activation, bias=bias, residual=residual)
    configs = every(problem)
    fused, apart = [c for c in configs if c["fused"]], [c for c in configs if not c["fused"]]
    assert configs[: len(fused)] == fused
    assert {(c["rank"], c["workspace"]) for c in fused} == {(rank, workspace) for rank in range(8) for workspace in (0, 8)}
    assert all(calls(problem, config) == [OP] for config in fused)
    assert all(calls(problem, config) == [OP, "kernel"] for config in apart)
    is_plain = not bias and not residual and activation == "none"
    assert bool(apart) != is_plain
    assert CUBLAS.recipe(problem, fused[0]).in_place == ((("x3", "y0"),) if residual else ())


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in ("none", "relu", "gelu_tanh")])
@pytest.mark.parametrize("bias", [False, True])
def test_epilogue(activation, bias):
    problem = linear_problem((7, 19), 23, FLOAT, activation=activation, bias=bias, residual=True)
    assert all(calls(problem, config) == [OP, "kernel"] for config in every(problem))


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
def test_gelu_of_bfloat16_may_be_the_one_with_tanh(dtype):
    problem = linear_problem((3, 5, 19), 23, dtype, activation="gelu", residual=True)
    fused = [config for config in every(problem) if config["fused"]]
    assert bool(fused) == (dtype == BFLOAT)
    for config in fused:
        assert config["gelu"] == "tanh"
        (call,) = CUBLAS.recipe(problem, config).launches
        assert "gelu_tanh" in call.args


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.0, 1.0), (0.0, 3.0), (-0.5, 0.7), (-1.0, 1.1)])
def test_the_two_forms_of_gelu_differ_by_less_than_the_rounding_to_bfloat16(mean, std):
    x = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * std + mean
    exact, form = (torch.nn.functional.gelu(x, approximate=how) for how in ("none", "tanh"))
    assert (form - exact).norm() < (exact.to(BFLOAT) - exact).norm()
    assert (form - exact).abs().max() < 5e-4


def test_every_algorithm_is_tried_before_the_epilogue_of_its_own():
    problem = linear_problem((7, 19), 23, HALF, activation="relu")
    assert [len(CUBLAS.configs(problem, level)) for level in range(6)] == [1, 2, 5, 9, 18, 22]
    assert [len(CUBLAS.configs(linear_problem((7, 19), 23, HALF, activation="silu"), level)) for level in range(6)] == [1, 2, 3, 6, 6, 6]


def test_workspace():
    problem = linear_problem((7, 19), 23, HALF)
    recipes = {c["workspace"]: CUBLAS.recipe(problem, c) for c in CUBLAS.configs(problem, 5) if c["fused"]}
    assert not recipes[0].scratch
    assert recipes[8].scratch["workspace"].size_bytes == 8 << 20


@pytest.mark.parametrize("x", [(19,), (1, 19), (1, 1, 19), (2, 3, 4, 19)])
def test_ranks(x):
    every(linear_problem(x, 8, FLOAT, activation="silu"), 1)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("residual", [False, True])
def test_rows_with_gaps(activation, residual):
    """Slices of wider tensors: input, residual and output."""
    problem = linear_problem((2, 5, 19), 23, FLOAT, residual=residual, activation=activation)
    inputs = list(problem.inputs)
    inputs[0] = TensorSpec((2, 5, 19), (5 * 40, 40, 1), FLOAT)
    if residual:
        inputs[3] = TensorSpec((2, 5, 23), (5 * 31, 31, 1), FLOAT)
    out = TensorSpec((2, 5, 23), (5 * 64, 64, 1), FLOAT)
    every(dataclasses.replace(problem, inputs=tuple(inputs), outputs=(out,)), 2)


@pytest.mark.parametrize("dtype", [HALF, FLOAT])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"activation": "silu", "residual": True}, {"bias": False}])
def test_pointwise_convolutions(dtype, rank, options):
    every(conv_problem((2, 13, 5, 4, 3)[: rank + 2], (17, 13, 1, 1, 1)[: rank + 2], dtype, **options), 1)


def test_convolution_on_slices_of_channels():
    problem = conv_problem((2, 8, 5, 4), (12, 8, 1, 1), FLOAT, activation="silu", residual=True)
    x = TensorSpec((2, 8, 5, 4), (20 * 20, 1, 4 * 20, 20), FLOAT)
    y = TensorSpec((2, 12, 5, 4), (20 * 16, 1, 4 * 16, 16), FLOAT)
    every(dataclasses.replace(problem, inputs=(x, *problem.inputs[1:]), outputs=(y,)), 1)


def wider(problem):
    """The same with a float32 output, and residual."""
    y, residual = problem.outputs[0], problem.inputs[3]
    inputs = (*problem.inputs[:3], residual and dataclasses.replace(residual, dtype=FLOAT), *problem.inputs[4:])
    return dataclasses.replace(problem, inputs=inputs, outputs=(dataclasses.replace(y, dtype=FLOAT),))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "problem",
    [
        lambda **has: linear_problem((2, 5, 19), 23, HALF, **has),
        lambda **has: linear_problem((2, 5, 19), 23, HALF, activation="silu", **has),
        lambda **has: conv_problem((2, 8, 5, 4), (12, 8, 1, 1), HALF, activation="relu", **has),
    ],
)
def test_wider_output(problem, bias, residual):
    problem = wider(problem(bias=bias, residual=residual))
    configs = every(problem, tolerance=3e-3)
    assert any(config["fused"] for config in configs) == (problem.attributes["activation"] != "silu")
    for config in configs:
        assert calls(problem, config) == ([OP] if config["fused"] else [OP, "kernel"])
        assert ("bias" in CUBLAS.recipe(problem, config).packed) == (bias and config["fused"])


def test_wider_bias():
    problem = linear_problem((2, 5, 19), 23, HALF)
    problem = dataclasses.replace(problem, inputs=(*problem.inputs[:2], TensorSpec.contiguous((23,), FLOAT), None))
    assert not any(config["fused"] for config in every(problem, 1))


def test_computed_weight():
    problem = dataclasses.replace(linear_problem((7, 19), 23, FLOAT), constants=(False,) * 4)
    every(problem, 1)
    transposed = dataclasses.replace(problem, inputs=(problem.inputs[0], TensorSpec((23, 19), (1, 23), FLOAT), *problem.inputs[2:]))
    assert "computed weight" in CUBLAS.reject(transposed)


def test_rejects():
    for problem, reason in (
        (conv_problem((2, 8, 9, 7), (8, 8, 3, 3)), "only a 1x1"),
        (conv_problem((2, 8, 9, 7), (8, 8, 1, 1), stride=2), "only a 1x1"),
        (conv_problem((2, 8, 9, 7), (8, 8, 1, 1), padding=1), "only a 1x1"),
        (conv_problem((2, 8, 9, 7), (8, 4, 1, 1), groups=2), "not grouped or transposed"),
        (conv_problem((2, 8, 9, 7), (8, 8, 1, 1), transposed=True), "not grouped or transposed"),
        (conv_problem((2, 8, 9, 7), (8, 8, 1, 1), scale=True), "does not scale"),
        (conv_problem((2, 8, 9, 7), (8, 8, 1, 1), channels_last=False), "not rows of channels"),
        (conv_problem((2, 8, 9, 7), (8, 8, 1, 1), x_dtype=FLOAT), "expected the same"),
        (linear_problem((2**16, 2**12), 2**16), "offsets are 32-bit"),
        (linear_problem((2**20, 2**12), 8), "2**31"),
        (linear_problem((0, 8), 8), "an empty operand"),
    ):
        assert reason in CUBLAS.reject(problem)


def _cases():
    problems = [
        linear_problem((1, 197, 768), 3072, activation="gelu", capability=90),
        linear_problem((64, 197, 3072), 768, residual=True, capability=90),
        linear_problem((1, 333), 1001, activation="tanh", capability=90),
        conv_problem((32, 64, 56, 56), (256, 64, 1, 1), activation="relu", residual=True, capability=90),
    ]
    return [(CUBLAS, problem, CUBLAS.configs(problem, 5)[-1]) for problem in problems]


#: (tactic, problem, config) of recipes that must compile for every architecture.
COMPILE_CASES = _cases()
