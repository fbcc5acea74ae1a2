"""Convolutions that load their input once for all taps of a line, against the reference, on shapes that divide nothing.

Not in bf16: Triton's interpreter multiplies its bit patterns.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.interpret import check
from tests.backends.cuda.problems import conv_problem
from tests.backends.cuda.test_moments import check_moments

from torchkiln.backends.cuda.recipe import Problem, TensorSpec
from torchkiln.backends.cuda.tactics.conv_lines import ConvLines, pack_lines

SMALL = {"band": 1, "BM": 16, "BN": 16, "BK": 16, "warps": 4, "stages": 2}
#: Two lines a band or more (the last band may be short), one, two or four positions with a thread.
BANDS = [{**SMALL, "band": 2}, {**SMALL, "band": 3, "BM": 32, "warps": 2}, {**SMALL, "band": 2, "BM": 64, "warps": 2}]
TOLERANCE = {torch.float16: 2e-3, torch.float32: 1e-5}


def outer(problem: Problem, padded: int = 1, **attributes: list[int]) -> Problem:
    """The same with another stride, padding or dilation per dimension, and the output that follows from them."""
    merged = {**problem.attributes, **attributes}
    x, weight = problem.inputs[:2]
    assert x is not None
    assert weight is not None
    y = torch.ops.aten.convolution.default(
        torch.empty(x.shape, device="meta"),
        torch.empty(weight.shape, device="meta"),
        None,
        *(merged[name] for name in ("stride", "padding", "dilation")),
        False,
        merged["output_padding"],
        1,
    )
    cl = conv_problem(y.shape, (1, y.shape[1], *[1] * (y.dim() - 2)), problem.outputs[0].dtype).inputs[0]
    assert cl is not None
    inputs = (*problem.inputs[:3], cl if problem.inputs[3] is not None else None, None)
    return replace(problem, inputs=inputs, outputs=(cl,), attributes=merged)


def with_moments(problem: Problem) -> Problem:
    y = problem.outputs[0]
    return replace(problem, op="conv_moments", outputs=(y, TensorSpec.contiguous((y.shape[0], 2, y.shape[1]), torch.float32)))


CASES = {
    "3x3": conv_problem((2, 48, 5, 7), (24, 48, 3, 3), padding=1, activation="silu"),
    "3x3 no padding": conv_problem((2, 20, 6, 9), (33, 20, 3, 3), activation="relu"),
    "3x3 wide": conv_problem((1, 16, 3, 45), (16, 16, 3, 3), padding=1),
    "3x3 narrow": conv_problem((3, 16, 4, 1), (16, 16, 3, 3), padding=1, bias=False),
    "3x3 wide padding": conv_problem((1, 16, 3, 4), (16, 16, 3, 3), padding=3),
    "3x3 5 channels": conv_problem((1, 5, 6, 7), (17, 5, 3, 3), padding=1, activation="leaky_relu", alpha=0.1),
    "residual": conv_problem((2, 24, 4, 5), (20, 24, 3, 3), padding=1, residual=True, activation="relu"),
    "3x3 tf32": conv_problem((1, 20, 5, 6), (16, 20, 3, 3), torch.float32, padding=1, activation="gelu_tanh", math="tf32"),
    "1-D": conv_problem((2, 20, 37), (12, 20, 3), padding=1, activation="sigmoid"),
    "1-D 5 taps": conv_problem((3, 16, 9), (12, 16, 5), padding=2),
    "2x2": conv_problem((1, 16, 5, 6), (20, 16, 2, 2)),
    "3-D": conv_problem((1, 20, 4, 5, 6), (10, 20, 3, 3, 3), padding=1, activation="leaky_relu", alpha=0.01),
    "3-D residual": conv_problem((2, 16, 3, 4, 7), (18, 16, 3, 3, 3), padding=1, residual=True),
    "2-D strided rows": outer(conv_problem((2, 20, 7, 6), (12, 20, 3, 3), padding=1, residual=True), stride=[2, 1]),
    "3-D strided and dilated": outer(conv_problem((2, 16, 7, 6, 5), (12, 16, 3, 3, 3)), stride=[2, 1, 1], padding=[1, 2, 1], dilation=[1, 2, 1]),
    "3-D strided depth": outer(conv_problem((2, 16, 5, 5, 6), (12, 16, 3, 3, 3)), stride=[2, 1, 1], padding=[1, 1, 1], dilation=[1, 1, 1]),
    "3-D rows only": outer(conv_problem((1, 16, 3, 4, 5), (12, 16, 1, 1, 3)), padding=[1, 0, 1]),
}


@pytest.mark.parametrize("bk", [16, 32])
@pytest.mark.parametrize("name", CASES)
def test_conv_lines(name, bk):
    problem = CASES[name]
    assert ConvLines().reject(problem) == ""
    check(ConvLines(), problem, {**SMALL, "BK": bk}, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize(("bm", "warps"), [(32, 1), (32, 2), (64, 2)])
@pytest.mark.parametrize("name", ["3x3", "residual", "3x3 tf32", "1-D 5 taps", "2x2", "3-D"])
def test_positions_of_a_thread(name, bm, warps):
    """Two or four neighbouring positions with each thread, of one warp or two."""
    problem = CASES[name]
    config = {**SMALL, "BM": bm, "warps": warps}
    assert dict(ConvLines().recipe(problem, config).launches[0].kernel.constants)["FOLD"] == bm // (8 * warps)
    check(ConvLines(), problem, config, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize("config", BANDS, ids=lambda config: f"{config['band']}-{config['BM']}")
@pytest.mark.parametrize("name", ["3x3", "3x3 wide", "3x3 narrow", "3x3 wide padding", "2x2", "3-D residual", "3-D strided depth"])
def test_bands(name, config):
    problem = CASES[name]
    check(ConvLines(), problem, config, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize("name", ["3x3", "residual", "1-D", "3-D"])
def test_configs_compute_the_same(name):
    problem = CASES[name]
    for config in ConvLines().configs(problem, 5)[::5]:
        check(ConvLines(), problem, config, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize("config", [SMALL, {**SMALL, "BM": 64, "warps": 2}], ids=["whole", "folded"])
@pytest.mark.parametrize("name", ["3x3 no padding", "residual", "1-D", "3-D residual"])
def test_moments(name, config):
    both = with_moments(CASES[name])
    assert ConvLines().reject(both) == ""
    check_moments(*check(ConvLines(), both, config, TOLERANCE[torch.float16]))


@pytest.mark.parametrize("config", BANDS, ids=lambda config: f"{config['band']}-{config['BM']}")
@pytest.mark.parametrize("name", ["3x3", "3-D residual"])
def test_moments_of_bands(name, config):
    both = with_moments(CASES[name])
    check_moments(*check(ConvLines(), both, config, TOLERANCE[torch.float16]))


def test_strides_of_the_output_are_kept():
    """The output as the first channels of a wider tensor, as a concatenation that is not copied has it."""
    problem = CASES["3x3"]
    y = problem.outputs[0]
    wide = TensorSpec(y.shape, tuple(s if d == 1 else 2 * s for d, s in enumerate(y.strides)), y.dtype)
    check(ConvLines(), replace(problem, outputs=(wide,)), SMALL, TOLERANCE[torch.float16])


def test_pack_lines():
    weight = torch.randn(4, 5, 2, 3, 3)
    packed = pack_lines(weight, 16)
    assert packed.shape == (4, 3, 32)
    assert packed[3, 1, (1 * 3 + 2) * 5 + 4] == weight[3, 4, 1, 2, 1]
    assert not packed[:, :, 30:].any()


def test_configs_are_best_first_and_recipes_can_be_sent():
    problem = conv_problem((1, 96, 96, 96, 96), (48, 96, 3, 3, 3), padding=1)
    counts = [len(ConvLines().configs(problem, level)) for level in range(6)]
    assert counts == [1, 2, 4, 8, 16, 32]
    for config in ConvLines().configs(problem, 5):
        pickle.dumps(ConvLines().recipe(problem, config))


def test_bands_are_offered_where_lines_are_shared():
    def bands(problem: Problem) -> set[int]:
        return {config["band"] for config in ConvLines().configs(problem, 5)}

    assert 2 in bands(conv_problem((1, 48, 96, 96, 96), (48, 48, 3, 3, 3), padding=1))
    assert 2 in bands(with_moments(conv_problem((1, 32, 512, 512), (32, 32, 3, 3), padding=1)))
    one_image = with_moments(conv_problem((1, 32, 512, 512), (32, 32, 3, 3), padding=1))
    assert {config["BK"] for config in ConvLines().configs(one_image, 5) if config["band"] > 1} == {16}  # never one step
    assert bands(CASES["3x3 5 channels"]) == bands(CASES["3x3 no padding"]) == {1}  # channels that no block divides
    assert bands(CASES["3-D strided and dilated"]) == bands(CASES["3-D rows only"]) == bands(CASES["1-D 5 taps"]) == {1}


def test_rejects():
    tactic = ConvLines()
    x, weight = (1, 8, 5, 5), (8, 8, 3, 3)
    assert "transposed" in tactic.reject(conv_problem(x, weight, transposed=True))
    assert "ungrouped" in tactic.reject(conv_problem(x, (8, 4, 3, 3), groups=2))
    assert "taps" in tactic.reject(conv_problem(x, (8, 8, 1, 1)))
    assert "taps" in tactic.reject(conv_problem((1, 8, 9, 9), (8, 8, 7, 7)))
    assert "stride 1" in tactic.reject(conv_problem(x, weight, stride=2))
    assert "dilation 1" in tactic.reject(conv_problem(x, weight, dilation=2))
    assert "scale" in tactic.reject(conv_problem(x, weight, scale=True))
    assert "next to each other" in tactic.reject(conv_problem(x, weight, channels_last=False))
    assert "one dtype" in tactic.reject(conv_problem(x, weight, x_dtype=torch.float32))
    assert "TF32" in tactic.reject(conv_problem(x, weight, torch.float32))
    assert "computed" in tactic.reject(replace(conv_problem(x, weight), constants=(False,) * 5))


LARGE = [
    conv_problem((1, 96, 96, 96, 96), (48, 96, 3, 3, 3), padding=1, residual=True, activation="relu"),
    conv_problem((1, 48, 96, 96, 96), (48, 48, 3, 3, 3), padding=1),
    with_moments(conv_problem((2, 48, 96, 96, 96), (48, 48, 3, 3, 3), padding=1)),
    conv_problem((8, 128, 56, 56), (128, 128, 3, 3), padding=1),
    conv_problem((8, 64, 56, 56), (64, 64, 3, 3), padding=1, activation="relu"),
]
COMPILE_CASES = [
    *((ConvLines(), problem, config) for problem in [*LARGE, *CASES.values()] for config in ConvLines().configs(problem, 0)),
    (ConvLines(), LARGE[2], {"band": 2, "BM": 128, "BN": 64, "BK": 16, "warps": 8, "stages": 3}),
    (ConvLines(), LARGE[4], {"band": 4, "BM": 64, "BN": 32, "BK": 16, "warps": 4, "stages": 2}),
]
