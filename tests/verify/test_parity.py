"""compare: the figures on outputs whose distance is known, and the awkward ones: zero, NaN, infinity, integers, nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkiln.errors import UserError
from torchkiln.verify.parity import Parity, compare, is_constant

EQUAL = Parity(0.0, 0.0, 1.0)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_outputs_have_no_error():
    tensors = [draw(3, 5), draw(7), torch.arange(11), torch.tensor(True)]
    assert compare(tensors, [t.clone() for t in tensors]) == EQUAL


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-6, 0.5), size=st.integers(1, 97), seed=st.integers(0, 1000))
def test_scaling_gives_that_relative_error_and_a_cosine_of_one(scale, size, seed):
    reference = draw(size, seed=seed)
    parity = compare([reference * (1 + scale)], [reference])
    assert parity.relative_error == pytest.approx(scale, rel=1e-6)
    assert parity.max_abs_error == pytest.approx(scale * reference.abs().max().item(), rel=1e-6)
    assert parity.cosine == pytest.approx(1.0)


def test_orthogonal_and_opposite_outputs():
    reference = torch.tensor([1.0, 0.0])
    assert compare([torch.tensor([0.0, 1.0])], [reference]).cosine == 0.0
    opposite = compare([-reference], [reference])
    assert opposite.cosine == -1.0
    assert opposite.relative_error == 2.0


def test_the_worst_output_decides_each_figure():
    good, big = draw(13), draw(13, seed=1) * 1000
    parity = compare([good * 1.5, big * 1.01], [good, big])
    assert parity.relative_error == pytest.approx(0.5)
    assert parity.max_abs_error == pytest.approx(max(0.5 * good.abs().max().item(), 0.01 * big.abs().max().item()))


def test_sums_are_float64_so_that_large_halves_do_not_overflow():
    reference = torch.full((70_001,), 60_000.0, dtype=torch.float16)
    parity = compare([reference], [reference.float() * 1.001])
    assert parity.relative_error == pytest.approx(0.001 / 1.001, rel=1e-2)


def test_a_zero_reference():
    zero = torch.zeros(9)
    assert compare([torch.zeros(9)], [zero]) == EQUAL
    off = compare([torch.full((9,), 1e-30)], [zero])
    assert off.relative_error == math.inf
    assert off.max_abs_error == pytest.approx(1e-30)
    assert off.cosine == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_in_one_only_is_an_infinite_error(bad):
    reference = draw(4, 5)
    broken = reference.clone()
    broken[2, 3] = bad
    for out, ref in ((broken, reference), (reference, broken)):
        parity = compare([out], [ref])
        assert parity == Parity(math.inf, math.inf, 0.0)
        assert not parity.is_finite


@pytest.mark.parametrize("same", [math.nan, math.inf, -math.inf])
def test_the_same_value_that_is_not_finite_in_both_is_no_error(same):
    reference = draw(6)
    reference[4] = same
    assert compare([reference.clone()], [reference]) == EQUAL
    near = reference * torch.tensor([1.25, 1, 1, 1, 1, 1], dtype=torch.float64)
    finite = reference[torch.isfinite(reference)]
    assert compare([near], [reference]).relative_error == pytest.approx((0.25 * reference[0].abs() / finite.norm()).item())


def test_infinities_of_different_sign_differ():
    assert compare([torch.tensor([math.inf])], [torch.tensor([-math.inf])]).relative_error == math.inf


def test_integers_and_booleans_count_mismatches():
    reference = torch.arange(10)
    other = reference.clone()
    other[[1, 7]] += 3
    assert compare([other], [reference]) == Parity(0.2, 3.0, 1.0)
    assert compare([torch.tensor([True, False, True, True])], [torch.tensor([True, True, True, True])]).relative_error == 0.25
    # float64 holds no odd integer of this size.
    assert compare([torch.tensor([2**53 + 1])], [torch.tensor([2**53])]).relative_error == 1.0


def test_an_integer_output_against_a_floating_reference_is_a_number():
    assert compare([torch.tensor([3, 4])], [torch.tensor([3.0, 4.0])]) == EQUAL
    assert compare([torch.tensor([3, 5])], [torch.tensor([3.0, 4.0])]).relative_error == pytest.approx(0.2)


def test_complex_outputs():
    reference = torch.randn(5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert compare([reference.to(torch.complex128)], [reference]) == EQUAL
    assert compare([reference * 1.125], [reference]).relative_error == pytest.approx(0.125)
    assert compare([reference.real], [reference]).relative_error > 0


def test_nothing_to_compare():
    assert compare([], []) == EQUAL
    assert compare([torch.empty(0, 3)], [torch.empty(0, 3)]) == EQUAL


def test_scalars():
    assert compare([torch.tensor(2.0)], [torch.tensor(1.0)]).relative_error == 1.0


def test_shapes_and_counts_must_agree():
    with pytest.raises(UserError, match=r"outputs\[1\]: expected shape \(3,\), got \(1, 3\)"):
        compare([draw(2), draw(1, 3)], [draw(2), draw(3)])
    with pytest.raises(UserError, match="expected 1 outputs"):
        compare([], [draw(2)])


def test_is_constant():
    assert is_constant(torch.zeros(3, 4))
    assert is_constant(torch.full((5,), 2))
    assert not is_constant(draw(5))
    assert not is_constant(torch.tensor([1.0]))
    assert not is_constant(torch.empty(0))
