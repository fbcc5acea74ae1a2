"""choose_amax: from a histogram, the magnitude that the largest integer of a symmetric int8 stands for. Values beyond it are clipped.

A smaller one clips more values and rounds the others more finely. Four ways to choose:

* max: nothing is clipped.
* percentile: so much of the values, in percent, is not clipped.
* mse: the smallest mean of squared errors, clipped values included.
* entropy: the smallest Kullback-Leibler divergence of the rounded distribution from the true one, as in TensorRT (S. Migacz, "8-bit Inference with
  TensorRT", GTC 2017), of a smoothed histogram.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .histogram import BINS, Histogram

ALGORITHMS = ("entropy", "max", "percentile", "mse")
#: Magnitudes of a symmetric int8: 0 to 127.
LEVELS = 128
#: Bins between two candidates of ``mse`` and ``entropy``: 0.4 % of the range.
STRIDE = 8
DEFAULT_PERCENTILE = 99.99

Counts = NDArray[np.float64]


def choose_amax(histogram: Histogram, algorithm: str, percentile: float = DEFAULT_PERCENTILE) -> float:
    """The magnitude of the largest integer, at most the histogram's own largest; 0.0 for a tensor of zeros. Raises UserError."""
    check_algorithm(algorithm, percentile)
    if histogram.limit == 0.0:
        return 0.0
    if algorithm == "max":
        return histogram.amax
    counts = histogram.counts.numpy()
    if algorithm == "percentile":
        bins = _bins_by_percentile(counts, percentile)
    elif algorithm == "mse":
        bins = _bins_by_mse(counts)
    else:
        bins = _bins_by_entropy(counts)
    return min(bins * histogram.bin_width, histogram.amax)


def check_algorithm(algorithm: str, percentile: float) -> None:
    """Raises UserError for an unknown algorithm and for a percentile that is none."""
    if algorithm not in ALGORITHMS:
        raise UserError(f"algorithm: expected one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    if isinstance(percentile, bool) or not isinstance(percentile, (int, float)) or not 0 < percentile <= 100:
        raise UserError(f"percentile: expected a number above 0 and up to 100, got {percentile!r}")


def _bins_by_percentile(counts: Counts, percentile: float) -> float:
    """So many bins from zero hold ``percentile`` percent of the values; a bin's values are taken as evenly spread in it."""
    cumulated = np.cumsum(counts)
    wanted = cumulated[-1] * percentile / 100
    index = min(int(np.searchsorted(cumulated, wanted)), BINS - 1)
    before = cumulated[index - 1] if index else 0.0
    return index + float(np.clip((wanted - before) / max(counts[index], 1.0), 0.0, 1.0))


def _candidates(counts: Counts) -> range:
    """Where the range may end, in bins: from as many bins as levels up to the last bin that is not empty."""
    last = int(np.flatnonzero(counts)[-1]) + 1
    return range(min(LEVELS, last), last + STRIDE, STRIDE)


def _bins_by_mse(counts: Counts) -> float:
    centres = np.arange(BINS) + 0.5
    errors = {}
    for bins in _candidates(counts):
        scale = bins / (LEVELS - 1)
        rounded = np.minimum(np.round(centres / scale), LEVELS - 1) * scale
        errors[bins] = float(np.dot(counts, (rounded - centres) ** 2))
    return min(errors, key=lambda bins: errors[bins])


def _bins_by_entropy(counts: Counts) -> float:
    counts = smooth(counts)
    if not counts.any():
        return BINS
    divergences = {bins: divergence(counts, min(bins, BINS)) for bins in _candidates(counts)}
    return min(divergences, key=lambda bins: divergences[bins])


def smooth(counts: Counts) -> Counts:
    """The counts as ``divergence`` takes them: without what is an accident of the data, not of the range.

    The first bin holds the exact zeros of a relu, which every range represents without error: it counts as much as the second. Then each bin is the
    mean of those around it, as many as a level of the whole range has. A single value that occurs often (what a layer makes of a plain background)
    would otherwise be spread over its level by every range but the smallest, which would look best however much it clips; so would the noise of
    little data.
    """
    counts = counts.copy()
    counts[0] = counts[1]
    width = BINS // LEVELS
    padded = np.concatenate([counts[width // 2 - 1 :: -1], counts, np.zeros(width // 2 - 1)])
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def divergence(counts: Counts, bins: int) -> float:
    """The Kullback-Leibler divergence, in nats, of the first ``bins`` bins rounded to LEVELS levels from the distribution clipped to these bins.

    Each level's mass is spread evenly over those of its bins that are not empty; what lies beyond is added to the last bin of the true distribution.
    """
    kept = counts[:bins]
    true = kept.copy()
    true[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    is_used = kept > 0
    mass = np.bincount(level, kept, LEVELS)
    used = np.bincount(level, is_used, LEVELS)
    rounded = np.where(is_used, (mass / np.maximum(used, 1))[level], 0.0)
    if not rounded.sum():
        return float("inf")
    true, rounded = true / true.sum(), rounded / rounded.sum()
    where = true > 0
    # The last bin may be empty but for what was clipped into it: no level stands for it.
    smallest = np.finfo(np.float64).tiny
    return float(np.sum(true[where] * np.log(true[where] / np.maximum(rounded[where], smallest))))
