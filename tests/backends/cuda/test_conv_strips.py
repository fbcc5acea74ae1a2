"""Convolutions of stride 1 along strips of the image against the reference, on shapes that divide nothing.

Not in bf16: Triton's interpreter multiplies its bit patterns.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from tests.backends.cuda.interpret import check, interpret, make
from tests.backends.cuda.problems import conv_problem
from tests.backends.cuda.test_moments import check_moments

from torchkiln.backends.cuda.recipe import Problem, TensorSpec
from torchkiln.backends.cuda.tactics.conv_strips import ConvStrips, pack_strips

#: Several strips side by side and one below the other, and on two multiprocessors several a program.
SMALL = {"TD": 1, "TW": 16, "BN": 16, "BK": 16, "warps": 4, "turned": False, "resident": True, "programs": 2, "rows": 3, "stages": 2}
#: The ways to multiply: weights resident or not, sums turned or not, tiles of one plane or several.
WAYS = {
    "resident": SMALL,
    "two widths": {**SMALL, "BK": 32},
    "wide box": {**SMALL, "BK": 64},
    "planes": {**SMALL, "TD": 4, "TW": 4},
    "turned": {**SMALL, "turned": True, "TD": 2, "TW": 8, "BK": 32},
    "streamed": {**SMALL, "resident": False},
    "streamed, turned": {**SMALL, "resident": False, "turned": True, "TD": 2, "TW": 8, "BK": 32},
}


def conv(x, weight, **how) -> Problem:
    return replace(conv_problem(x, weight, capability=90, **how), multiprocessors=2)


def outer(problem: Problem, padding: list[int]) -> Problem:
    """The same with another padding per dimension, and the output that follows from it."""
    x, weight = problem.inputs[:2]
    assert x is not None
    assert weight is not None
    size = [n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], padding, weight.shape[2:], strict=True)]
    y = TensorSpec.contiguous((x.shape[0], weight.shape[0], *size), problem.outputs[0].dtype)
    return replace(problem, outputs=(y,), attributes={**problem.attributes, "padding": padding})


def with_moments(problem: Problem) -> Problem:
    y = problem.outputs[0]
    return replace(problem, op="conv_moments", outputs=(y, TensorSpec.contiguous((y.shape[0], 2, y.shape[1]), torch.float32)))


def for_interpreter(problem: Problem) -> Problem:
    """It cannot follow programmatic launch (compute capability 9.0)."""
    assert ConvStrips().reject(problem) == ""
    return replace(problem, capability=80)


def compute(problem: Problem, config: dict) -> None:
    check(ConvStrips(), for_interpreter(problem), config, 2e-3)


def wider(spec: TensorSpec, factor: int = 2) -> TensorSpec:
    """As the first channels of a tensor of ``factor`` times as many."""
    return TensorSpec(spec.shape, tuple(s if d == 1 else factor * s for d, s in enumerate(spec.strides)), spec.dtype)


CASES = {
    "3x3": conv((2, 48, 5, 7), (24, 48, 3, 3), padding=1, activation="silu"),
    "3x3 no padding": conv((2, 24, 6, 19), (18, 24, 3, 3), activation="relu"),
    "3x3 no bias": conv((1, 16, 4, 18), (16, 16, 3, 3), padding=1, bias=False),
    "3x3 residual": conv((2, 40, 4, 17), (20, 40, 3, 3), padding=1, residual=True, activation="leaky_relu", alpha=0.1),
    "3x3 wide padding": conv((1, 16, 3, 5), (8, 16, 3, 3), padding=2),
    "5x5": conv((1, 24, 7, 8), (12, 24, 5, 5), padding=2, activation="gelu"),
    "2x2": conv((1, 16, 5, 6), (20, 16, 2, 2)),
    "3x1": outer(conv((2, 24, 6, 7), (8, 24, 3, 1)), [1, 0]),
    "3x5, padding per dimension": outer(conv((2, 16, 6, 7), (8, 16, 3, 5)), [0, 2]),
    "3-D": conv((1, 24, 3, 4, 6), (12, 24, 3, 3, 3), padding=1, activation="relu"),
    "3-D residual": conv((2, 16, 2, 3, 9), (10, 16, 3, 3, 3), padding=1, residual=True),
    "3-D padding per dimension": outer(conv((2, 24, 2, 4, 5), (8, 24, 2, 3, 3)), [2, 0, 1]),
    "3-D without taps across planes": outer(conv((2, 16, 3, 4, 5), (8, 16, 1, 3, 3)), [1, 1, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_conv_strips(name):
    compute(CASES[name], SMALL)


@pytest.mark.parametrize("way", list(WAYS)[1:])
@pytest.mark.parametrize("name", ["3x5, padding per dimension", "3-D residual"])
def test_ways_to_multiply(name, way):
    compute(CASES[name], WAYS[way])


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("programs", [1, 50])
def test_strips(rows, programs):
    """One to a program or all to two, the last of a column shorter than the others or not."""
    compute(CASES["3x3 no padding"], {**SMALL, "rows": rows, "programs": programs})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["3x3", "3-D residual"])
def test_moments(name, way):
    config = WAYS[way]
    if len(CASES[name].outputs[0].shape) == 4:
        config = {**config, "TD": 1, "TW": 16}  # a tile has positions of one image
    both = for_interpreter(with_moments(CASES[name]))
    check_moments(*check(ConvStrips(), both, config, 2e-3))


def test_moments_far_from_zero():
    """A mean of many deviations takes nothing from the variance."""
    both = for_interpreter(with_moments(CASES["3x3"]))
    generator = torch.Generator().manual_seed(0)
    inputs = {f"x{i}": make(spec, generator) for i, spec in enumerate(both.inputs) if spec is not None}
    inputs["x2"] += 500
    outputs = {f"y{i}": make(spec, generator, fill=float("nan")) for i, spec in enumerate(both.outputs)}
    held = interpret(ConvStrips().recipe(both, SMALL), inputs | outputs)
    check_moments(held["y0"], held["y1"])


@pytest.mark.parametrize("op", ["conv", "conv_moments"])
@pytest.mark.parametrize("name", ["3x3 residual", "3-D"])
def test_every_config_computes_the_same(name, op):
    problem = CASES[name] if op == "conv" else with_moments(CASES[name])
    found = ConvStrips().configs(problem, 5)
    assert {(config["turned"], config["resident"]) for config in found} >= {(False, True), (True, True), (True, False)}
    if op == "conv_moments" and name == "3x3 residual":
        assert {config["TD"] for config in found} == {1}
    for config in found[::21]:
        compute(problem, config)


@pytest.mark.parametrize("way", ["two widths", "turned", "streamed"])
def test_operands_in_wider_tensors(way):
    """The input as the first channels of a tensor, an odd number of them too; the output likewise, contiguous, and in float32."""
    problem = conv((2, 20, 4, 9), (24, 20, 3, 3), padding=1, residual=True)
    x, y, residual = problem.inputs[0], problem.outputs[0], problem.inputs[3]
    assert x is not None
    assert residual is not None
    apart = wider(conv((2, 24, 4, 9), (24, 24, 3, 3)).inputs[0])  # type: ignore[arg-type]
    apart = replace(apart, shape=x.shape)
    for out in (wider(y), TensorSpec.contiguous(y.shape, y.dtype), TensorSpec.contiguous(y.shape, torch.float32)):
        inputs = (apart, *problem.inputs[1:3], wider(residual, 3), None)
        compute(replace(problem, inputs=inputs, outputs=(out,)), WAYS[way])


@pytest.mark.parametrize("boxes", [True, False])
def test_nothing_is_written_beside_the_output(boxes):
    problem = for_interpreter(CASES["3x3 no padding"])
    y = wider(problem.outputs[0]) if boxes else TensorSpec.contiguous(problem.outputs[0].shape, torch.float16)
    if boxes:  # columns, 18 of them, do not lie at multiples of 16 bytes otherwise
        y = TensorSpec(y.shape, (10 * 19 * 80, 1, 19 * 80, 80), y.dtype)
    problem = replace(problem, outputs=(y,))
    recipe = ConvStrips().recipe(problem, SMALL)
    assert dict(recipe.launches[0].kernel.constants)["BOXES"] is boxes  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    operands = {f"x{i}": make(spec, generator) for i, spec in enumerate(problem.inputs) if spec is not None}
    buffer = torch.full((y.span + 4000,), 7.0, dtype=torch.float16)
    operands["y0"] = buffer.as_strided(y.shape, y.strides, 2000)
    written = torch.zeros(buffer.shape, dtype=torch.bool)
    written.as_strided(y.shape, y.strides, 2000).fill_(True)
    interpret(recipe, operands)
    assert (buffer[~written] == 7).all()
    assert not (buffer[written] == 7).all()


@pytest.mark.parametrize("way", ["planes", "turned", "streamed"])
def test_what_is_not_finite_stays_in_its_neighbourhood(way):
    problem = for_interpreter(CASES["3-D"])
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (make(spec, generator) for spec in problem.inputs[:3] if spec is not None)
    x[0, 1, 0, 2, 3] = float("nan")
    y = make(problem.outputs[0], generator, fill=5.0)
    y = interpret(ConvStrips().recipe(problem, WAYS[way]), {"x0": x, "x1": weight, "x2": bias, "y0": y})["y0"]
    spoiled = y.isnan()
    near = torch.zeros_like(spoiled)
    near[:, :, 0:2, 1:4, 2:5] = True
    # The activation is relu, which keeps a NaN.
    assert torch.equal(spoiled, near)


@pytest.mark.parametrize(("width", "blocks", "tail"), [(16, 3, 0), (32, 1, 16), (64, 1, 0)])
def test_pack_strips(width, blocks, tail):
    weight = torch.randn(20, 44, 2, 3, 4)
    packed = pack_strips(weight, width, blocks, tail, 16)
    assert packed.numel() == 2 * 4 * 3 * 32 * (width * blocks + tail)
    main = packed[: 2 * 4 * blocks * 3 * 32 * width].reshape(2, 4, blocks, 3, 32, width)
    assert main[1, 3, blocks - 1, 2, 19, 5] == weight[19, (blocks - 1) * width + 5, 1, 2, 3]
    assert not main[..., 20:, :].any()
    behind = packed[main.numel() :].reshape(2, 4, 3, 32, tail)
    if tail:
        assert behind[1, 2, 0, 7, 3] == weight[7, 35, 1, 0, 2]
        assert not behind[..., 12:].any()


def large(x, weight, *, moments=False, **how) -> Problem:
    problem = replace(conv(x, weight, padding=1, **how), multiprocessors=132)
    return with_moments(problem) if moments else problem


LARGE = {
    "unet": large((1, 32, 512, 512), (32, 32, 3, 3), moments=True),
    "unet, both": large((1, 64, 512, 512), (32, 64, 3, 3)),
    "resnet": large((128, 64, 56, 56), (64, 64, 3, 3), activation="relu", residual=True),
    "swin": large((1, 48, 96, 96, 96), (48, 48, 3, 3, 3), moments=True),
    "swin, both": large((1, 96, 96, 96, 96), (48, 96, 3, 3, 3), dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", LARGE)
def test_configs_are_few_and_more_with_effort(name):
    problem = LARGE[name]
    assert ConvStrips().reject(problem) == ""
    assert [len(ConvStrips().configs(problem, level)) for level in range(6)] == [1, 3, 8, 16, 32, 64]
    assert ConvStrips().configs(problem, 5)[:8] == ConvStrips().configs(problem, 2)
    for config in ConvStrips().configs(problem, 5):
        pickle.dumps(ConvStrips().recipe(problem, config))


def test_strides_are_those_the_accelerator_takes():
    """Of dimensions of one element too, whose own mean nothing."""
    for problem in (conv((1, 24, 9, 1), (24, 24, 3, 3), padding=1), conv((3, 24, 9, 20), (24, 24, 3, 3), padding=1)):
        x, y = problem.inputs[0], problem.outputs[0]
        assert x is not None
        odd = [replace(spec, strides=tuple(s if n > 1 else 7 for n, s in zip(spec.shape, spec.strides, strict=True))) for spec in (x, y)]
        both = replace(problem, inputs=(odd[0], *problem.inputs[1:]), outputs=(odd[1],))
        launch = ConvStrips().recipe(for_interpreter(both), SMALL).launches[0]
        constants = dict(launch.kernel.constants)  # type: ignore[union-attr]
        assert constants["BOXES"]
        assert all(constants[tensor + axis] > 0 and constants[tensor + axis] % 8 == 0 for tensor in "XY" for axis in "NDHW")
        compute(both, SMALL)


def test_few_steps_are_left_to_others():
    problem = replace(conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1), multiprocessors=132)
    assert [len(ConvStrips().configs(problem, level)) for level in range(6)] == [0, 0, 0, 0, 0, 64]


def test_rejects():
    tactic = ConvStrips()
    x, weight = (1, 16, 20, 40), (16, 16, 3, 3)
    assert "TMA" in tactic.reject(conv_problem(x, weight, capability=80))
    assert "1-D" in tactic.reject(conv((1, 16, 40), (16, 16, 3)))
    assert "16 to 256" in tactic.reject(conv((1, 8, 40, 40), (16, 8, 3, 3)))
    assert "ungrouped" in tactic.reject(conv((1, 32, 40, 40), (32, 16, 3, 3), groups=2))
    assert "transposed" in tactic.reject(conv(x, weight, transposed=True))
    assert "stride 1" in tactic.reject(conv(x, weight, stride=2))
    assert "dilation 1" in tactic.reject(conv(x, weight, dilation=2))
    assert "taps" in tactic.reject(conv(x, (16, 16, 1, 3)))
    assert "taps" in tactic.reject(conv(x, (16, 16, 7, 7)))
    assert "scale" in tactic.reject(conv(x, weight, scale=True))
    assert "float32" in tactic.reject(conv(x, weight, dtype=torch.float32))
    assert "float32" in tactic.reject(conv(x, weight, x_dtype=torch.float32))
    assert "16 bytes" in tactic.reject(conv((1, 20, 20, 40), (16, 20, 3, 3)))
    assert "next to each other" in tactic.reject(conv(x, weight, channels_last=False))
    assert "empty" in tactic.reject(conv((0, 16, 20, 40), weight))
    assert "moments of nothing" in tactic.reject(with_moments(conv((0, 16, 20, 40), weight)))
    assert "computed" in tactic.reject(replace(conv(x, weight), constants=(False,) * 5))


def compile_kernels(capability: int):
    """For test_compile_targets: below 9.0 there is nothing to compile."""
    if capability < 90:
        return []
    firsts = [(problem, ConvStrips().configs(problem, 5)) for problem in LARGE.values()]
    chosen = [(problem, config) for problem, found in firsts for config in (found[0], *_one_each(found))]
    return list(dict.fromkeys(ConvStrips().recipe(problem, config).launches[0].kernel for problem, config in chosen))  # type: ignore[union-attr]


def _one_each(found: list[dict]) -> list[dict]:
    """The first of each way to multiply."""
    ways = {(config["turned"], config["resident"], config["TD"] > 1): config for config in reversed(found)}
    return list(ways.values())
