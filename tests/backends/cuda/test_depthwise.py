"""Depthwise convolutions against the reference, on shapes that divide nothing."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.interpret import check
from tests.backends.cuda.problems import conv_problem

from torchkiln.backends.cuda.recipe import TensorSpec
from torchkiln.backends.cuda.tactics.depthwise import Depthwise

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}


def depthwise(x, kernel, dtype=torch.float16, **options):
    """x: [N, C, *spatial]; kernel: of the spatial dimensions."""
    return conv_problem(x, (x[1], 1, *kernel), dtype, groups=x[1], **options)


CASES = {
    "3x3": depthwise((2, 24, 9, 7), (3, 3), padding=1, activation="relu6"),
    "3x3 odd channels": depthwise((2, 19, 9, 7), (3, 3), padding=1, activation="silu"),
    "3x3 strided": depthwise((2, 40, 11, 8), (3, 3), stride=2, padding=1, activation="hardswish"),
    "3x3 dilated": depthwise((1, 16, 9, 10), (3, 3), padding=2, dilation=2, activation="gelu"),
    "5x5": depthwise((2, 33, 8, 7), (5, 5), padding=2, activation="silu"),
    "5x5 strided": depthwise((1, 48, 14, 13), (5, 5), stride=2, padding=2),
    "7x7": depthwise((1, 16, 7, 9), (7, 7), padding=3, bias=False),
    "3x5 unpadded": depthwise((1, 16, 7, 9), (3, 5), activation="leaky_relu", alpha=0.1),
    "9x9": depthwise((1, 16, 12, 11), (9, 9), padding=4),
    "residual": depthwise((2, 24, 5, 6), (3, 3), padding=1, residual=True, activation="relu"),
    "scale": depthwise((2, 24, 5, 6), (3, 3), padding=1, scale=True, residual=True),
    "1-D": depthwise((2, 20, 23), (5,), padding=2, activation="tanh"),
    "3-D": depthwise((1, 18, 4, 5, 6), (3, 3, 3), padding=1, activation="gelu_tanh"),
    "3-D strided": depthwise((1, 8, 5, 5, 6), (2, 3, 3), stride=2, padding=1),
    "3-D flat": depthwise((1, 8, 3, 5, 6), (1, 3, 3), padding=1),
    "fp32": depthwise((1, 20, 6, 7), (3, 3), torch.float32, padding=1, activation="sigmoid"),
    "bf16": depthwise((1, 20, 6, 7), (3, 3), torch.bfloat16, padding=1, activation="silu"),
    "channels outermost": depthwise((2, 12, 9, 35), (3, 3), padding=1, channels_last=False, activation="relu"),
    "casts": depthwise((1, 16, 6, 7), (3, 3), padding=1, x_dtype=torch.float32),
    "one": depthwise((1, 1, 1, 1), (1, 1)),
    "pooled": depthwise((2, 40, 9, 7), (3, 3), padding=1, activation="silu", op="conv_pooled"),
    "pooled strided": depthwise((3, 19, 14, 14), (5, 5), stride=2, padding=2, activation="relu", op="conv_pooled"),
    "pooled bf16": depthwise((1, 24, 7, 7), (5, 5), torch.bfloat16, padding=2, activation="silu", op="conv_pooled"),
    "pooled fp32": depthwise((1, 24, 7, 7), (5, 5), torch.float32, padding=2, bias=False, op="conv_pooled"),
}
TILES = [(1, 1), (2, 1), (4, 1), (7, 1), (1, 2), (2, 4), (4, 2)]


@pytest.mark.parametrize("name", CASES)
def test_depthwise(name):
    problem = CASES[name]
    tactic = Depthwise()
    assert tactic.reject(problem) == ""
    for config in tactic.configs(problem, 0):
        check(tactic, problem, config, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", ["3x3", "5x5 strided", "3x3 dilated", "3x5 unpadded", "residual", "pooled strided", "pooled"])
def test_tiles(name, tile):
    check(Depthwise(), CASES[name], {"TH": tile[0], "TW": tile[1], "BP": 8, "BC": 16, "warps": 1}, TOLERANCE[torch.float16])


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_columns_in_a_loop(rows):
    check(Depthwise(), CASES["9x9"], {"TH": rows, "TW": 1, "BP": 32, "BC": 16, "warps": 2}, TOLERANCE[torch.float16])


def test_mean_of_many_tiles():
    problem = depthwise((2, 20, 21, 20), (3, 3), padding=1, op="conv_pooled")
    check(Depthwise(), problem, {"TH": 1, "TW": 1, "BP": 8, "BC": 16, "warps": 1}, TOLERANCE[torch.float16])


def test_strides_of_the_output_are_kept():
    problem = CASES["residual"]
    contiguous = TensorSpec.contiguous(problem.outputs[0].shape, torch.float16)
    for changed in (
        replace(problem, outputs=(contiguous,)),
        replace(problem, inputs=(*problem.inputs[:3], contiguous, None)),
        replace(problem, inputs=(TensorSpec.contiguous(problem.inputs[0].shape, torch.float16), *problem.inputs[1:])),
    ):
        check(Depthwise(), changed, {"TH": 2, "TW": 1, "BP": 8, "BC": 16, "warps": 1}, TOLERANCE[torch.float16])


def test_configs_are_best_first_and_more_with_effort():
    problem = depthwise((128, 480, 14, 14), (5, 5), padding=2, op="conv_pooled")
    counts = [len(Depthwise().configs(problem, level)) for level in range(6)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[5] > 30
    assert Depthwise().configs(problem, 5)[: counts[2]] == Depthwise().configs(problem, 2)


def test_packed_weights_can_be_sent():
    recipe = Depthwise().recipe(CASES["3x3"], Depthwise().configs(CASES["3x3"], 0)[0])
    pickle.dumps(recipe)


def test_rejects():
    tactic = Depthwise()
    assert "not depthwise" in tactic.reject(conv_problem((1, 8, 5, 5), (16, 1, 3, 3), groups=8))
    assert "not depthwise" in tactic.reject(conv_problem((1, 8, 5, 5), (8, 4, 3, 3), groups=2))
    assert "transposed" in tactic.reject(conv_problem((1, 8, 5, 5), (8, 1, 2, 2), groups=8, transposed=True))
    assert "computed" in tactic.reject(replace(CASES["3x3"], constants=(False,) * 5))


#: EfficientNet-B0's and ConvNeXt's, beside the small ones.
LARGE = [
    depthwise((128, 480, 14, 14), (5, 5), padding=2, activation="silu", op="conv_pooled"),
    depthwise((128, 32, 112, 112), (3, 3), padding=1, activation="silu", op="conv_pooled"),
    depthwise((128, 144, 56, 56), (3, 3), stride=2, padding=1, activation="silu"),
    depthwise((1, 1152, 7, 7), (5, 5), padding=2, activation="silu", op="conv_pooled"),
    depthwise((1, 96, 56, 56), (7, 7), padding=3),
]
COMPILE_CASES = [
    (Depthwise(), replace(problem, capability=90), config)
    for problem in [*LARGE, *CASES.values()]
    if problem.outputs[0].dtype == torch.float16
    for config in Depthwise().configs(problem, 0)
]
