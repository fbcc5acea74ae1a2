"""First convolutions through windows of a padded image against the reference, on shapes that divide nothing.

Not in bf16: Triton's interpreter multiplies its bit patterns.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.interpret import check, interpret, make
from tests.backends.cuda.problems import conv_problem

from torchkiln.backends.cuda.recipe import Launch, Problem, TensorSpec
from torchkiln.backends.cuda.tactics.conv_windows import ConvWindows

#: Several strips side by side and one below the other, and on two multiprocessors several a program.
SMALL = {"BM": 16, "BN": 16, "warps": 4, "fold": 1, "programs": 2, "rows": 3, "stages": 3}


def conv(x, weight, **how) -> Problem:
    return replace(conv_problem(x, weight, capability=90, **how), multiprocessors=2)


def outer(problem: Problem, **attributes: list[int]) -> Problem:
    """The same with another stride or padding per dimension, and the output that follows from them."""
    merged = {**problem.attributes, **attributes}
    x, weight = problem.inputs[:2]
    assert x is not None
    assert weight is not None
    metas = (torch.empty(spec.shape, device="meta") for spec in (x, weight))
    y = torch.ops.aten.convolution.default(*metas, None, *(merged[name] for name in ("stride", "padding", "dilation")), False, [0, 0], 1)
    return replace(problem, outputs=(TensorSpec.contiguous(y.shape, problem.outputs[0].dtype),), attributes=merged)


def compute(problem: Problem, config: dict) -> None:
    """Check it in the interpreter, which cannot follow programmatic launch (compute capability 9.0)."""
    assert ConvWindows().reject(problem) == ""
    check(ConvWindows(), replace(problem, capability=80), config, 2e-3)


CASES = {
    "7x7 stride 2, NCHW float32": conv(
        (2, 3, 14, 70), (20, 3, 7, 7), stride=2, padding=3, activation="relu", channels_last=False, x_dtype=torch.float32
    ),
    "7x7 stride 2, odd height": conv((1, 3, 13, 69), (17, 3, 7, 7), stride=2, padding=3, activation="silu"),
    "3x3 stride 2": conv((3, 3, 10, 67), (24, 3, 3, 3), stride=2, padding=1, activation="silu"),
    "3x3 stride 2, no padding": conv((1, 3, 8, 67), (16, 3, 3, 3), stride=2, bias=False),
    "3x3": conv((2, 3, 5, 37), (33, 3, 3, 3), padding=1, activation="leaky_relu", alpha=0.1),
    "5x5 of 2 channels": conv((1, 2, 7, 40), (12, 2, 5, 5), padding=2),
    "1 channel": conv((2, 1, 6, 33), (16, 1, 3, 3), padding=1, channels_last=False),
    "8 channels": conv((1, 8, 7, 34), (18, 8, 3, 3), padding=1, activation="gelu"),
    "patches": conv((2, 3, 8, 132), (20, 3, 4, 4), stride=4, channels_last=False),
    "taps fewer than the stride": conv((1, 8, 9, 130), (16, 8, 2, 2), stride=4),
    "3x3 stride 3": conv((2, 3, 10, 100), (16, 3, 3, 3), stride=3, padding=1),
    "stride per dimension": outer(conv((2, 3, 12, 40), (20, 3, 5, 3), channels_last=False), stride=[2, 1], padding=[1, 1]),
    "stride along the row only": outer(conv((2, 3, 6, 70), (20, 3, 3, 3), channels_last=False), stride=[1, 2], padding=[2, 0]),
}


@pytest.mark.parametrize("name", CASES)
def test_conv_windows(name):
    compute(CASES[name], SMALL)


@pytest.mark.parametrize(
    ("name", "fold"),
    [
        ("7x7 stride 2, NCHW float32", 2),
        ("3x3 stride 2", 2),
        ("3x3 stride 2, no padding", 2),
        ("patches", 2),
        ("patches", 4),
        ("stride per dimension", 2),
    ],
)
def test_folded_rows(name, fold):
    compute(CASES[name], {**SMALL, "fold": fold})


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("programs", [1, 50])
def test_strips(rows, programs):
    """One to a program or all to two, the last of a column shorter than the others or not."""
    compute(CASES["7x7 stride 2, NCHW float32"], {**SMALL, "rows": rows, "programs": programs})


@pytest.mark.parametrize("name", ["7x7 stride 2, NCHW float32", "3x3", "patches"])
def test_every_config_computes_the_same(name):
    found = ConvWindows().configs(CASES[name], 5)
    assert {config["fold"] for config in found} == {"7": {1, 2}, "3": {1}, "p": {1, 2, 4}}[name[0]]
    for config in found[::9]:
        compute(CASES[name], config)


def test_operands_in_wider_tensors():
    """The input as every other column of an image, the output as the first channels of a wider tensor, and as contiguous."""
    problem = CASES["3x3 stride 2"]
    x, y = problem.inputs[0], problem.outputs[0]
    assert x is not None
    apart = TensorSpec(x.shape, tuple(s if d == 1 else 2 * s for d, s in enumerate(x.strides)), x.dtype)
    wide = TensorSpec(y.shape, tuple(s if d == 1 else 3 * s for d, s in enumerate(y.strides)), y.dtype)
    for out in (wide, TensorSpec.contiguous(y.shape, y.dtype), TensorSpec.contiguous(y.shape, torch.float32)):
        compute(replace(problem, inputs=(apart, *problem.inputs[1:]), outputs=(out,)), SMALL)


@pytest.mark.parametrize("fold", [1, 2])
def test_what_is_not_finite_stays_in_its_neighbourhood(fold):
    """Outputs of another image, and those whose window, rounded up, does not have the position, are as without it."""
    problem = replace(CASES["7x7 stride 2, NCHW float32"], capability=80)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (make(spec, generator) for spec in problem.inputs[:3] if spec is not None)
    results = []
    for value in (0.5, float("nan")):
        x[0, 1, 6, 30] = value
        y = make(problem.outputs[0], generator, fill=float("nan"))
        recipe = ConvWindows().recipe(problem, {**SMALL, "fold": fold})
        results.append(interpret(recipe, {"x0": x, "x1": weight, "x2": bias, "y0": y})["y0"])
    spoiled = results[1].isnan()
    assert spoiled[0, :, 2:5, 14:17].all()
    # Rows 2 to 4 read row 6 and, folded, row 5 has it in a window that begins one row higher; columns 13 to 16 with the added tap.
    spoiled[0, :, 2 : 4 + fold, 13:17] = False
    assert not spoiled.any()
    assert results[0].isfinite().all()


def test_configs_are_few_and_more_with_effort():
    for x, weight, how in (
        ((128, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
        ((128, 3, 224, 224), (32, 3, 3, 3), {"stride": 2, "padding": 1}),
        ((32, 3, 224, 224), (64, 3, 3, 3), {"padding": 1}),
    ):
        problem = replace(conv(x, weight, **how), multiprocessors=132)
        assert [len(ConvWindows().configs(problem, level)) for level in range(6)] == [1, 3, 8, 16, 32, 64]
        assert ConvWindows().configs(problem, 5)[:8] == ConvWindows().configs(problem, 2)
        for config in ConvWindows().configs(problem, 5):
            pickle.dumps(ConvWindows().recipe(problem, config))


def test_few_steps_are_left_to_others():
    problem = replace(conv((1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3), multiprocessors=132)
    assert [len(ConvWindows().configs(problem, level)) for level in range(6)] == [0, 0, 0, 0, 0, 64]


@pytest.mark.parametrize("fold", [1, 2])
def test_windows_end_within_the_image(fold):
    """The descriptor says how many: one more would be read behind the scratch memory."""
    problem = replace(conv((128, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3), multiprocessors=132)
    recipe = ConvWindows().recipe(problem, {**SMALL, "fold": fold})
    launch = recipe.launches[1]
    assert isinstance(launch, Launch)
    constants = dict(launch.kernel.constants)
    elements = recipe.scratch["image"].numel
    assert constants["STEP"] % 8 == 0
    end = (constants["WINDOWS"] - 1) * constants["STEP"] + constants["KROW"]
    assert end <= elements < end + constants["STEP"]
    last = (constants["BATCH"] * constants["HP"] - 1) * constants["LINE"] + constants["OW"] - 1
    assert last < constants["WINDOWS"]


def test_rejects():
    tactic = ConvWindows()
    x, weight = (1, 3, 40, 40), (16, 3, 3, 3)
    assert "TMA" in tactic.reject(conv_problem(x, weight, capability=80))
    assert "1-D" in tactic.reject(conv((1, 3, 40), (16, 3, 3)))
    assert "3-D" in tactic.reject(conv((1, 3, 4, 4, 40), (16, 3, 3, 3, 3)))
    assert "1 to 8" in tactic.reject(conv((1, 16, 40, 40), (16, 16, 3, 3)))
    assert "ungrouped" in tactic.reject(conv((1, 8, 40, 40), (16, 4, 3, 3), groups=2))
    assert "transposed" in tactic.reject(conv((1, 16, 40, 40), (16, 3, 3, 3), transposed=True))
    assert "taps" in tactic.reject(conv(x, (16, 3, 1, 1)))
    assert "dilation" in tactic.reject(conv(x, weight, dilation=2))
    assert "residual" in tactic.reject(conv(x, weight, residual=True))
    assert "float32" in tactic.reject(conv(x, weight, dtype=torch.float32))
    assert "less than 32" in tactic.reject(conv((1, 3, 40, 33), weight))
    assert "64 elements" in tactic.reject(conv((1, 8, 40, 60), (16, 8, 3, 9)))
    assert "fit" in tactic.reject(conv((1, 3, 400, 60), (16, 3, 120, 7), padding=60))
    assert "computed" in tactic.reject(replace(conv(x, weight), constants=(False,) * 5))


LARGE = {
    "resnet": conv((128, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3, activation="relu"),
    "efficientnet": conv((128, 3, 224, 224), (32, 3, 3, 3), stride=2, padding=1, activation="silu"),
    "convnext": conv((64, 3, 224, 224), (96, 3, 4, 4), stride=4),
    "vgg": conv((32, 3, 224, 224), (64, 3, 3, 3), dtype=torch.bfloat16, padding=1, activation="relu"),
}


def compile_kernels(capability: int):
    """For test_compile_targets: below 9.0 there is nothing to compile."""
    if capability < 90:
        return []
    problems = [replace(problem, multiprocessors=132) for problem in LARGE.values()]
    recipes = [ConvWindows().recipe(problem, ConvWindows().configs(problem, 0)[0]) for problem in problems]
    return [launch.kernel for recipe in recipes for launch in recipe.launches[::-1]]
