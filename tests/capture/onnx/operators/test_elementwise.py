from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ..one_node import TensorProto, check, float32, integers, normal

UNARY = ["Abs", "Neg", "Sign", "Ceil", "Floor", "Round", "Exp", "Erf", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "IsNaN", "Reciprocal"]
BINARY = ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum"]
COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]


@pytest.mark.parametrize("name", UNARY)
def test_functions(name: str, tmp_path: Path) -> None:
    check(name, [normal(3, 5, 7)], tmp_path)


@pytest.mark.parametrize("name", ["Sqrt", "Log", "Asin", "Acos", "Atanh"])
def test_functions_of_numbers_from_0_to_1(name: str, tmp_path: Path) -> None:
    check(name, [np.random.default_rng(1).random((3, 5), dtype=np.float32) * 0.98 + 0.01], tmp_path)


def test_acosh(tmp_path: Path) -> None:
    check("Acosh", [np.abs(normal(3, 5)) + 1.01], tmp_path)


def test_round_goes_to_the_even_number(tmp_path: Path) -> None:
    check("Round", [float32(-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)], tmp_path)


@pytest.mark.parametrize("name", BINARY)
def test_arithmetic_broadcasts(name: str, tmp_path: Path) -> None:
    check(name, [np.abs(normal(4, 1, 7)), normal(3, 1, seed=1)], tmp_path)


@pytest.mark.parametrize("name", BINARY + COMPARISONS)
def test_a_lone_constant(name: str, tmp_path: Path) -> None:
    check(name, [np.abs(normal(3, 7)), float32(0.75)], tmp_path, {1: float32(0.75)})


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div"])
def test_integer_arithmetic(name: str, tmp_path: Path) -> None:
    check(name, [integers(-9, 9, 5, 7), integers(1, 5, 7, seed=1)], tmp_path)


def test_integers_are_divided_towards_zero(tmp_path: Path) -> None:
    check("Div", [np.array([-7, 7, -7, 7]), np.array([2, 2, -2, -2])], tmp_path)
    check("Div", [np.array([-7, 7, -7, 7]), np.array([2])], tmp_path, {1: np.array([2])})


@pytest.mark.parametrize(("values", "fmod"), [(integers(-9, 9, 11), 0), (integers(-9, 9, 11), 1), (normal(11) * 9, 1)])
def test_modulo(values: np.ndarray, fmod: int, tmp_path: Path) -> None:
    check("Mod", [values, np.full((11,), 4, values.dtype)], tmp_path, fmod=fmod)


def test_a_power_has_the_dtype_of_its_base(tmp_path: Path) -> None:
    check("Pow", [integers(1, 6, 5, 3), float32(2.0)], tmp_path)
    check("Pow", [integers(1, 6, 5, 3), float32(2.0)], tmp_path, {1: float32(2.0)})


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str, tmp_path: Path) -> None:
    check(name, [integers(0, 3, 4, 5), integers(0, 3, 5, seed=2)], tmp_path)


@pytest.mark.parametrize("name", ["And", "Or", "Xor"])
def test_logic(name: str, tmp_path: Path) -> None:
    check(name, [integers(0, 2, 4, 5, dtype=bool), integers(0, 2, 5, dtype=bool, seed=2)], tmp_path)


def test_not(tmp_path: Path) -> None:
    check("Not", [integers(0, 2, 4, 5, dtype=bool)], tmp_path)


@pytest.mark.parametrize("name", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bits(name: str, tmp_path: Path) -> None:
    check(name, [integers(0, 99, 7, dtype=np.int32), integers(0, 99, 7, dtype=np.int32, seed=1)], tmp_path)


def test_bitwise_not_and_shift(tmp_path: Path) -> None:
    check("BitwiseNot", [integers(0, 99, 7, dtype=np.int32)], tmp_path)
    for direction in ("LEFT", "RIGHT"):
        check("BitShift", [integers(0, 20, 7, dtype=np.uint8), integers(0, 3, 7, dtype=np.uint8, seed=1)], tmp_path, direction=direction)


@pytest.mark.parametrize("to", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL])
def test_cast(to: int, tmp_path: Path) -> None:
    check("Cast", [normal(3, 5) * 3], tmp_path, to=to)


def test_cast_like(tmp_path: Path) -> None:
    check("CastLike", [normal(3, 5) * 3, integers(0, 2, 1)], tmp_path)


def test_where(tmp_path: Path) -> None:
    check("Where", [integers(0, 2, 4, 1, dtype=bool), normal(5), normal(4, 5, seed=1)], tmp_path)


@pytest.mark.parametrize("bounds", [(-0.5, 0.7), (-0.5, None), (None, 0.7), (None, None)])
@pytest.mark.parametrize("constant", [True, False])
def test_clip(bounds: tuple[float | None, float | None], constant: bool, tmp_path: Path) -> None:
    limits = [None if b is None else np.array(b, np.float32) for b in bounds]
    constants = {i + 1: limit for i, limit in enumerate(limits) if limit is not None} if constant else {}
    check("Clip", [normal(3, 5), *limits], tmp_path, constants)


def test_clip_by_attributes(tmp_path: Path) -> None:
    check("Clip", [normal(3, 5)], tmp_path, opset=9, min=-0.25, max=0.5)


@pytest.mark.parametrize(("high", "low"), [(1, 1), (1, 0), (0, 1), (0, 0)])
def test_is_inf(high: int, low: int, tmp_path: Path) -> None:
    check("IsInf", [float32(1, np.inf, -np.inf, np.nan)], tmp_path, detect_positive=high, detect_negative=low)
