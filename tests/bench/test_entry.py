"""Entry's judgements that test_run.py cannot force."""

import pytest

from torchkiln.bench.entry import is_noisy
from torchkiln.bench.result import Latency


@pytest.mark.parametrize(
    ("minimum", "median", "p90", "noisy"),
    [(1.0, 1.1, 1.3, False), (1.0, 1.1, 1.7, True), (1.0, 2.5, 2.6, True), (1.0, 1.9, 2.8, False)],
)
def test_noise_shows_in_the_tail_or_in_the_body(minimum, median, p90, noisy):
    assert is_noisy(Latency(minimum, median, median, p90, p90, p90, 100.0)) is noisy
