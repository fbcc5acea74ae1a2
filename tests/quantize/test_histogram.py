"""Histogram and the four ways to choose a range, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torchkiln.errors import UserError
from torchkiln.quantize.choose_amax import LEVELS, choose_amax, divergence, smooth
from torchkiln.quantize.histogram import BINS, Histogram


def histogram_of(*tensors: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for tensor in tensors:
        histogram.add(tensor)
    return histogram


def test_counts_every_value_where_it_is():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 17, generator=generator) * factor for factor in (0.1, 5.0, 1.0, 40.0)]
    found = histogram_of(*parts)
    values = torch.cat([p.flatten() for p in parts])
    assert (found.low, found.high, found.batches) == (values.min().item(), values.max().item(), 4)
    assert found.amax == values.abs().max().item() <= found.limit
    assert found.counts.sum() == values.numel()
    edges = np.linspace(0, found.limit, BINS + 1)
    expected, _ = np.histogram(values.abs().double().numpy(), edges)
    # A value next to an edge may be counted on its other side: joined bins and float32 arithmetic.
    assert np.abs(np.cumsum(found.counts.numpy()) - np.cumsum(expected)).max() <= 2


def test_zeros_before_and_after_anything_else():
    found = histogram_of(torch.zeros(5), torch.zeros(2, 0), torch.tensor([0.5, -2.0]), torch.zeros(3))
    assert found.amax == 2.0
    assert found.counts[0] == 8
    assert found.counts.sum() == 10
    assert (histogram_of(torch.zeros(5)).limit, choose_amax(histogram_of(torch.zeros(5)), "entropy")) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_what_is_not_finite(bad):
    with pytest.raises(UserError, match="NaN or infinity"):
        histogram_of(torch.tensor([1.0, bad]))


def test_max_is_the_largest_magnitude():
    assert choose_amax(histogram_of(torch.tensor([0.25, -3.5]), torch.tensor([1.0])), "max") == 3.5


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 100.0])
def test_percentile_is_numpy_s(percentile):
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).exp()
    found = choose_amax(histogram_of(values), "percentile", percentile)
    expected = np.percentile(values.numpy(), percentile)
    assert found == pytest.approx(expected, abs=2 * values.max().item() / BINS)


def test_mse_is_the_best_of_all_ranges():
    values = torch.cat([torch.randn(5_000, generator=torch.Generator().manual_seed(2)), torch.tensor([30.0])])
    found = choose_amax(histogram_of(values), "mse")

    def error(amax: float) -> float:
        scale = amax / (LEVELS - 1)
        return ((values / scale).round().clamp(-LEVELS + 1, LEVELS - 1) * scale - values).square().mean().item()

    best = min(error(amax) for amax in np.linspace(0.5, 30.0, 600))
    assert error(found) <= best * 1.05
    assert found < 30.0
    assert error(found) < error(30.0)


def test_entropy_is_the_best_of_all_ranges():
    values = torch.cat([torch.randn(20_000, generator=torch.Generator().manual_seed(3)), torch.full((3,), 25.0)])
    histogram = histogram_of(values)
    bins = choose_amax(histogram, "entropy") / histogram.bin_width
    counts = smooth(histogram.counts.numpy())
    best = min(slow_divergence(counts, b) for b in range(LEVELS, BINS + 1, 16))
    assert slow_divergence(counts, round(bins)) <= best * 1.02 + 1e-9
    assert choose_amax(histogram, "entropy") < 25.0


def test_entropy_is_not_led_by_a_value_that_occurs_often():
    generator = torch.Generator().manual_seed(4)
    spread, often = torch.randn(20_000, generator=generator), torch.full((40_000,), 0.7)
    assert choose_amax(histogram_of(spread, often), "entropy") > 2.0


def test_smoothing_is_a_mean_of_the_bins_around():
    counts = np.random.default_rng(0).poisson(5.0, BINS).astype(np.float64)
    own = counts.copy()
    own[0] = own[1]
    found = smooth(counts)
    mirrored = lambda b: own[-1 - b] if b < 0 else own[b] if b < BINS else 0.0  # noqa: E731
    for b in (0, 1, 7, 8, 100, BINS - 8, BINS - 1):
        assert found[b] == pytest.approx(np.mean([mirrored(c) for c in range(b - 8, b + 8)]))


def slow_divergence(counts: np.ndarray, bins: int) -> float:
    """The definition, bin by bin."""
    true = list(counts[:bins])
    true[-1] += counts[bins:].sum()
    rounded = [0.0] * bins
    for level in range(LEVELS):
        own = [b for b in range(bins) if b * LEVELS // bins == level and counts[b] > 0]
        for b in own:
            rounded[b] = sum(counts[b] for b in own) / len(own)
    total, total_rounded = sum(true), sum(rounded)
    terms = [p / total * math.log(p / total / max(q / total_rounded, np.finfo(np.float64).tiny)) for p, q in zip(true, rounded, strict=True) if p > 0]
    return sum(terms)


@pytest.mark.parametrize("bins", [128, 129, 300, 1000, 2048])
def test_divergence_is_its_definition(bins):
    counts = np.random.default_rng(bins).poisson(2.0, BINS).astype(np.float64)
    assert divergence(counts, bins) == pytest.approx(slow_divergence(counts, bins), rel=1e-9)


def test_unknown_algorithms_and_percentiles():
    for algorithm, percentile in (("median", 99.0), ("percentile", 0), ("percentile", 100.5), ("percentile", True)):
        with pytest.raises(UserError):
            choose_amax(histogram_of(torch.ones(3)), algorithm, percentile)
