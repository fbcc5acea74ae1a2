"""The tactics of torchkiln::attention against its reference."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from torchkiln.backends.cuda.recipe import Problem, TensorSpec, TorchCall
from torchkiln.backends.cuda.tactics.attention import TACTICS

from .interpret import check

FLASH, SDPA = TACTICS
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float32: 2e-6}


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """Triton's interpreter holds bfloat16 as 16-bit integers, and multiplies those in a dot: give it the numbers."""
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def numbers(x):
        if x.dtype.scalar != bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype("uint32") << 16).view("float32"), float32)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", lambda self, a, b, *rest: original(self, numbers(a), numbers(b), *rest))


def problem_of(
    b,
    h,
    s,
    t,
    d,
    e=None,
    dtype=torch.float16,
    *,
    bias=None,
    mask=None,
    causal=False,
    layout="qkv",
    constant=False,
    addend_dtype=None,
    scale=None,
    capability=80,
):
    """Views of one [B, S, 3, H, D] tensor where shapes allow ("qkv"), or dense [B, H, S, D] ("dense"), or with D not the innermost ("odd")."""
    e = e or d

    def spec(n, width):
        if layout == "qkv":
            return TensorSpec((b, h, n, width), (n * 3 * h * width, width, 3 * h * width, 1), dtype)
        if layout == "odd":
            return TensorSpec((b, h, n, width), (h * n * width + 5, n * width, 1, n), dtype)
        return TensorSpec.contiguous((b, h, n, width), dtype)

    out = TensorSpec((b, h, s, e), (s * h * e, e, h * e, 1), dtype) if layout != "dense" else TensorSpec.contiguous((b, h, s, e), dtype)
    addends = [None if shape is None else TensorSpec.contiguous(shape, addend_dtype or dtype) for shape in (bias, mask)]
    return Problem(
        "attention",
        (spec(s, d), spec(t, d), spec(t, e), *addends),
        (out,),
        {"scale": d**-0.5 if scale is None else scale, "causal": causal},
        (False, False, False, constant and bias is not None, constant and mask is not None),
        capability=capability,
    )


def tile(m, n, **more):
    return {"BLOCK_M": m, "BLOCK_N": n, "warps": 4, "stages": 2} | more


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["qkv", "dense", "odd"])
@pytest.mark.parametrize("shape", [(2, 3, 37, 37, 16), (1, 2, 19, 53, 24), (3, 1, 5, 9, 8), (1, 2, 33, 70, 80)])
def test_layouts_and_dtypes(shape, layout, dtype):
    problem = problem_of(*shape, dtype=dtype, layout=layout)
    assert FLASH.reject(problem) == ""
    for config in (tile(16, 16), tile(32, 32), FLASH.configs(problem, 0)[0]):
        check(FLASH, problem, config, TOLERANCE[dtype])


@pytest.mark.parametrize("n", [16, 32, 64])
@pytest.mark.parametrize("t", [16, 32, 48, 49, 63, 64, 65, 97])
def test_lengths_and_blocks(t, n):
    check(FLASH, problem_of(1, 1, 21, t, 16, dtype=torch.float32), tile(16, n), 2e-6)


def test_value_wider_than_key():
    check(FLASH, problem_of(1, 2, 18, 23, 16, e=40, dtype=torch.float32), tile(16, 16), 2e-6)


@pytest.mark.parametrize("scale", [-0.4, 0.0, 1.7])
@pytest.mark.parametrize("bias", [None, (1, 1, 1, 33)])
def test_scales(scale, bias):
    check(FLASH, problem_of(1, 2, 18, 33, 16, dtype=torch.float32, scale=scale, bias=bias), tile(16, 16), 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(
    ("bias", "mask"),
    [
        ((1, 3, 21, 37), None),
        (None, (2, 1, 21, 37)),
        ((1, 3, 21, 37), (2, 1, 21, 37)),
        ((4, 3, 1, 37), (2, 1, 21, 1)),
        ((1, 1, 1, 1), (4, 1, 1, 37)),
        ((2, 3, 21, 37), (4, 1, 21, 37)),
    ],
)
def test_addends(bias, mask, constant, dtype):
    problem = problem_of(4, 3, 21, 37, 16, dtype=dtype, bias=bias, mask=mask, constant=constant)
    assert FLASH.reject(problem) == ""
    for config in (tile(16, 16), tile(32, 64)):
        check(FLASH, problem, config, TOLERANCE[dtype])


def test_addends_of_another_dtype():
    check(FLASH, problem_of(2, 1, 21, 37, 16, bias=(1, 1, 21, 37), mask=(2, 1, 1, 37), addend_dtype=torch.float32), tile(16, 32), 2e-3)


def test_combined_addends():
    problem = problem_of(4, 3, 21, 37, 16, bias=(1, 3, 21, 37), mask=(2, 1, 21, 37), constant=True)
    config = next(c for c in FLASH.configs(problem, 5) if c.get("combine"))
    recipe = FLASH.recipe(problem, config)
    assert list(recipe.packed) == ["sum"]
    check(FLASH, problem, config, 2e-3)
    apart = replace(problem, constants=(False,) * 5)
    assert not any(c.get("combine") for c in FLASH.configs(apart, 5))


@pytest.mark.parametrize(("s", "t"), [(37, 37), (21, 50), (50, 21)])
@pytest.mark.parametrize("bias", [False, True])
def test_causal(s, t, bias):
    problem = problem_of(2, 2, s, t, 16, dtype=torch.float32, causal=True, bias=(1, 2, s, t) if bias else None)
    for config in (tile(16, 16), tile(32, 16), tile(16, 64)):
        check(FLASH, problem, config, 2e-6)


@pytest.mark.parametrize("block_n", [16, 64])
def test_hidden_keys(block_n):
    """A row hidden in its first blocks is right; one hidden everywhere is NaN, as in the reference."""
    from .interpret import interpret

    problem = problem_of(1, 1, 4, 50, 16, dtype=torch.float32, bias=(1, 1, 4, 50), layout="dense")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(spec.shape, generator=generator) for spec in problem.inputs[:3])
    bias = torch.zeros(1, 1, 4, 50)
    bias[..., 0, :40], bias[..., 1, 3:], bias[..., 2, :] = -math.inf, -math.inf, -math.inf
    held = interpret(FLASH.recipe(problem, tile(16, block_n)), {"x0": q, "x1": k, "x2": v, "x3": bias, "y0": torch.zeros(1, 1, 4, 16)})
    expected = torch.ops.torchkiln.attention(q, k, v, bias, None, problem.attributes["scale"], False)
    assert expected[0, 0, 2].isnan().all()
    torch.testing.assert_close(held["y0"], expected, equal_nan=True)


def test_more_programs_for_small_batches():
    def programs(batch):
        problem = problem_of(batch, 12, 197, 197, 64, capability=90)
        return FLASH.recipe(problem, FLASH.configs(problem, 0)[0]).launches[0].grid[0]

    assert programs(1) >= 132
    assert programs(64) < 64 * 12 * 8


def test_every_config_is_legal_and_level_orders_them():
    problem = problem_of(2, 2, 49, 49, 32)
    everything = FLASH.configs(problem, 5)
    assert all(everything.count(c) == 1 for c in everything)
    for level in range(5):
        assert FLASH.configs(problem, level) == everything[: len(FLASH.configs(problem, level))]
    for config in everything[:6]:
        check(FLASH, problem, config, 2e-3)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"inputs": 0, "dtype": torch.float64}, "dtype"),
        ({"inputs": 3, "dtype": torch.bool}, "bias"),
        ({"inputs": 1, "strides": (2**31, 1, 1, 1)}, "32-bit"),
    ],
)
def test_rejects(change, part):
    problem = problem_of(2, 2, 20, 20, 16, bias=(1, 1, 20, 20), layout="dense")
    inputs = list(problem.inputs)
    index = change.pop("inputs")
    inputs[index] = replace(inputs[index], **change)
    assert part in FLASH.reject(replace(problem, inputs=tuple(inputs)))


def test_rejects_wide_heads():
    assert "256" in FLASH.reject(problem_of(1, 1, 20, 20, 320))


@pytest.mark.parametrize("layout", ["qkv", "dense"])
@pytest.mark.parametrize("causal", [False, True])
def test_sdpa_calls_match_their_schemas(layout, causal):
    problem = problem_of(2, 3, 40, 40, 64, layout=layout, causal=causal)
    assert SDPA.reject(problem) == ""
    kernels = [config["kernel"] for config in SDPA.configs(problem, 5)]
    assert "flash" in kernels
    assert ("efficient" in kernels) == (layout == "qkv")  # it always gives [B, S, H, D]
    for config in SDPA.configs(problem, 5):
        call = SDPA.recipe(problem, config).launches[0]
        assert isinstance(call, TorchCall)
        operator = getattr(torch.ops.aten, call.op.split(".")[1]).default
        tensors = [torch.empty_strided(s.shape, s.strides, dtype=s.dtype, device="meta") for s in problem.inputs[:3]]
        results = operator(*tensors, *call.args[3:], **dict(call.kwargs))
        assert len(results) == len(call.results)
        assert (results[0].shape, results[0].stride()) == (problem.outputs[0].shape, problem.outputs[0].strides)


def test_sdpa_float32():
    problem = problem_of(2, 3, 40, 40, 64, dtype=torch.float32)
    assert SDPA.configs(problem, 5) == [{"kernel": "efficient"}]
    assert "tf32" in SDPA.reject(replace(problem, math="tf32"))


@pytest.mark.parametrize(
    ("problem", "part"),
    [
        (problem_of(2, 3, 40, 40, 64, bias=(1, 1, 40, 40)), "addends"),
        (problem_of(2, 3, 40, 41, 64, causal=True), "causal"),
        (problem_of(2, 3, 40, 40, 20), "16-byte"),
        (problem_of(2, 3, 40, 40, 64, e=32), "head dimensions"),
        (problem_of(2, 3, 40, 40, 64, layout="odd"), "16-byte"),
        (replace(problem_of(2, 3, 40, 40, 64), outputs=(TensorSpec.contiguous((2, 3, 40, 64), torch.float32),)), "output"),
        (
            replace(problem_of(2, 3, 40, 40, 64), outputs=(TensorSpec((2, 3, 40, 64), (3 * 40 * 64, 40 * 64, 1, 40), torch.float16),)),
            "strides",
        ),
    ],
)
def test_sdpa_rejects(problem, part):
    assert part in SDPA.reject(problem)


def _compile_cases():
    problems = [
        problem_of(1, 12, 197, 197, 64, capability=90),
        problem_of(64, 12, 197, 197, 64, capability=90),
        problem_of(2744, 3, 343, 343, 16, bias=(1, 3, 343, 343), capability=90, constant=True),
        problem_of(2744, 3, 343, 343, 16, bias=(1, 3, 343, 343), mask=(343, 1, 343, 343), capability=90, constant=True),
        problem_of(64, 3, 49, 49, 32, bias=(1, 3, 49, 49), mask=(64, 1, 49, 49), capability=90),
        problem_of(1, 8, 500, 500, 80, causal=True, capability=90),
        problem_of(1, 4, 1000, 77, 40, capability=90, layout="dense"),
    ]
    return [(FLASH, problem, FLASH.configs(problem, 0)[0]) for problem in problems] + [
        (FLASH, problems[1], tile(128, 64, warps=8, stages=3)),
        (FLASH, problems[3], tile(64, 32, warps=4)),
    ]


COMPILE_CASES = _compile_cases()
