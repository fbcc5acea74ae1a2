"""summarize: recorded calls to latency figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .result import Latency

_NS_PER_MS = 1e6


def summarize(samples_ns: Sequence[float]) -> Latency:
    """Min, mean, median, percentiles (linear interpolation) and max of at least one sample, from nanoseconds to milliseconds."""
    ms = np.asarray(samples_ns, dtype=np.float64) / _NS_PER_MS
    median, p90, p95, p99 = (float(v) for v in np.percentile(ms, [50, 90, 95, 99]))
    return Latency(min=float(ms.min()), mean=float(ms.mean()), median=median, p90=p90, p95=p95, p99=p99, max=float(ms.max()))
