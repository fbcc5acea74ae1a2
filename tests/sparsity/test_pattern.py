"""2:4 in weights: what is pruned, and whether the pattern is there."""

from __future__ import annotations

import itertools

import pytest
import torch

from torchkiln.sparsity.pattern import choose_pruned, is_two_of_four, zero_share


def pruned(weight):
    return weight.masked_fill(choose_pruned(weight), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4), (5, 12), (7, 8, 3), (2, 12, 3, 5), (3, 4, 2, 1, 3)])
def test_the_largest_two_of_every_four_input_channels_stay(shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = pruned(weight)
    for place in itertools.product(*(range(size) for dim, size in enumerate(shape) if dim != 1)):
        row, kernel = place[0], place[1:]
        values, kept = weight[(row, slice(None), *kernel)], found[(row, slice(None), *kernel)]
        for start in range(0, shape[1], 4):
            group = values[start : start + 4].abs().tolist()
            least = sorted(group)[2]  # of equal ones either may stay
            survivors = kept[start : start + 4]
            assert int((survivors != 0).sum()) == 2
            assert survivors[survivors != 0].abs().min() >= least
    assert found.dtype == dtype
    assert is_two_of_four(found)
    assert not is_two_of_four(weight)
    assert zero_share(found) == 0.5


def test_equal_values_keep_two():
    assert pruned(torch.ones(2, 8)).sum() == 8
    assert pruned(torch.zeros(2, 8)).sum() == 0


def test_what_is_not_a_number_stays():
    weight = torch.tensor([[1.0, torch.nan, 2.0, torch.inf]])
    assert choose_pruned(weight).tolist() == [[True, False, True, False]]


def test_channels_last_and_transposed_memory():
    weight = torch.randn(6, 8, 3, 3)
    expected = choose_pruned(weight)
    assert torch.equal(choose_pruned(weight.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(choose_pruned(weight[:, :, 0, 0].t().contiguous().t()), expected[:, :, 0, 0])


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ([[0, 1, 0, 2]], True),
        ([[0, 0, 0, 2]], True),
        ([[0, 1, 3, 2]], False),
        ([[1, 2, 0, 0, 0, 0, 3, 4]], True),
        ([[0, 1, 2, 0], [1, 2, 3, 0]], False),
        ([[0, 1, 0]], False),
        ([0, 1, 0, 2], False),
        ([[torch.nan, 1, 2, 0]], False),
        ([[-0.0, 1, 2, 0.0]], True),
    ],
)
def test_is_two_of_four(weight, expected):
    assert is_two_of_four(torch.tensor(weight, dtype=torch.float32)) is expected


def test_groups_run_along_the_input_channels_and_not_along_the_kernel():
    weight = torch.zeros(1, 4, 2, 2)
    weight[:, :2] = 1
    assert is_two_of_four(weight)
    turned = torch.zeros(1, 4, 2, 2)
    turned[..., 0] = 1  # half of the kernel's places, all of the channels
    assert not is_two_of_four(turned)


def test_the_pattern_outlives_a_conversion_to_half():
    weight = pruned(torch.randn(16, 32))
    assert is_two_of_four(weight.half())
    assert is_two_of_four(weight.bfloat16())
    tiny = torch.tensor([[1e-9, 1.0, 1.0, 1.0]])
    assert not is_two_of_four(tiny)
    assert not is_two_of_four(tiny.half())


def test_an_empty_weight_has_no_pattern():
    assert not is_two_of_four(torch.empty(0, 4))
    assert not is_two_of_four(torch.empty(3, 0))
    assert zero_share(torch.empty(0, 4)) == 0
