"""Every pointwise expression against torch, under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from .pointwise_cases import agree, run_function

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32, torch.float64)
INTS = (torch.int64, torch.int32, torch.uint8, torch.int8)

UNARY = {
    "neg": lambda x: -x,
    "abs": torch.abs,
    "relu": torch.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.5, 0.75),
    "clamp_low": lambda x: x.clamp(min=-0.5),
    "clamp_high": lambda x: x.clamp(max=0.5),
    "clamp_min": lambda x: aten.clamp_min.default(x, 0.1),
    "clamp_max": lambda x: aten.clamp_max.default(x, 0.1),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": lambda x: aten.elu.default(x, 1.5, 1.1, 0.7),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "softplus": lambda x: F.softplus(x, 2.0, 3.0),
    "tanh": torch.tanh,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "round": torch.round,
    "sign": torch.sign,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "inverse": lambda x: x**-1,
    "power_-2": lambda x: x**-2,
    "power_0": lambda x: x**0,
    "reciprocal": torch.reciprocal,
    "add_scalar": lambda x: x + 0.3,
    "add_alpha": lambda x: torch.add(x, 3, alpha=0.3),
    "rsub": lambda x: 1 - x,
    "mul_scalar": lambda x: x * 0.3,
    "div_scalar": lambda x: x / 0.3,
    "masked": lambda x: x.masked_fill(x > 0.1, float("-inf")),
    "where_scalar": lambda x: torch.where(x > 0.1, x, 0.0),
    "full": lambda x: x + torch.full((), 2.0, dtype=x.dtype),
}
POSITIVE = {
    "log": torch.log,
    "log2": torch.log2,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "half_power": lambda x: x**0.5,
    "minus_half_power": lambda x: x**-0.5,
}
BINARY = {
    "add": torch.add,
    "add_alpha": lambda x, y: torch.add(x, y, alpha=2),
    "sub": torch.sub,
    "sub_alpha": lambda x, y: torch.sub(x, y, alpha=3),
    "rsub_alpha": lambda x, y: torch.rsub(x, y, alpha=2),
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": lambda x, y: torch.where(x < y, x, y * 2),
    "clamp": lambda x, y: torch.clamp(x, y, y + 1),
    "div": torch.div,
}


def values(dtype, shape=(3, 5, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if not dtype.is_floating_point:
        return torch.randint(0 if dtype == torch.uint8 else -9, 10, shape, generator=generator).to(dtype)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    special = torch.tensor([0.0, 0.5, -1.5, 2.5, 1e-4, -1e-4], dtype=torch.float64)[: x.numel()]
    x.view(-1)[: special.numel()] = special
    return x.to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_unary(name, dtype):
    agree(UNARY[name], [values(dtype)])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", POSITIVE)
def test_positive(name, dtype):
    agree(POSITIVE[name], [values(dtype).abs() + 0.01])


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS], ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name, dtype):
    x, y = values(dtype), values(dtype, seed=1)
    agree(BINARY[name], [x, y.abs() + 1 if name == "div" else y])


@pytest.mark.parametrize(
    "pair", [(torch.float16, torch.float32), (torch.int64, torch.float16), (torch.uint8, torch.int32), (torch.bool, torch.int64)], ids=str
)
def test_promotion(pair):
    x, y = values(pair[0]), values(pair[1], seed=1)
    agree(lambda x, y: x + y * 2, [x, y])
    agree(lambda x, y: torch.where(x > y, x, y), [x, y])
    agree(lambda x, y: (x == y) | (x <= y), [x, y])
    agree(lambda x, y: x / (y.abs() + 1), [x, y])


@pytest.mark.parametrize("dtype", INTS, ids=str)
def test_integers(dtype):
    x, y = values(dtype), values(dtype, seed=1)
    y = torch.where(y == 0, torch.ones_like(y), y)
    for mode in ("floor", "trunc"):
        agree(lambda x, y, mode=mode: torch.div(x, y, rounding_mode=mode), [x, y])
    agree(torch.remainder, [x, y])
    agree(torch.fmod, [x, y])
    agree(torch.floor_divide, [x, y])
    agree(lambda x: x**3, [x])
    agree(lambda x: x.clamp(1, 4).relu(), [x])
    agree(lambda x: ~x & 6 | 1 ^ x, [x])
    agree(lambda x: -x.abs() * 3, [x])
    agree(lambda x: torch.sign(x), [x])
    agree(lambda x: torch.sqrt(x.abs()), [x])
    agree(lambda x: x > 0.5, [x])
    agree(lambda x: x * 5 if x.dtype == torch.uint8 else x * 100, [x])  # wraps around


def test_large_integers_are_exact():
    x = torch.tensor([2**62 + 1, -(2**53) - 1, 2**31, -(2**31) - 1, 7])
    agree(lambda x: (x + 2**40) * 3 - 1, [x])
    agree(lambda x: torch.where(x > 2**53, x, -x), [x])
    agree(lambda x: x == 2**62 + 1, [x])


def test_booleans():
    x, y = values(torch.bool), values(torch.bool, seed=1)
    for function in (
        torch.logical_and, torch.logical_or, torch.logical_xor, torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor,
        torch.add, torch.mul, torch.maximum, torch.minimum, torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge,
    ):  # fmt: skip
        agree(function, [x, y])
    agree(torch.logical_not, [x])
    agree(lambda x: ~x, [x])
    agree(lambda x, y: torch.where(x, y, ~y), [x, y])
    agree(lambda x: x.to(torch.int8) - 1, [x])
    agree(lambda x: x.half() * 3, [x])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logic_of_floats(dtype):
    x, y = values(dtype), values(dtype, seed=1)
    for function in (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.logical_and, torch.logical_or):
        agree(function, [x, y])
        agree(function, [x, x.clone()])
    agree(lambda x: x == 0.1, [torch.tensor([0.1, 0.2, 0.1001], dtype=dtype)])
    agree(lambda x: x + 1e-4 > 1, [torch.ones(5, dtype=dtype)])  # rounded before it is compared
    agree(torch.logical_not, [x])


@pytest.mark.parametrize("source", [*FLOATS, *INTS, torch.bool], ids=str)
@pytest.mark.parametrize("target", [*FLOATS, torch.int64, torch.int8, torch.bool], ids=str)
def test_conversions(source, target):
    agree(lambda x: x.to(target, copy=True), [values(source)])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_not_a_number_and_infinities(dtype):
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0, -100.0, 100.0], dtype=dtype)
    y = torch.tensor([1.0, float("nan"), 2.0, float("-inf"), 1.0, 1.0], dtype=dtype)
    for function in (
        torch.relu,
        F.relu6,
        torch.isnan,
        torch.isinf,
        torch.sigmoid,
        torch.tanh,
        F.softplus,
        F.elu,
        torch.round,
        F.leaky_relu,
        torch.sqrt,
    ):
        agree(function, [x])
    for function in (F.silu, F.gelu, F.mish, F.hardswish, lambda x: F.gelu(x, approximate="tanh")):
        agree(function, [x[[0, 1, 3, 4, 5]]])
    for function in (torch.maximum, torch.minimum, lambda x, y: x.clamp(y, y + 1)):
        agree(function, [x, y])
    agree(lambda x: x.clamp(-3, 3), [x])


def test_gelu_of_halves_is_as_exact_as_a_half():
    x = torch.linspace(-8, 8, 4001)
    expected = F.gelu(x.double())
    got = run_function(lambda x: F.gelu(x), [x.half()])[0].double()
    expected = F.gelu(x.half().double())
    assert ((got - expected).abs() <= 6e-4 * expected.abs() + 6e-8).all()


def test_prelu():
    x = values(torch.float16, (2, 5, 3, 4))
    agree(lambda x, w: aten.prelu.default(x, w), [x, values(torch.float16, (5,))])
    agree(lambda x, w: aten.prelu.default(x, w), [x, torch.tensor([0.2], dtype=torch.float16)])
    agree(lambda x, w: aten.prelu.default(x, w) + w.sum(), [values(torch.float32, (6, 5)), values(torch.float32, (5,))])
    agree(lambda x, w: aten.prelu.default(x, w[:4]) + w, [values(torch.float32, (2, 4, 4)), values(torch.float32, (4,))])
    agree(lambda x, w: F.prelu(x, w), [x, values(torch.float16, (5,))])
