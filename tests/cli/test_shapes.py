"""Shape options -> Inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchkiln.cli.shapes import parse_inputs, parse_shape
from torchkiln.dtypes import DTYPES
from torchkiln.errors import UserError
from torchkiln.inputs import Input

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
SHAPES = st.lists(st.integers(0, 5000), min_size=1, max_size=6)


@given(name=st.one_of(st.just(""), NAMES), shape=SHAPES, dtype=st.one_of(st.none(), st.sampled_from(sorted(DTYPES))))
def test_what_is_written_is_what_is_read(name: str, shape: list[int], dtype: str | None) -> None:
    text = (f"{name}:" if name else "") + "x".join(map(str, shape)) + (f"@{dtype}" if dtype else "")
    spec = parse_shape(text)
    assert (spec.name, spec.shape, spec.dtype) == (name, tuple(shape), DTYPES[dtype] if dtype else None)


def test_several_inputs_keep_their_order() -> None:
    inputs = parse_inputs(["ids:1x128@int64", "mask:1x128@bool", "step:scalar@fp32"])
    assert inputs == [
        Input((1, 128), dtype=torch.int64, name="ids"),
        Input((1, 128), dtype=torch.bool, name="mask"),
        Input((), dtype=torch.float32, name="step"),
    ]
    assert parse_inputs([]) == []


def test_an_input_without_a_dtype_takes_any_floating_one() -> None:
    assert [i.any_float for i in parse_inputs(["x:1x3", "y:1x3@fp32"])] == [True, False]
    (ranged,) = parse_inputs([], ["1x3"], ["2x3"], ["7x3"])
    assert (ranged.any_float, ranged.dtype) == (True, torch.float32)


def test_ranges_by_position_and_by_name() -> None:
    assert parse_inputs([], ["1x3"], ["2x3"], ["7x3@bfloat16"]) == [Input(min_shape=(1, 3), opt_shape=(2, 3), max_shape=(7, 3), dtype=torch.bfloat16)]
    fixed, a, b = parse_inputs(["c:5"], ["a:1x3", "b:2"], ["b:3", "a:2x3"], ["a:4x3", "b:9"])
    assert (fixed.name, a.name, b.name) == ("c", "a", "b")
    assert (a.min_shape, a.opt_shape, a.max_shape) == ((1, 3), (2, 3), (4, 3))
    assert (b.min_shape, b.opt_shape, b.max_shape) == ((2,), (3,), (9,))


@pytest.mark.parametrize("text", ["", "1,3,224", "1x", "x3", "a b:1x2", "1x-3", "1x3@", "ids:", "1*3", ":1x3"])
def test_malformed_shapes(text: str) -> None:
    with pytest.raises(UserError, match="expected sizes joined by x"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ((["1x3@flt32"],), "unknown dtype 'flt32'"),
        (([], ["1x3"], ["2x3"], []), r"got 1, 1 and 0"),
        (([], ["a:1x3"], ["b:2x3"], ["a:3x3"]), "no --opt-shape of that name"),
        (([], ["1x3@int64"], ["2x3@int32"], ["3x3"]), "differ in dtype"),
        (([], ["1x3"], ["a:2x3"], ["3x3"]), "differ in name"),
        (([], ["5x3"], ["2x3"], ["3x3"]), "min <= opt <= max"),
        ((["a:1", "2"],), "has no name"),
        ((["a:1", "a:2"],), "2 times"),
        ((["1x3"], ["1x3"], ["2x3"], ["3x3"]), "name every input"),
    ],
)
def test_shapes_that_contradict(shapes: tuple[list[str], ...], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_inputs(*shapes)
