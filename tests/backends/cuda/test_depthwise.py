"""Depthwise convolutions against the reference, on shapes that divide nothing."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.interpret import check
from tests.backends.cuda.problems import conv_problem

from torchkiln.backends.cuda.recipe import Problem, TensorSpec
from torchkiln.backends.cuda.tactics.depthwise import Depthwise, DepthwiseThenGate

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}


def depthwise(x, kernel, dtype=torch.float16, **options):
    """x: [N, C, *spatial]; kernel: of the spatial dimensions."""
    return conv_problem(x, (x[1], 1, *kernel), dtype, groups=x[1], **options)


def excite(x, kernel, hidden, dtype=torch.float16, *, bias1=True, bias2=True, names=("silu", "sigmoid"), **options) -> Problem:
    """A "conv_excite" with that many hidden channels; names: of the activations after its layers."""
    pooled = depthwise(x, kernel, dtype, op="conv_pooled", **options)
    lay = TensorSpec.contiguous
    bias = [lay((hidden,), dtype) if bias1 else None, lay((x[1],), dtype) if bias2 else None]
    inputs = (*pooled.inputs, lay((hidden, x[1]), dtype), bias[0], lay((x[1], hidden), dtype), bias[1])
    attributes = pooled.attributes | {"hidden_activation": names[0], "gate": names[1]}
    outputs = (pooled.outputs[0], lay((x[0], x[1]), dtype))
    return replace(pooled, op="conv_excite", inputs=inputs, outputs=outputs, attributes=attributes, constants=(False, *[True] * 6))


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
TILES = [(1, 1), (2, 1), (4, 1), (7, 1), (1, 2), (2, 4), (4, 7), (7, 7)]
EXCITE = {
    "odd": excite((3, 19, 9, 7), (3, 3), 5, padding=1, activation="silu"),
    "strided": excite((2, 40, 11, 8), (5, 5), 10, stride=2, padding=2, names=("relu", "hardsigmoid"), activation="hardswish"),
    "no bias": excite((1, 24, 7, 7), (3, 3), 6, bias1=False, bias2=False, bias=False, padding=1),
    "one bias": excite((1, 24, 7, 7), (3, 3), 17, bias1=False, padding=1, names=("none", "sigmoid")),
    "bf16": excite((2, 16, 6, 7), (3, 3), 4, torch.bfloat16, padding=1, activation="silu"),
    "fp32": excite((1, 33, 6, 7), (3, 3), 4, torch.float32, padding=1, activation="relu"),
}


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


def test_whole_image_in_a_tile():
    """Rows and columns that lie outside for every tile are left out, those of the border masked."""
    problem = depthwise((2, 17, 7, 7), (5, 5), padding=2, activation="silu", op="conv_pooled")
    for tile in ((7, 7), (7, 4), (4, 7)):
        check(Depthwise(), problem, {"TH": tile[0], "TW": tile[1], "BP": 2, "BC": 16, "warps": 1}, TOLERANCE[torch.float16])


def test_more_padding_than_kernel():
    problem = depthwise((1, 16, 3, 4), (3, 3), padding=4, activation="silu")
    for tile in ((1, 1), (7, 7), (4, 2)):
        check(Depthwise(), problem, {"TH": tile[0], "TW": tile[1], "BP": 4, "BC": 16, "warps": 1}, TOLERANCE[torch.float16])


@pytest.mark.parametrize("channels", [8, 32])
@pytest.mark.parametrize("name", EXCITE)
def test_gates_in_the_same_launch(name, channels):
    problem = EXCITE[name]
    assert Depthwise().reject(problem) == ""
    for tile in ((1, 1), (4, 2)):
        config = {"TH": tile[0], "TW": tile[1], "BP": 16, "BC": channels, "warps": 1}
        assert len(Depthwise().recipe(problem, config).launches) == 1
        check(Depthwise(), problem, config, TOLERANCE[problem.outputs[0].dtype])


@pytest.mark.parametrize("name", EXCITE)
def test_gates_in_a_launch_of_their_own(name):
    problem = EXCITE[name]
    assert DepthwiseThenGate().reject(problem) == ""
    config = DepthwiseThenGate().configs(problem, 0)[0]
    assert len(DepthwiseThenGate().recipe(problem, config).launches) == 2
    check(DepthwiseThenGate(), problem, config, TOLERANCE[problem.outputs[0].dtype])
    pickle.dumps(DepthwiseThenGate().recipe(problem, config))


def test_gate_configs():
    problem = excite((1, 1152, 7, 7), (5, 5), 48, padding=2)
    for tactic in (Depthwise(), DepthwiseThenGate()):
        counts = [len(tactic.configs(problem, level)) for level in range(6)]
        assert counts[0] == 1
        assert counts == sorted(counts)
        assert counts[5] > 20
    assert all(64 * config["BC"] <= 32 * 32 * config["warps"] for config in Depthwise().configs(problem, 5))


def test_gate_rejects():
    problem = EXCITE["odd"]
    for tactic in (Depthwise(), DepthwiseThenGate()):
        assert "computed" in tactic.reject(replace(problem, constants=(False, *[True] * 4, False, True)))
        assert "4096" in tactic.reject(excite((1, 5000, 2, 2), (3, 3), 4, padding=1))


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
    assert "weight is computed" in tactic.reject(replace(CASES["3x3"], constants=(False,) * 5))
    assert "bias is computed" in tactic.reject(replace(CASES["3x3"], constants=(False, True, False, False, False)))


#: EfficientNet-B0's and ConvNeXt's, beside the small ones. The first is what test_compile_targets compiles: of the others one takes a minute.
LARGE = [
    depthwise((1, 1152, 7, 7), (5, 5), padding=2, activation="silu", op="conv_pooled"),
    depthwise((128, 480, 14, 14), (5, 5), padding=2, activation="silu", op="conv_pooled"),
    depthwise((128, 32, 112, 112), (3, 3), padding=1, activation="silu", op="conv_pooled"),
    depthwise((128, 144, 56, 56), (3, 3), stride=2, padding=1, activation="silu"),
    depthwise((1, 96, 56, 56), (7, 7), padding=3),
]
COMPILE_CASES = [
    (Depthwise(), replace(problem, capability=90), config)
    for problem in [*LARGE, *CASES.values()]
    if problem.outputs[0].dtype == torch.float16
    for config in Depthwise().configs(problem, 0)
] + [(tactic, replace(EXCITE["odd"], capability=90), tactic.configs(EXCITE["odd"], 0)[0]) for tactic in (Depthwise(), DepthwiseThenGate())]
