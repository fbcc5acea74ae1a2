"""summarize: known samples, known figures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkiln.bench.statistics import summarize


def test_known_samples():
    latency = summarize([n * 1_000_000 for n in range(101, 0, -1)])
    assert (latency.min, latency.mean, latency.median, latency.max) == (1, 51, 51, 101)
    assert (latency.p90, latency.p95, latency.p99) == (91, 96, 100)


def test_percentiles_interpolate():
    latency = summarize([1_000_000, 2_000_000])
    assert latency.median == 1.5
    assert latency.p90 == pytest.approx(1.9)


def test_one_sample():
    latency = summarize([250_000])
    assert {latency.min, latency.mean, latency.median, latency.p90, latency.p99, latency.max} == {0.25}


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=60))
def test_the_figures_are_ordered_and_scale_free(samples):
    latency = summarize(samples)
    assert latency.min <= latency.median <= latency.p90 <= latency.p95 <= latency.p99 <= latency.max
    assert latency.median == pytest.approx(np.median(samples) / 1e6)
