"""The order in which units are widened."""

from __future__ import annotations

import math

from torchkiln.precision_search.greedy import Level, total_us, widening_order


def test_most_error_for_least_time_comes_first() -> None:
    cheap = [Level("bf16", 0.3, 10), Level("fp32", 0.0, 12)]
    dear = [Level("bf16", 0.3, 10), Level("fp32", 0.0, 40)]
    harmless = [Level("bf16", 0.001, 10), Level("fp32", 0.0, 12)]
    path = widening_order([harmless, dear, cheap])
    assert path == [(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)]
    assert [total_us([harmless, dear, cheap], state) for state in path] == [30, 32, 62, 64]


def test_what_is_not_finite_comes_before_all_and_levels_are_taken_one_by_one() -> None:
    broken = [Level("int8", 0.1, 1), Level("fp16", math.inf, 2), Level("fp32", 0.0, 90)]
    large = [Level("fp16", 5.0, 1), Level("fp32", 0.0, 2)]
    path = widening_order([broken, large])
    assert path[1] == (0, 1)  # int8 is not what is broken
    assert path[-1] == (2, 1)
    assert widening_order([[Level("fp16", math.inf, 1), Level("fp32", 0.0, 99)], large])[1] == (1, 0)


def test_a_step_that_is_measured_to_save_time_does_not_count_as_free() -> None:
    faster = [Level("bf16", 0.001, 10), Level("fp32", 0.0, 8)]
    needed = [Level("bf16", 0.5, 10), Level("fp32", 0.0, 11)]
    assert widening_order([faster, needed])[1] == (0, 1)


def test_one_level_is_no_step() -> None:
    assert widening_order([[Level("fp32", 0.0, 3)]]) == [(0,)]
